"""sharded.py at one and two processes: transformers' answers, wrong input, interruptions."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fairscale")

import torch
from conftest import RECIPES, recipe_environment
from forked_ranks import Ended, run_ranks
from meta_checkpoints import LLAMA_1, LLAMA_2, LLAMA_3, LLAMA_3_2, Generation, hf_model
from meta_checkpoints import make_checkpoint as make
from paused import go_on, paused, wait_for_pause

from llm_recipes.cli import run_recipe
from llm_recipes.decoding import DecodeSettings
from llm_recipes.meta import session
from llm_recipes.meta.model import MetaLlama
from llm_recipes.meta.tokenizer import load_tokenizer, stop_ids
from llm_recipes.prompts import Prompt, render
from llm_recipes.sampling import Sampling
from llm_recipes.stopping import Row

sys.path.insert(0, str(RECIPES / "inference"))

from sharded import sharded as recipe

TEXTS = ["The import statement", "A class", "Lists may be constructed in several ways", "x"]
Checkpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of a generation and degree; its path has what paths should not have."""
    root = tmp_path_factory.mktemp("it's; ü llamas")

    def find(generation: Generation = LLAMA_2, degree: int = 2) -> Path:
        folder = root / f"{generation.name} {degree}"
        return folder if folder.exists() else make(folder, generation, degree)

    return find


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts; ü.txt"
    file.write_text("\n".join(TEXTS))
    return file


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun nothing ends the ranks that let another speak."""
    monkeypatch.setattr("llm_recipes.ranks.SECONDS_TO_SPEAK", 0.3)


def run(*arguments: object) -> int:
    """Run with one process, in this one."""
    with pytest.raises(SystemExit) as end:
        run_recipe(recipe, [str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def run_two(folder: Path, *arguments: object, **how: Any) -> list[Ended]:
    return run_ranks(recipe, arguments, 2, folder, **how)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts_of(path: Path) -> list[str]:
    return [row["completion"] for row in rows(path)]


def greedy(generation: Generation, tokenizer: Any, prompt: str, count: int) -> str:
    """The completion that transformers' model makes, whole sequence by whole sequence."""
    model = hf_model(generation)
    ids = render(Prompt(1, prompt), tokenizer, "raw")
    ends = stop_ids(tokenizer, None)
    settings = DecodeSettings(count, Sampling(), stop_token_ids=ends)
    row = Row(0, ids, tokenizer, settings, None)
    while not row.finish_reason:
        row.append(int(model(torch.tensor([ids + row.generated])).logits[0, -1].argmax()))
    return row.text()


@pytest.mark.parametrize("generation", [LLAMA_1, LLAMA_2, LLAMA_3, LLAMA_3_2], ids=lambda g: g.name)
def test_greedy_answers_are_transformers_answers(
    checkpoint: Checkpoint, prompts: Path, tmp_path: Path, generation: Generation
) -> None:
    options = ["--prompts", prompts, "--max-new-tokens", 13]
    if generation.rope_factor:
        options += ["--rope-factor", generation.rope_factor]
    alone, both = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one, two = checkpoint(generation, 1), checkpoint(generation, 2)
    assert run(*options, "--model", one, "--output", alone) == 0
    ends = run_two(tmp_path, *options, "--model", two, "--output", both)
    assert [end.status for end in ends] == [0, 0], ends
    assert ends[1].out == ends[1].err == "", "only the first rank speaks"
    tokenizer = load_tokenizer(one / "tokenizer.model", None, chat=False)
    assert texts_of(alone) == [greedy(generation, tokenizer, text, 13) for text in TEXTS]
    assert rows(both) == rows(alone)


def test_samples_are_the_same_whatever_the_processes_and_batches(
    checkpoint: Checkpoint, prompts: Path, tmp_path: Path
) -> None:
    options = ["--prompts", prompts, "--max-new-tokens", 9, "--temperature", 1.3, "--top-p", 0.9]
    options += ["--seed", 3, "--samples", 2, "--repetition-penalty", 1.1]
    alone, both = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    assert run(*options, "--model", checkpoint(degree=1), "--output", alone) == 0
    more = ["--max-batch-size", 3, "--top-k", 0]
    ends = run_two(tmp_path, *options, *more, "--model", checkpoint(), "--output", both)
    assert [end.status for end in ends] == [0, 0], ends
    assert rows(both) == rows(alone)
    found = rows(alone)
    assert [(row["id"], row["sample"]) for row in found] == [
        (i, s) for i in range(1, 5) for s in (0, 1)
    ]
    assert any(
        a["completion"] != b["completion"] for a, b in zip(found[::2], found[1::2], strict=True)
    )
    record = json.loads((tmp_path / "2.run.json").read_text())
    assert (record["recipe"], record["status"]) == ("inference/sharded", "complete")
    assert record["model"]["model_parallel"] == 2
    parameters = sum(weight.numel() for weight in hf_model(LLAMA_2).parameters())
    assert record["model"]["parameters"] == record["metrics"]["parameters"] == parameters
    metrics = record["metrics"]
    assert metrics["generated_tokens"] == sum(row["completion_tokens"] for row in found)
    assert len(metrics["rank_peak_host_bytes"]) == 2
    files = [checkpoint() / f"consolidated.0{rank}.pth" for rank in (0, 1)]
    assert metrics["load_bytes"] == sum(file.stat().st_size for file in files)
    # The same settings and weights: nothing to do, and nothing is loaded.
    ends = run_two(tmp_path, *options, "--model", checkpoint(), "--output", both)
    assert [end.status for end in ends] == [0, 0] and "nothing to do" in ends[0].err
    assert "loading" not in ends[0].err
    ends = run_two(tmp_path, *options, "--seed", 4, "--model", checkpoint(), "--output", both)
    assert [end.status for end in ends] == [2, 2] and "seed was 3 and is 4" in ends[0].err
    assert ends[1].err == ""


