"""generate.py as a user runs it: results, resuming, interruptions, wrong input."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from conftest import RECIPES, Run, generate_command, make_model, recipe_environment
from paused import go_on, paused, wait_for_pause

from llm_recipes.cli import run_recipe

sys.path.insert(0, str(RECIPES / "inference"))

from generate import generate as recipe

LATIN1 = os.fsdecode("café".encode("latin1"))  # what a terminal in another encoding sends
STEP = "llm_recipes.running_batch:RunningBatch.step"  # a token more of each prompt
TEXTS = ["The import statement", "A class", "Lists may be constructed in several ways", "x"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts; ü.txt"
    file.write_text("\n".join(TEXTS))
    return file


def run(*arguments: object) -> int:
    """Run in this process: as the command line would, without importing torch again."""
    with pytest.raises(SystemExit) as end:
        run_recipe(recipe, [str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_answers_and_record(model_folder: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out's" / "answers.jsonl"
    output.parent.mkdir()
    options = ["--model", model_folder, "--prompts", prompts, "--output", output]
    assert run(*options, "--max-new-tokens", 5, "--temperature", 1, "--samples", 2) == 0
    answers = rows(output)
    assert [(a["id"], a["sample"]) for a in answers] == [
        (i, s) for i in (1, 2, 3, 4) for s in (0, 1)
    ]
    assert [a["prompt"] for a in answers[::2]] == TEXTS
    assert all(a["finish_reason"] in ("stop", "length") for a in answers)
    assert all(1 <= a["completion_tokens"] <= 5 for a in answers)
    assert files(output.parent) == {"answers.jsonl", "answers.run.json"}
    record = json.loads((output.parent / "answers.run.json").read_text())
    assert (record["schema"], record["status"]) == (1, "complete")
    assert record["config"]["samples"] == 2
    assert record["data"]["rows"] == 4
    assert record["model"]["architecture"] == "LlamaForCausalLM"
    metrics = record["metrics"]
    assert metrics["generated_tokens"] == sum(a["completion_tokens"] for a in answers)
    assert metrics["prompt_tokens"] == sum(a["prompt_tokens"] for a in answers)
    assert metrics["load_bytes"] == (model_folder / "model.safetensors").stat().st_size


def test_the_same_command_finds_nothing_to_do_and_others_are_refused(
    model_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.jsonl"
    options = ["--model", model_folder, "--output", output, "--max-new-tokens", 3]
    assert run(*options, "--prompts", prompts) == 0
    before = output.read_bytes()
    assert run(*options, "--prompts", prompts) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert files(tmp_path) == {"a.jsonl", "a.run.json", prompts.name}
    assert run(*options, "--prompts", prompts, "--seed", 5, "--stop", "x") == 2
    error = capsys.readouterr().err
    assert "made with other settings or prompts" in error
    assert "seed was 0 and is 5" in error
    assert "stop was None and is ['x']" in error
    prompts.write_text(prompts.read_text().replace("class", "function"))
    assert run(*options, "--prompts", prompts) == 2
    assert "the prompts differ (changed: 2)" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert run(*options, "--prompts", prompts, "--overwrite") == 0
    assert rows(output)[1]["prompt"] == "A function"


def test_a_foreign_output_is_left_alone(
    model_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "thesis.txt"
    output.write_text("mine")
    assert run("--model", model_folder, "--prompts", prompts, "--output", output) == 2
    assert "is there already" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert files(tmp_path) == {prompts.name, "thesis.txt"}


def test_resume_after_a_torn_line(model_folder: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    options = ["--model", model_folder, "--prompts", prompts, "--max-new-tokens", 4, "--output"]
    assert run(*options, output) == 0
    whole = output.read_bytes()
    record = json.loads((tmp_path / "a.run.json").read_text())
    lines = whole.splitlines(keepends=True)
    header = json.dumps({"made_with": record["made_with"]}).encode() + b"\n"
    for kept in (lines[2] + lines[0] + lines[1][:20], lines[3][:-1], b"", lines[1] + b"\0\0\n"):
        output.unlink()
        partial = tmp_path / "a.jsonl.partial"
        partial.write_bytes(header + kept)
        assert run(*options, output) == 0
        assert output.read_bytes() == whole
        assert not partial.exists()


def test_greedy_answers_do_not_depend_on_the_batch(
    model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    for size in (1, 3, "auto"):
        options = ["--model", model_folder, "--prompts", prompts, "--max-new-tokens", 8]
        assert run(*options, "--batch-size", size, "--output", tmp_path / f"{size}.jsonl") == 0
    assert len({(tmp_path / f"{size}.jsonl").read_bytes() for size in (1, 3, "auto")}) == 1


def test_out_of_memory_halves_the_batch(
    model_folder: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llm_recipes.decoding import Decoder

    original, sizes = Decoder.complete, []

    def limited(self: Decoder, requests: Any, on_text: Any = None) -> Iterator[Any]:
        sizes.append(len(requests))
        if len(requests) > 2:
            raise MemoryError
        yield from original(self, requests, on_text)

    monkeypatch.setattr(Decoder, "complete", limited)
    options = ["--model", model_folder, "--prompts", prompts, "--max-new-tokens", 3]
    assert run(*options, "--output", tmp_path / "a.jsonl") == 0
    assert sizes == [4, 2, 2]
    assert "out of memory with 4 rows a batch: going on with 2" in capsys.readouterr().err
    assert len(rows(tmp_path / "a.jsonl")) == 4


def run_out(*arguments: Any, **options: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("decoding.Decoder.complete", "memory ran out with a single prompt of "),
        ("models.measure_size", "memory ran out while a first token was computed"),
        ("models.load_model", "memory ran out while the model was loaded"),
    ],
)
def test_out_of_memory_is_said(
    function: str,
    message: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(f"llm_recipes.{function}", run_out)
    assert run("--model", model_folder, "--prompt", "x", "--stream") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "why: MemoryError" in error
    assert "Traceback" not in error


def test_stop_string_is_cut_off(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", model_folder, "--prompt", "A class", "--max-new-tokens", 20]
    assert run(*options) == 0
    whole = json.loads(capsys.readouterr().out)["completion"]
    stop = whole[8:11]
    assert run(*options, "--stop", stop, "--stop", "never there") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["completion"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_standard_input_to_standard_output(model_folder: Path, generate: Run) -> None:
    chat = (
        '{"id": "c", "messages": [{"role": "user", "content": "hi"}]}\n{"id": "d", "prompt": "x"}\n'
    )
    arguments = ["--model", model_folder, "--prompts", "-", "--max-new-tokens", 3]
    done = generate(arguments, input=chat)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["c", "d"]
    assert "tokens/s" in done.stderr
    assert "MBU" in done.stderr


def test_chat_has_history_and_forgets(model_folder: Path, generate: Run) -> None:
    arguments = ["--model", model_folder, "--chat", "--max-new-tokens", 5]
    done = generate(arguments, input="hello\nhello\n/reset\n/what\nhello\n/quit\nnever read\n")
    assert done.returncode == 0, done.stderr
    first, second, after_reset = done.stdout.splitlines()
    assert first == after_reset != second
    assert "/reset forgets" in done.stderr


def test_a_base_model_holds_no_chat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # no question is read
    folder = make_model(tmp_path / "base", chat=False)
    assert run("--model", folder, "--chat") == 2
    assert "the model knows no chat" in capsys.readouterr().err
    assert run("--model", folder, "--prompt", "x", "--system", "Be brief") == 2
    assert "--system has no place in the style 'raw'" in capsys.readouterr().err


def test_adapter_changes_the_answers_and_merging_equals_peft(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    tuned = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, r=2))
    tuned.save_pretrained(tmp_path / "adapter")
    ids = AutoTokenizer.from_pretrained(model_folder)("A class", return_tensors="pt")
    expected = tuned.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids.input_ids.shape[1] :]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    options = ["--model", model_folder, "--prompt", "A class", "--prompt-style", "raw"]
    assert run(*options, "--max-new-tokens", 6, "--adapter", tmp_path / "adapter") == 0
    with_adapter = json.loads(capsys.readouterr().out)["completion"]
    assert run(*options, "--max-new-tokens", 6) == 0
    assert with_adapter != json.loads(capsys.readouterr().out)["completion"]
    assert with_adapter.strip() == tokenizer.decode(expected, skip_special_tokens=True).strip()
    # The adapter's folder alone is no model; the message says how to use it.
    assert run("--model", tmp_path / "adapter", "--prompt", "x") == 2
    assert f"--adapter {tmp_path / 'adapter'}" in capsys.readouterr().err


def test_all_bad_options_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--max-new-tokens", 0, "--top-p", 0, "--temperature", -1, "--samples", 0]
    assert run("--model", "x", *wrong) == 2
    error = capsys.readouterr().err
    for option in (
        "exactly one of --prompt",
        "--max-new-tokens 0",
        "--top-p 0",
        "-1",
        "--samples 0",
    ):
        assert option in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", ""], "--prompt number 1 is empty"),
        (["--prompts", "/nowhere/p.txt"], "cannot read prompts from /nowhere/p.txt"),
        (["--prompt", "x", "--prompts", "y"], "exactly one of"),
        (["--prompt", "x", "--output", "/nowhere/a.jsonl"], "its folder does not exist"),
        (["--prompt", "x", "--output", "/proc/a.jsonl"], "cannot write /proc/a.jsonl.partial"),
        (["--prompt", "x", "--output", "/tmp"], "/tmp is a folder"),
        (["--prompt", "x", "--output", "."], "name a file: --output ./answers.jsonl"),
        (["--prompt", "x", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["--prompt", "x", "--device", "gpu"], "unknown device 'gpu'"),
        (["--prompt", LATIN1], "--prompt is not UTF-8"),
        (["--prompt", "x", "--system", LATIN1], "--system is not UTF-8"),
        (["--prompt", "x", "--stop", "y", "--stop", LATIN1], "--stop is not UTF-8"),
        (["--chat", "--system", LATIN1], "--system is not UTF-8"),
        (["--prompt", "x", "--adapter", "/tmp"], "/tmp is no PEFT adapter"),
        (["--prompt", "x y " * 400], "prompt 1 is too long"),
        (["--prompt", "x", "--samples", "2"], "would all be the same"),
        (["--chat", "--output", "x"], "--chat writes no --output"),
        (["--chat", "--prompt-style", "raw"], "--chat does not go with --prompt-style raw"),
        (["--prompt", "x", "--system", "y", "--prompt-style", "alpaca"], "no place in the style"),
    ],
)
def test_wrong_input(
    options: list[str], message: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", model_folder, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def damage_lfs(folder: Path) -> None:
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\nsize 1\n"
    )


def damage_cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def damage_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_shards(folder: Path) -> None:
    weights = {"a": "model-1-of-3.safetensors", "b": "model-2-of-3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (folder / "model.safetensors").rename(folder / "model-1-of-3.safetensors")


def damage_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))


def damage_tokenizer_form(folder: Path) -> None:
    form = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    form["version"] = "7"
    (folder / "tokenizer.json").write_text(json.dumps(form))


def damage_config_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": "four"}))


def damage_config_form(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def damage_weight_type(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"F99"', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_lfs, "git lfs pull"),
        (damage_cut, "is cut off or damaged"),
        (damage_no_weights, "model.safetensors"),
        (damage_shards, "lacks 1 file(s) of weights\n  why: model-2-of-3.safetensors"),
        (damage_tokenizer, "lacks its tokenizer"),
        (damage_config, "config.json is not JSON"),
        (damage_no_config, "is no model folder"),
        (damage_architecture, "cannot load the model"),
        (damage_tokenizer_form, "cannot load the model"),
        (damage_config_type, "cannot load the model"),
        (damage_config_form, "cannot load the model"),
        (damage_weight_type, "cannot load the model"),
    ],
)
def test_incomplete_model(
    damage: Any,
    message: str,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "broken; model"
    shutil.copytree(model_folder, folder)
    damage(folder)
    assert run("--model", folder, "--prompt", "x") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_unknown_models(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", str(model_folder)[:-1], "--prompt", "x") == 2
    assert f"did you mean {model_folder}?" in capsys.readouterr().err
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert run("--model", "nobody/no-such-model", "--prompt", "x") == 2
    assert "hf download nobody/no-such-model" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_continued(
    number: signal.Signals, status: int, model_folder: Path, tmp_path: Path
) -> None:
    asked = tmp_path / "many.txt"
    asked.write_text("".join(f"Prompt number {i}\n" for i in range(24)))
    output = tmp_path / "a.jsonl"
    partial = tmp_path / "a.jsonl.partial"
    options = ["--model", model_folder, "--prompts", asked, "--batch-size", 1]
    options += ["--max-new-tokens", 40, "--ignore-eos", "--temperature", 1, "--output"]
    # In the middle of the third answer: each takes 39 steps.
    command = paused(STEP, 98, generate_command([*options, output]))
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=recipe_environment()
    ) as running:
        pid = wait_for_pause(running)
        os.kill(pid, number)
        go_on(pid, number)
        _, error = running.communicate(timeout=60)
    assert running.returncode == status
    assert "Traceback" not in error
    assert "the same command goes on" in error
    assert not output.exists()
    kept = rows(partial)[1:]
    assert len(kept) == 2
    assert json.loads((tmp_path / "a.run.json").read_text())["status"] == "interrupted"
    assert run(*options, output) == 0
    assert [row["id"] for row in rows(output)] == list(range(1, 25))
    assert all(row in rows(output) for row in kept)
    assert run(*options, tmp_path / "uninterrupted.jsonl") == 0
    assert (tmp_path / "uninterrupted.jsonl").read_bytes() == output.read_bytes()


def test_two_runs_do_not_write_one_file(
    model_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    with open(tmp_path / "a.jsonl.partial", "w") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        options = ["--model", model_folder, "--prompts", prompts]
        assert run(*options, "--output", tmp_path / "a.jsonl") == 2
    assert "another process is writing" in capsys.readouterr().err


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount program here")
    if done.returncode != 0:
        pytest.skip(f"a small file system needs the right to mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_what_was_written(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "many.txt"
    asked.write_text("".join(f"{i} {'word ' * 30}\n" for i in range(60)))
    with small_disk(tmp_path / "small", "16k") as folder:
        output = folder / "a.jsonl"
        options = ["--model", model_folder, "--prompts", asked, "--max-new-tokens", 4]
        assert run(*options, "--output", output) == 2
        error = capsys.readouterr().err
        assert "no space left to write" in error
        assert "Traceback" not in error
        data = (folder / "a.jsonl.partial").read_bytes()
        assert data.endswith(b"\n")
        kept = rows(folder / "a.jsonl.partial")[1:]
        assert 10 < len(kept) < 60
        remount = ["mount", "-o", "remount,size=256k", str(folder)]
        subprocess.run(remount, check=True, capture_output=True)
        assert run(*options, "--output", output) == 0
        assert [row["id"] for row in rows(output)] == list(range(1, 61))
        assert all(row in rows(output) for row in kept)
