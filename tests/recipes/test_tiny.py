"""recipes/data/tiny.py, run as a user runs it; the library behind it on little text."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer, Qwen2Tokenizer

from llm_recipes import tiny_corpus
from llm_recipes.errors import LLMError
from llm_recipes.folders import file_digests
from llm_recipes.tiny_corpus import natural_documents, prose, split_documents, training_documents
from llm_recipes.tiny_models import ARCHITECTURES, Architecture, Shape, shape_faults

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SCRIPT = RECIPES / "data" / "tiny.py"
STEPS = 30
SMALL = ("--vocab-size", "1024", "--layers", "1", "--threads", "1")
Finished = subprocess.CompletedProcess[str]


def tiny(*arguments: object, **options: Any) -> Finished:
    return subprocess.run(command(*arguments), text=True, capture_output=True, env=env(), **options)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def env() -> dict[str, str]:
    # The hostile locale shows whether texts are read and written as UTF-8 whatever the user has.
    return {**os.environ, "PYTHONPATH": str(RECIPES), "HF_HUB_OFFLINE": "1", "LC_ALL": "C"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A model after a few steps, in a folder whose path has what paths should not have."""
    folder = tmp_path_factory.mktemp("tiny") / "new; it's" / "modèl 1"
    done = tiny("--output", folder, "--steps", STEPS, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def copied(made: tuple[Path, Finished], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(made[0], tmp_path_factory.mktemp("copy") / "tiny")


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record


def test_learns_and_says_so(made: tuple[Path, Finished]) -> None:
    folder, done = made
    record = record_of(folder)
    metrics = record["metrics"]
    assert metrics["untrained_perplexity"] > 900  # of 1024 pieces, nothing known
    assert metrics["held_out_perplexity"] < metrics["untrained_perplexity"] / 3
    assert f"{metrics['held_out_perplexity']:.1f}" in done.stdout
    assert f"untrained {metrics['untrained_perplexity']:.0f}" in done.stdout
    assert record["status"] == "complete"
    assert record["recipe"] == "data/tiny"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] - 1


def test_leaves_only_the_folder(made: tuple[Path, Finished]) -> None:
    folder = made[0]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
        *("tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
        *("run.json", "metrics.jsonl"),
    }
    assert record_of(folder)["model"]["files"] == {
        name: digest for name, digest in file_digests(folder).items() if name != "run.json"
    }


def test_same_command_makes_the_same_bytes(made: tuple[Path, Finished], tmp_path: Path) -> None:
    done = tiny("--output", tmp_path / "again", "--steps", STEPS, *SMALL)
    assert done.returncode == 0, done.stderr
    first, second = file_digests(made[0]), file_digests(tmp_path / "again")
    del first["run.json"], second["run.json"]  # it holds the time
    assert first == second


def test_nothing_to_do_where_the_model_is(copied: Path) -> None:
    before = file_digests(copied)
    done = tiny("--output", copied, "--steps", STEPS, *SMALL)
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr
    assert file_digests(copied) == before


def test_loads_as_a_llama_with_one_bos(made: tuple[Path, Finished]) -> None:
    folder = made[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, LlamaTokenizer)
    ids = tokenizer("2 + 3 =")["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    messages = [{"role": "user", "content": "Say hello."}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert chat.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(chat).endswith("### Response:\n")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size == 1024


def test_tokenizer_json_and_sentencepiece_agree(
    made: tuple[Path, Finished], texts: list[str]
) -> None:
    folder = made[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    hostile = ["  two spaces\n\n\ttab 東京 é 😀", " ", "12 + 7\r\n"]
    for text in [*hostile, *split_documents(texts)[1]]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == pieces.encode(text)
        assert tokenizer.decode(ids) == text


def test_only_answers_are_marked_for_training(made: tuple[Path, Finished]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made[0])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
    ]
    encoded = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "Yes</s>"


@pytest.mark.skipif(
    not shutil.which("convert_hf_to_gguf"), reason="llama.cpp's converter: image only"
)
def test_llama_cpp_converts_it(made: tuple[Path, Finished], tmp_path: Path) -> None:
    output = tmp_path / "tiny.gguf"
    call = ["convert_hf_to_gguf", str(made[0]), "--outfile", str(output), "--outtype", "f16"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes()[:4] == b"GGUF"


def test_other_settings_need_overwrite(copied: Path) -> None:
    before = file_digests(copied)
    done = tiny("--output", copied, "--steps", 5, "--seed", 3, *SMALL)
    assert done.returncode == 2
    assert "is another tiny model" in done.stderr
    assert f"steps {STEPS}, now 5; seed 0, now 3" in done.stderr
    assert "--overwrite" in done.stderr
    assert file_digests(copied) == before


def test_changed_model_is_not_taken_for_the_same(
    made: tuple[Path, Finished], tmp_path: Path
) -> None:
    folder = shutil.copytree(made[0], tmp_path / "changed")
    (folder / "config.json").write_text("{}")
    done = tiny("--output", folder, "--steps", STEPS, *SMALL)
    assert done.returncode == 2
    assert "were changed" in done.stderr and "config.json" in done.stderr


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_foreign_folder_is_never_touched(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = tiny("--output", tmp_path, *options)
    assert done.returncode == 2
    assert "is no tiny model" in done.stderr and "another --output" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    done = tiny("--output", tmp_path / "model")
    assert done.returncode == 2 and "is a file" in done.stderr


def test_all_faults_at_once(tmp_path: Path) -> None:
    done = tiny(
        *("--output", tmp_path / "x", "--steps", "-1", "--seed", "-2", "--threads", "0"),
        *("--hidden-size", "100", "--heads", "3", "--kv-heads", "2"),
    )
    assert done.returncode == 2
    for name in ("--steps -1", "--seed -2", "--threads 0", "--hidden-size 100", "--kv-heads 2"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--architecture", "gpt5"], "llama or mistral or falcon or gpt_neox or qwen2"),
        (["--output", "/proc/nowhere"], "cannot write /proc/nowhere"),
    ],
)
def test_wrong_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = tiny("--output", tmp_path / "x", "--steps", "0", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    process = subprocess.Popen(
        command("--output", tmp_path / "x", "--steps", 100_000, *SMALL),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env()},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("model:"):
            break
    time.sleep(1)
    assert any(tmp_path.iterdir())  # the temporary folder
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """All natural text: reading the standard library takes seconds."""
    return natural_documents()


@pytest.fixture
def recipe(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe as a module, with little text, so that a model takes a second."""
    spec = importlib.util.spec_from_file_location("tiny_recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tiny_recipe", module)
    spec.loader.exec_module(module)
    few = [text[:400] for text in texts[::20]]
    monkeypatch.setattr(tiny_corpus, "natural_documents", lambda: few)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield module
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(recipe: ModuleType, tmp_path: Path, architecture: Architecture) -> None:
    recipe.make_tiny_model(tmp_path / "m", architecture, steps=1, vocab_size=1024, threads=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert model.config.model_type == architecture
    ids = tokenizer("Hello", return_tensors="pt")["input_ids"]
    has_bos = architecture != "qwen2"  # as the real one
    assert isinstance(tokenizer, Qwen2Tokenizer) != has_bos
    assert ids[0].tolist().count(tokenizer.bos_token_id) == int(has_bos)
    assert (
        tokenizer.decode(tokenizer("  é 東京")["input_ids"], skip_special_tokens=True) == "  é 東京"
    )
    config = model.config
    assert (config.eos_token_id, config.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert torch.isfinite(model(input_ids=ids).logits).all()
    sizes = {size for weight in model.parameters() if weight.dim() == 2 for size in weight.shape}
    columns = {weight.shape[1] for weight in model.parameters() if weight.dim() == 2}
    assert all(size % 256 == 0 for size in columns), sizes


def test_overwrite_replaces_a_tiny_model_only(recipe: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    recipe.make_tiny_model(folder, steps=1, vocab_size=1024)
    (folder / "my notes.txt").write_text("mine")
    with pytest.raises(LLMError, match="files that are not the tiny model's") as caught:
        recipe.make_tiny_model(folder, steps=0, vocab_size=1024, overwrite=True)
    assert caught.value.why == "my notes.txt"
    assert (folder / "my notes.txt").read_text() == "mine"
    (folder / "my notes.txt").unlink()
    recipe.make_tiny_model(folder, steps=0, vocab_size=1024, overwrite=True)
    assert "held_out_perplexity" not in record_of(folder)["metrics"]
    assert not (folder / "metrics.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_disk_full(recipe: ModuleType, small_disk: Path) -> None:
    with pytest.raises(LLMError, match="no space left") as caught:
        recipe.make_tiny_model(small_disk / "x", steps=0, vocab_size=1024)
    assert "free space" in caught.value.fix
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_too_small_a_vocabulary(
    recipe: ModuleType, tmp_path: Path, architecture: Architecture
) -> None:
    with pytest.raises(LLMError, match="no tokenizer of 100 pieces"):
        recipe.make_tiny_model(tmp_path / "x", architecture, steps=0, vocab_size=100)
    assert list(tmp_path.iterdir()) == []


def test_seed_changes_the_weights(recipe: ModuleType, tmp_path: Path) -> None:
    for seed in (0, 1):
        recipe.make_tiny_model(tmp_path / str(seed), steps=0, seed=seed, vocab_size=1024, threads=1)
    first, second = (file_digests(tmp_path / str(seed)) for seed in (0, 1))
    assert first["model.safetensors"] != second["model.safetensors"]


def test_held_out_text_is_not_trained_on(texts: list[str]) -> None:
    training, held_out = split_documents(texts)
    assert len(held_out) > 100 and len(training) > 10 * len(held_out)
    assert not set(training) & set(held_out)
    documents = training_documents(training[:50], seed=0)
    plain = {next(documents).text for _ in range(2000)}
    assert not plain & set(held_out)


def test_prose() -> None:
    assert prose("Return the\n  number of items that are left.") == ""  # indented: no paragraph
    assert prose("Return the\nnumber of items that are left.\n\n>>> f(1)\n2") == (
        "Return the number of items that are left."
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"heads": 0, "layers": -1}, ["--layers -1", "--heads 0"]),
        ({"hidden_size": 100, "kv_heads": 3}, ["--hidden-size 100", "--kv-heads 3"]),
        ({"hidden_size": 12}, ["--hidden-size 12"]),
    ],
)
def test_shape_faults(changes: dict[str, int], expected: list[str]) -> None:
    faults = shape_faults("llama", Shape(**changes))
    assert [" ".join(fault.what.split()[:2]) for fault in faults] == expected


def test_families_with_a_fixed_number_of_key_heads() -> None:
    assert shape_faults("mistral", Shape(kv_heads=2)) == []
    assert "--kv-heads 2" in shape_faults("falcon", Shape(kv_heads=2))[0].what
    assert "--kv-heads 1" in shape_faults("gpt_neox", Shape(kv_heads=1))[0].what
