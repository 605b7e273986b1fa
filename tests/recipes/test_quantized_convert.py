"""recipes/quantized/convert.py, as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES, recipe_environment
from paused import go_on, paused, wait_for_pause
from safetensors.torch import load_file, save_file
from test_merge import make_adapter

from llm_recipes.errors import LLMError
from llm_recipes.gguf import agreement
from llm_recipes.gguf.file import gguf_digest, read_gguf
from llm_recipes.record import record_path

pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
SCRIPT = RECIPES / "quantized" / "convert.py"
Convert = Callable[..., None]


@pytest.fixture(scope="module")
def convert() -> Convert:
    spec = importlib.util.spec_from_file_location("convert_recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module.convert


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def start(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=300,
        env=recipe_environment(),
        **options,
    )


def record_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.with_name(f"{path.name}.run.json").read_text())
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def peaked(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is sure of what comes next: rounding its weights turns no near ties."""
    folder = shutil.copytree(tiny_hf, tmp_path_factory.mktemp("models") / "peaked")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= 0.002
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].roll(7, 0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_converts_once(
    tiny_hf: Path,
    tiny_gguf: Path,
    tmp_path: Path,
    convert: Convert,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "a {ftype}'s; ü.gguf"
    done = start("--model", tiny_hf, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "GGUF in" in done.stdout and "F32" in done.stdout
    assert "likeliest token is the same for 100.00% of 512 tokens" in done.stderr
    assert "INFO" not in done.stderr and "Traceback" not in done.stderr
    assert names(tmp_path) == [output.name, f"{output.name}.run.json"]
    file, whole = read_gguf(output), read_gguf(tiny_gguf)
    assert file.tensors == whole.tensors and file.name == tiny_hf.name
    size = whole.tensor_bytes
    assert output.read_bytes()[-size:] == tiny_gguf.read_bytes()[-size:]
    record = record_of(output)
    assert (record["recipe"], record["status"]) == ("quantized/convert", "complete")
    assert record["output_digest"] == gguf_digest(file)
    assert record["metrics"]["agreement"]["logprob_difference"] < 1e-3
    kinds = {text.split(":")[0] for text in record["metrics"]["token_differences"]}
    assert kinds <= agreement.EDGE_TEXTS.keys()
    convert(output, str(tiny_hf), check_tokens=0)
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(LLMError, match="is there already"):
        convert(output, str(tiny_hf), type="f16")
    assert record_of(output) == record


def test_other_types(peaked: Path, tmp_path: Path, convert: Convert) -> None:
    output = tmp_path / "tiny.gguf"
    for kind in ("f16", "q8_0"):
        convert(output, str(peaked), type=kind, overwrite=True, check_tokens=200)
        assert read_gguf(output).file_type == kind.upper()
        found = record_of(output)["metrics"]["agreement"]
        assert found["limit"] == {"f16": 0.99, "q8_0": 0.95}[kind] <= found["same_but_ties"]
        assert found["tokens"] == 200 and found["logprob_difference"] > 1e-5


def test_auto_is_what_the_weights_have(peaked: Path, tmp_path: Path, convert: Convert) -> None:
    folder = shutil.copytree(peaked, tmp_path / "bf16")
    narrow = {n: w.bfloat16() for n, w in load_file(folder / "model.safetensors").items()}
    save_file(narrow, folder / "model.safetensors", metadata={"format": "pt"})
    text = tmp_path / "text.txt"
    text.write_text("The river flows through the city. " * 40)
    convert(tmp_path / "a.gguf", str(folder), check_tokens=100, check_text=str(text))
    assert read_gguf(tmp_path / "a.gguf").file_type == "BF16"
    assert record_of(tmp_path / "a.gguf")["metrics"]["agreement"]["tokens"] == 100


def test_base_and_adapter(peaked: Path, tmp_path: Path, convert: Convert) -> None:
    adapter = make_adapter(tmp_path / 'my "lora"', peaked)
    out = tmp_path / "out"
    out.mkdir()
    convert(out / "tuned.gguf", adapter=str(adapter), check_tokens=200)
    record = record_of(out / "tuned.gguf")
    assert record["metrics"]["agreement"]["same_top"] >= 0.99
    assert record["model"]["adapter"] == str(adapter)
    convert(out / "plain.gguf", str(peaked), check_tokens=0)
    tuned, plain = (read_gguf(out / f"{name}.gguf") for name in ("tuned", "plain"))
    assert gguf_digest(tuned) != gguf_digest(plain) and tuned.tensors == plain.tensors
    assert tuned.name == adapter.name
    files = [f"{name}.gguf{ending}" for name in ("plain", "tuned") for ending in ("", ".run.json")]
    assert names(out) == files
    other = shutil.copytree(peaked, tmp_path / "other")
    change_config(other, num_hidden_layers=1)
    with pytest.raises(LLMError, match="is no adapter of"):
        convert(out / "other.gguf", str(other), str(adapter))
    assert names(out) == files


def test_an_adapter_in_f32_is_not_rounded_to_the_base(
    peaked: Path, tmp_path: Path, convert: Convert
) -> None:
    from gguf import GGUFReader

    base = shutil.copytree(peaked, tmp_path / "bf16")
    narrow = {n: w.bfloat16() for n, w in load_file(base / "model.safetensors").items()}
    save_file(narrow, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(tmp_path / "lora", base)
    output = tmp_path / "tuned.gguf"
    convert(output, adapter=str(adapter), type="f32", check_tokens=100)
    assert record_of(output)["metrics"]["agreement"]["logprob_difference"] < 1e-3
    [data] = [t.data for t in GGUFReader(output).tensors if t.name == "blk.0.ffn_up.weight"]
    weights = torch.from_numpy(data.copy())
    assert (weights.bfloat16().float() != weights).float().mean() > 0.5


def change_config(folder: Path, **changes: object) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changes}))


def test_a_gguf_that_answers_otherwise_is_kept_aside(
    tiny_hf: Path, tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = agreement.transformers_scores
    monkeypatch.setattr(agreement, "transformers_scores", lambda *a: right(*a)[::-1])
    output = tmp_path / "tiny.gguf"
    with pytest.raises(LLMError, match="does not answer as transformers does") as error:
        convert(output, str(tiny_hf), type="f16", check_tokens=512)
    assert "at least 99%" in error.value.why and "tiny.disagrees.gguf" in error.value.fix
    assert names(tmp_path) == ["tiny.disagrees.gguf", "tiny.disagrees.gguf.run.json"]
    assert record_of(tmp_path / "tiny.disagrees.gguf")["status"] == "failed"
    convert(output, str(tiny_hf), type="f16", accept_differences=True)
    assert record_of(output)["status"] == "complete"


def test_other_tokens_are_found_before_weights_are_read(
    tiny_hf: Path, tmp_path: Path, convert: Convert
) -> None:
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "out").mkdir()
    with pytest.raises(LLMError, match="would not make the tokens") as error:
        convert(tmp_path / "out" / "tiny.gguf", str(folder))
    assert "prose: 'The mean of two" in error.value.why
    assert names(tmp_path / "out") == []


def test_no_memory_to_compare(
    tiny_hf: Path,
    tmp_path: Path,
    convert: Convert,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(agreement, "free_host_bytes", lambda: 10**6)
    convert(tmp_path / "tiny.gguf", str(tiny_hf))
    assert "not compared with transformers: it takes" in capsys.readouterr().err
    assert "GB are free" in record_of(tmp_path / "tiny.gguf")["metrics"]["not_compared"]


def test_all_faults_at_once(tiny_hf: Path, tmp_path: Path, convert: Convert) -> None:
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    quantized = {"quant_method": "awq"}
    change_config(folder, architectures=["NoneForCausalLM"], quantization_config=quantized)
    with pytest.raises(ExceptionGroup) as error:
        convert(tmp_path / "a.gguf", str(folder), pre_tokenizer="qwen3")
    said = "\n".join(map(str, error.value.exceptions))
    for words in ("NoneForCausalLM can't be", "quantized already, by awq", "qwen3 is not known"):
        assert words in said
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("out", "is a folder"), ("a.bin", "does not end in .gguf")],
)
def test_outputs_that_can_not_be(
    name: str, words: str, tiny_hf: Path, tmp_path: Path, convert: Convert
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(LLMError) as error:
        convert(tmp_path / name, str(tiny_hf))
    assert words in str(error.value)
    assert names(tmp_path) == ["out"]


def test_a_file_of_somebody_else(tiny_hf: Path, tmp_path: Path, convert: Convert) -> None:
    output = tmp_path / "a.gguf"
    output.write_text("mine")
    with pytest.raises(LLMError, match="is there already"):
        convert(output, str(tiny_hf))
    assert output.read_text() == "mine"


def test_weights_that_were_cut_off(tiny_hf: Path, tmp_path: Path, convert: Convert) -> None:
    folder = shutil.copytree(tiny_hf, tmp_path / "model")
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(10000)
    with pytest.raises(LLMError, match="is cut off or damaged"):
        convert(tmp_path / "a.gguf", str(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(tiny_hf: Path, tmp_path: Path, convert: Convert) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(LLMError, match="no space left to write") as error:
            convert(disk / "a.gguf", str(tiny_hf))
        assert "are needed" in error.value.why
        with pytest.MonkeyPatch.context() as patch:  # others fill it meanwhile
            patch.setattr("llm_recipes.made_folder.check_space", lambda *_: None)
            with pytest.raises(LLMError, match="no space left to write"):
                convert(disk / "a.gguf", str(tiny_hf))
        assert names(disk) == []
        subprocess.run(["mount", "-o", "remount,ro,size=64m", str(disk)], check=True)
        with pytest.raises(LLMError, match="cannot write"):
            convert(disk / "a.gguf", str(tiny_hf))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c(
    tiny_hf: Path, tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def interrupted(*_: object) -> None:
        seen.append(names(tmp_path))
        raise KeyboardInterrupt

    for place in ("transformers_scores", "gguf_scores"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(agreement, place, interrupted)
            convert(tmp_path / "a.gguf", str(tiny_hf))
        assert names(tmp_path) == []
    assert seen == [[".a.gguf.partial"]] * 2


def test_terminated(tiny_hf: Path, tmp_path: Path) -> None:
    """Stopped while the models read: the longest part, after the weights were written."""
    arguments = ["--model", tiny_hf, "--output", tmp_path / "a.gguf", "--check-tokens", "40000"]
    process = subprocess.Popen(
        paused("transformers:LlamaForCausalLM.forward", 20, command(*arguments)),
        stderr=subprocess.PIPE,
        text=True,
        env=recipe_environment(),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("comparing"):
            break
    pid = wait_for_pause(process)
    there = names(tmp_path)
    process.send_signal(signal.SIGTERM)
    go_on(pid, signal.SIGTERM)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 143, rest
    assert "Traceback" not in rest
    assert there == [".a.gguf.partial"] and names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder(tiny_hf: Path, tmp_path: Path, convert: Convert) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(LLMError, match="cannot write"):
        convert(folder / "a.gguf", str(tiny_hf))


def test_torch_is_left_as_it_was(tiny_hf: Path, tmp_path: Path, convert: Convert) -> None:
    convert(tmp_path / "a.gguf", str(tiny_hf), check_tokens=0)
    assert not torch.is_inference_mode_enabled()
    metrics = record_of(tmp_path / "a.gguf")["metrics"]
    assert metrics["bytes"] and not {"agreement", "not_compared"} & metrics.keys()


def test_what_was_not_compared_is_not_called_the_same(
    tiny_hf: Path, tmp_path: Path, convert: Convert, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new folder; ü" / "a.gguf"
    convert(output, str(tiny_hf), check_tokens=0)
    convert(output, str(tiny_hf))
    said = capsys.readouterr().err
    assert "nothing to do" in said and "comparing" in said
    assert record_of(output)["metrics"]["agreement"]["same_top"] > 0.99
    convert(output, str(tiny_hf))
    said = capsys.readouterr().err
    assert "nothing to do" in said and "note:" not in said
    assert "comparing" not in said
    record = record_of(output)
    record["metrics"]["agreement"]["same_but_ties"] = 0.5
    record_path(output).write_text(json.dumps(record))
    convert(output, str(tiny_hf))
    assert "only 50.00% of its likeliest tokens" in capsys.readouterr().err