def test_prompts_that_are_too_long_get_an_empty_answer(
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    long = " ".join(TEXTS)
    file, output = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    lines = [{"id": f"long {n}", "prompt": long} for n in range(12)]
    lines.insert(3, {"id": "short", "prompt": "x"})
    file.write_text("\n".join(map(json.dumps, lines)))
    options = ["--model", checkpoint(degree=1), "--max-seq-len", 8, "--output", output]
    with monkeypatch.context() as patched:
        patched.setattr(session, "complete_all", interrupted)
        assert run(*options, "--prompts", file) == 130
    said = capsys.readouterr().err
    assert run(*options, "--prompts", file) == 0
    assert " is too long" not in capsys.readouterr().err, "the first run has answered them"
    assert f"prompt 'long 0' ({file}, line 1) is too long" in said
    assert said.count(" is too long") == 10 and "and 2 more prompts are too long" in said
    found = {row["id"]: row for row in rows(output)}
    assert [row["id"] for row in rows(output)] == [line["id"] for line in lines]
    assert found["short"]["finish_reason"] in ("stop", "length")
    assert 1 <= found["short"]["completion_tokens"] <= 8 - found["short"]["prompt_tokens"]
    answer = found["long 5"]
    assert (answer["completion"], answer["completion_tokens"]) == ("", 0)
    assert answer["finish_reason"] == "prompt_too_long" and answer["prompt_tokens"] >= 8
    record = json.loads((tmp_path / "a.run.json").read_text())
    assert record["metrics"]["prompts_too_long"] == 12, "of both runs"
    assert run(*options, "--prompts", file) == 0
    assert "nothing to do" in capsys.readouterr().err
    # All of them: still answers, and the weights are not even read.
    file.write_text("\n".join(map(json.dumps, lines[:2])))
    assert run(*options, "--prompts", file, "--overwrite") == 0
    assert [row["finish_reason"] for row in rows(output)] == ["prompt_too_long"] * 2
    assert "loading" not in capsys.readouterr().err
    assert run("--model", checkpoint(degree=1), "--max-seq-len", 8, "--prompt", long) == 2
    assert "prompt 1 is too long" in capsys.readouterr().err


def test_a_batch_whose_rows_reach_the_limit_at_different_times(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    file, output = tmp_path / "p.txt", tmp_path / "a.jsonl"
    file.write_text("\n".join(TEXTS))
    options = ["--model", checkpoint(degree=1), "--max-seq-len", 30, "--ignore-eos"]
    assert run(*options, "--prompts", file, "--max-new-tokens", 25, "--output", output) == 0
    for row in rows(output):
        assert row["completion_tokens"] == min(25, 30 - row["prompt_tokens"])


def test_stop_strings_and_chats(checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = ["--model", checkpoint(LLAMA_3, 1), "--max-new-tokens", 12]
    plain, cut, chat = (tmp_path / f"{name}.jsonl" for name in ("plain", "cut", "chat"))
    assert run(*options, "--prompt", TEXTS[0], "--output", plain) == 0
    (text,) = texts_of(plain)
    stop = text[3:5]
    assert run(*options, "--prompt", TEXTS[0], "--output", cut, "--stop", stop) == 0
    assert rows(cut)[0]["completion"] == text[: text.index(stop)]
    assert rows(cut)[0]["finish_reason"] == "stop"
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    messages.append({"role": "user", "content": "x"})
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps({"id": 7, "messages": messages}))
    more = ["--prompt-style", "chat", "--system", "Be short.", "--output", chat]
    assert run(*options, "--prompts", file, *more) == 0
    tokenizer = load_tokenizer(checkpoint(LLAMA_3, 1) / "tokenizer.model", None, chat=True)
    expected = render(Prompt(7, messages=tuple(messages)), tokenizer, "chat", "Be short.")
    assert rows(chat)[0]["prompt_tokens"] == len(expected)


def test_a_conversation_of_two_processes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def speak(rank: int) -> None:
        sys.stdin = io.StringIO("Hello\n/quit\n" if rank == 0 else "")

    options = ["--model", checkpoint(), "--chat", "--max-new-tokens", 5]
    ends = run_two(tmp_path, *options, before=speak)
    assert [end.status for end in ends] == [0, 0], ends
    assert ends[0].out and not ends[1].out + ends[1].err


def test_wrong_numbers_of_processes(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", checkpoint(), "--prompt", "x") == 2
    said = capsys.readouterr().err
    assert "has 2 shards, and 1 process was started" in said
    assert "llm-run --torchrun --nproc-per-node=2 python recipes/inference/sharded.py" in said
    assert "--to meta --model-parallel 1" in said
    ends = run_two(tmp_path, "--model", checkpoint(degree=1), "--prompt", "x")
    assert [end.status for end in ends] == [2, 2]
    assert "has 1 shard, and 2 processes were started" in ends[0].err
    assert ends[1].err == ""


def test_on_several_nodes_the_command_is_for_each(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def two_nodes(rank: int) -> None:
        os.environ["LOCAL_WORLD_SIZE"] = "1"

    options = ["--model", checkpoint(degree=4), "--prompt", "x"]
    first, second = run_two(tmp_path, *options, before=two_nodes)
    assert (first.status, second.status) == (2, 2) and second.err == ""
    assert "has 4 shards, and 2 processes were started" in first.err
    assert "on 2 nodes: llm-run --torchrun --nproc-per-node=2 python" in first.err


@pytest.mark.parametrize(
    ("wanted", "known", "note", "limit", "words"),
    [
        (None, 4096, "", 4096, ""),
        (None, None, "", 2048, "the model's context is not known: 2048 tokens"),
        (None, 4096, "releases differ", 4096, "note: releases differ; the smallest is taken"),
        (100, None, "", 100, ""),
        (9000, 4096, "", 9000, "note: the model was trained for 4096 tokens, fewer than"),
    ],
)
def test_what_limits_a_row(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wanted: int | None,
    known: int | None,
    note: str,
    limit: int,
    words: str,
) -> None:
    monkeypatch.setattr(session, "context_of", lambda params: (known, note))
    shard = SimpleNamespace(checkpoint=SimpleNamespace(context=known, params=None))
    plan: Any = SimpleNamespace(settings={"max_seq_len": wanted}, shard=shard)
    assert session.longest_row(plan) == limit
    said = capsys.readouterr().err
    assert said.startswith(words) and bool(said) == bool(words)


def cut_short(folder: Path) -> None:
    file = folder / "consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:-20000])


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def with_code(folder: Path) -> None:
    torch.save({"norm.weight": Code()}, folder / "consolidated.01.pth")


def mixed(folder: Path) -> None:
    other = make(folder.with_name("other"), LLAMA_2, 2, seed=1)
    shutil.copy(other / "consolidated.01.pth", folder / "consolidated.01.pth")


def without_second(folder: Path) -> None:
    (folder / "consolidated.01.pth").unlink()


def other_width(folder: Path) -> None:
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "ffn_dim_multiplier": 2.0}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_short, "consolidated.01.pth is cut off or damaged"),
        (with_code, "consolidated.01.pth is refused: it wants to run code"),
        (mixed, "mixes shards of different models"),
        (without_second, "has 1 of 2 shards"),
        (other_width, "contradicts consolidated.00.pth"),
    ],
)
def test_damage_is_said_once_and_nothing_runs(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "spoiled; model's"
    shutil.copytree(checkpoint(), folder)
    spoil(folder)
    output = tmp_path / "a.jsonl"
    ends = run_two(tmp_path, "--model", folder, "--prompt", "x", "--output", output)
    assert [end.status for end in ends] == [2, 2]
    said = ends[0].err + ends[1].err
    assert said.count(words) == 1 and said.count("  fix: ") == 1, said
    assert "Traceback" not in said
    assert not (tmp_path / "executed").exists() and not output.exists()


def test_memory_that_is_not_there(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompt", "x", "--max-new-tokens", 10**11, "--max-seq-len", 10**11]
    assert run("--model", checkpoint(degree=1), *options) == 2
    said = capsys.readouterr().err
    assert "there is no memory for the keys and values of 1 rows" in said
    assert "--max-batch-size, --max-seq-len" in said
    ends = run_two(tmp_path, "--model", checkpoint(), *options)
    assert [end.status for end in ends] == [2, 2]
    assert "there is no memory for the keys and values" in ends[0].err and ends[1].err == ""


def test_memory_that_ends_in_one_process(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def fail_later(rank: int) -> None:
        steps: list[None] = []

        def step(model: MetaLlama, tokens: Any) -> Any:
            steps.append(None)
            if len(steps) == 3:
                raise RuntimeError("can't allocate memory")
            return usual(model, tokens)

        usual = MetaLlama.step
        if rank == 1:
            MetaLlama.step = step  # type: ignore[method-assign]

    output = tmp_path / "a.jsonl"
    options = ["--model", checkpoint(), "--prompt", "x", "--output", output]
    first, second = run_two(tmp_path, *options, before=fail_later)
    assert (first.status, second.status) == (2, 2)
    assert "memory ran out while a batch of 1 rows was continued" in second.err
    assert "lower --max-batch-size" in second.err
    # torchrun would have ended it before it says so.
    assert "another process of this model has ended" in first.err
    assert "Traceback" not in first.err + second.err
    assert json.loads((tmp_path / "a.run.json").read_text())["status"] == "failed"


def test_a_folder_that_one_node_does_not_have(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def move(rank: int) -> None:
        os.environ["LOCAL_WORLD_SIZE"] = "1"  # so these are two nodes
        os.chdir(checkpoint().parent if rank == 0 else tmp_path)

    first, second = run_two(tmp_path, "--model", checkpoint().name, "--prompt", "x", before=move)
    assert (first.status, second.status) == (2, 2) and first.err == ""
    assert f"{checkpoint().name}" in second.err
    assert f"seen by process 1, on node {os.uname().nodename}" in second.err


def test_an_output_that_cannot_be_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "missing" / "a.jsonl"
    first, second = run_two(tmp_path, "--model", checkpoint(), "--prompt", "x", "--output", output)
    assert (first.status, second.status) == (2, 2) and second.err == ""
    assert "cannot write" in first.err


def test_options_that_cannot_be_meant(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", checkpoint(), "--max-batch-size", 0, "--max-seq-len", 1]
    assert run(*options) == 2
    said = capsys.readouterr().err
    for words in ("exactly one of", "--max-batch-size 0 is too small", "--max-seq-len 1 is too"):
        assert words in said
    first, second = run_two(tmp_path, *options, "--prompt", "x")
    assert (first.status, second.status) == (2, 2) and second.err == ""
    assert first.err.count("is too small") == 2


def test_plan(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--plan", "--max-seq-len", 100, "--max-batch-size", 4, "--dtype", "bf16"]
    assert run("--model", checkpoint(), *options) == 0
    said = capsys.readouterr().out
    # 2 tensors, 2 layers, 2 K/V heads of 8 numbers, 2 bytes, 4 rows of 100 tokens.
    assert "KV cache     5.12e-05 GB in each process, for 4 rows of 100 tokens" in said
    assert "processes    2, each with one shard" in said
    assert "llm-run --torchrun --nproc-per-node=2 python recipes/inference/sharded.py" in said
    assert run("--model", checkpoint(LLAMA_3_2, 1), "--plan") == 2
    assert "rope" in capsys.readouterr().err


def torchrun(*arguments: object) -> list[str]:
    """The command line of two processes, as a user starts them."""
    script = str(RECIPES / "inference" / "sharded.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node=2", script, *map(str, arguments)]


def test_interrupted_and_resumed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(f"Number {n}{' x' * (n % 7)}" for n in range(24)))
    output, partial = tmp_path / "a.jsonl", tmp_path / "a.jsonl.partial"
    options = ["--prompts", prompts, "--max-new-tokens", 40, "--max-batch-size", 2]
    options += ["--ignore-eos"]
    command = torchrun("--model", checkpoint(), *options, "--output", output)
    # In the middle of the second batch: each takes 39 steps, which the first process asks for.
    command = paused("llm_recipes.running_batch:RunningBatch.step", 59, command)
    started = subprocess.Popen(command, env=recipe_environment(), text=True, stderr=subprocess.PIPE)
    try:
        first = wait_for_pause(started)
        started.send_signal(signal.SIGINT)
        go_on(first, signal.SIGINT)
        said = started.communicate(timeout=60)[1]
    finally:
        started.kill()
    assert "sharded.py: interrupted" in said and 'sharded.py", line' not in said
    assert "of 24 answers are kept" in said
    assert json.loads((tmp_path / "a.run.json").read_text())["status"] == "interrupted"
    kept = rows(partial)[1:]
    assert len(kept) == 2
    ends = run_two(tmp_path, "--model", checkpoint(), *options, "--output", output)
    assert [end.status for end in ends] == [0, 0], ends
    assert [row["id"] for row in rows(output)] == list(range(1, 25))
    whole = tmp_path / "whole.jsonl"
    assert run("--model", checkpoint(degree=1), *options, "--output", whole) == 0
    assert rows(output) == rows(whole)
    assert all(row in rows(output) for row in kept)
