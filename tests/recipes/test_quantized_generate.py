"""quantized/generate.py as a user runs it: as the transformers recipe, with GGUF's own options."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")

from conftest import RECIPES, recipe_environment
from paused import go_on, paused, wait_for_pause
from test_generate import TEXTS, files, rows
from test_generate import run as transformers_run

from llm_recipes.cli import run_recipe

SCRIPT = RECIPES / "quantized" / "generate.py"
# Both recipes are named generate.py.
_spec = importlib.util.spec_from_file_location("quantized_generate", SCRIPT)
assert _spec is not None and _spec.loader is not None
_recipe = importlib.util.module_from_spec(_spec)
sys.modules["quantized_generate"] = _recipe
_spec.loader.exec_module(_recipe)

EXACT = ["--kv-type", "f32", "--flash-attention", "off"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts; ü.txt"
    file.write_text("\n".join(TEXTS))
    return file


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        run_recipe(_recipe.generate, [str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_the_answers_are_those_of_the_transformers_recipe(
    tiny_gguf: Path, tiny_hf: Path, prompts: Path, tmp_path: Path
) -> None:
    options = ["--prompts", prompts, "--max-new-tokens", 9, "--temperature", 0.7, "--samples", 2]
    options += ["--prompt-style", "raw"]
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    exact = [*EXACT, "--threads", 1]
    assert run("--model", tiny_gguf, *options, "--output", ours, *exact) == 0
    assert transformers_run("--model", tiny_hf, *options, "--output", theirs) == 0
    keys = ("id", "sample", "prompt", "prompt_tokens", "completion_tokens", "finish_reason")
    assert [[row[key] for key in keys] for row in rows(ours)] == [
        [row[key] for key in keys] for row in rows(theirs)
    ]
    same = [
        a["completion"] == b["completion"] for a, b in zip(rows(ours), rows(theirs), strict=True)
    ]
    unlike = [a for a, equal in zip(rows(ours), same, strict=True) if not equal]
    assert all("\ufffd" in row["completion"] for row in unlike)  # bytes that are no character


def test_chats_are_those_of_training(tiny_hf: Path, tmp_path: Path) -> None:
    """The file carries the tokenizer: llama.cpp's own puts a space after each special token."""
    sys.path.insert(0, str(SCRIPT.parent))
    from convert import convert

    model = tmp_path / "carried.gguf"
    with pytest.raises(SystemExit) as end:
        arguments = ["--model", str(tiny_hf), "--output", str(model), "--type", "f32"]
        run_recipe(convert, [*arguments, "--check-tokens", "0"])
    assert end.value.code == 0
    asked = tmp_path / "asked.jsonl"
    texts = ["Hello", "  two spaces", "</s> is written", "ünïcode\n\nlines", "x "]
    asked.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    options = ["--prompts", asked, "--max-new-tokens", 6, "--system", "Be brief."]
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    assert run("--model", model, *options, "--output", ours, *EXACT) == 0
    assert transformers_run("--model", tiny_hf, *options, "--output", theirs) == 0
    assert rows(ours) == rows(theirs)


def test_the_record(tiny_gguf: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out's ü.jsonl"
    options = ["--prompts", prompts, "--max-new-tokens", 5, "--threads", 1, "--parallel", 2]
    assert run("--model", tiny_gguf, "--output", output, *options) == 0
    record = json.loads((tmp_path / "out's ü.run.json").read_text())
    assert (record["recipe"], record["status"]) == ("quantized/generate", "complete")
    assert record["model"]["dtype"] == "F32"
    assert record["model"]["cpu_kernels"].startswith("libggml-cpu-")
    metrics = record["metrics"]
    assert metrics["generated_tokens"] == sum(row["completion_tokens"] for row in rows(output))
    assert (metrics["parallel"], metrics["threads"], metrics["gpu_layers"]) == (2, 1, 0)
    assert metrics["rows_per_step"] == pytest.approx(2, abs=0.5)
    assert metrics["load_bytes"] == tiny_gguf.stat().st_size


def test_nothing_to_do_other_settings_and_free_ones(
    tiny_gguf: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.jsonl"
    options = ["--model", tiny_gguf, "--prompts", prompts, "--output", output]
    assert run(*options, "--max-new-tokens", 3) == 0
    before = output.read_bytes()
    assert run(*options, "--max-new-tokens", 3, "--parallel", 1, "--threads", 2) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run(*options, "--max-new-tokens", 3, "--kv-type", "q8_0") == 2
    assert "kv_type was 'f16' and is 'q8_0'" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert files(tmp_path) == {"a.jsonl", "a.run.json", prompts.name}


def test_quantized_caches_give_answers(tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("q8_0", "bf16"):
        assert (
            run(
                "--model",
                tiny_gguf,
                "--prompt",
                "x",
                "--kv-type",
                kind,
                "--context",
                64,
                "--threads",
                1,
            )
            == 0
        )
        out = capfd.readouterr().out
        assert json.loads(out)["completion_tokens"] > 0


def test_faults_are_said_together(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--threads", 0, "--parallel", -1, "--gpu-layers", -2, "--shares", "a", "--top-p", 2]
    wrong += ["--kv-type", "q8_0", "--flash-attention", "off"]
    assert run("--model", tiny_gguf, "--prompt", "x", *wrong) == 2
    error = capsys.readouterr().err
    for fault in (
        "--threads 0",
        "--parallel -1",
        "--gpu-layers -2",
        "--shares 'a'",
        "--top-p 2",
        "--kv-type q8_0",
    ):
        assert fault in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "no such.gguf", "--prompt", "x"], "cannot read the model"),
        (["--gpu-layers", "all", "--prompt", "x"], "--gpu-layers all cannot be"),
        (["--context", "4", "--prompt", "a longer prompt than that"], "is too long"),
        (["--kv-type", "q9", "--prompt", "x"], "kv_type"),
    ],
)
def test_wrong_input(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    given = options if "--model" in options else ["--model", tiny_gguf, *options]
    assert run(*given) == 2
    error = capsys.readouterr().err
    assert said in error.replace("-type", "_type") or said in error
    assert "Traceback" not in error


def test_damaged_files(tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:-100])
    assert run("--model", path, "--prompt", "x") == 2
    assert "is cut off" in capsys.readouterr().err
    path.write_bytes(b"GGML" + tiny_gguf.read_bytes()[4:])
    assert run("--model", path, "--prompt", "x") == 2
    assert "is no GGUF file" in capsys.readouterr().err


def test_a_model_larger_than_memory(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llm_recipes.gguf.placement.free_host_bytes", lambda: 10**6)
    assert run("--model", tiny_gguf, "--prompt", "x") == 2
    error = capsys.readouterr().err
    assert "does not fit into memory" in error
    assert "0.00 GB are free" in error


def test_ctrl_c_keeps_answers_and_the_same_command_goes_on(tiny_gguf: Path, tmp_path: Path) -> None:
    asked = tmp_path / "many.txt"
    asked.write_text("\n".join(f"prompt {number}" for number in range(400)))
    output = tmp_path / "answers.jsonl"
    command = [sys.executable, str(SCRIPT), "--model", str(tiny_gguf), "--prompts", str(asked)]
    command += ["--output", str(output), "--max-new-tokens", "60", "--parallel", "2"]
    command += ["--ignore-eos"]
    partial = output.with_name("answers.jsonl.partial")
    # In the middle of the third pair of answers: each takes 59 steps.
    stops = paused("llm_recipes.gguf.decoder:GgufDecoder._step", 150, command)
    with subprocess.Popen(stops, env=recipe_environment(), stderr=subprocess.PIPE) as process:
        pid = wait_for_pause(process)
        os.kill(pid, signal.SIGINT)
        go_on(pid, signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait(60) == 130
    assert "answers are kept: the same command goes on" in said
    assert partial.read_bytes().count(b"\n") == 1 + 4
    arguments = command[2:]
    arguments[arguments.index("--parallel") + 1] = "16"
    assert run(*arguments) == 0
    assert [row["id"] for row in rows(output)] == list(range(1, 401))


def test_a_conversation(tiny_gguf: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(tiny_gguf), "--chat"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "8"],
        input="Hello\nagain\n/reset\nx\n/quit\n",
        capture_output=True,
        text=True,
        timeout=120,
        env=recipe_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 3


def test_the_lowest_kernels_give_the_same_greedy_output(tiny_gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(tiny_gguf), "--prompt", "The import"]
    command += ["--max-new-tokens", "20", "--threads", "1", *EXACT]
    found: dict[str, tuple[str, str]] = {}
    for kernels in ("", "x64", "nonsense"):
        output = tmp_path / f"{kernels}.jsonl"
        done = subprocess.run(
            [*command, "--output", str(output)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**recipe_environment(), "LLM_CPU_KERNELS": kernels},
        )
        if kernels == "nonsense":
            assert done.returncode == 2
            assert "LLM_CPU_KERNELS=nonsense: this llama.cpp has no such kernels" in done.stderr
            assert "x64" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / f"{kernels}.run.json").read_text())
        found[kernels] = rows(output)[0]["completion"], record["model"]["cpu_kernels"]
    assert found["x64"] == (found[""][0], "libggml-cpu-x64.so")
    flags = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
    )
    if "avx2" in flags.split():
        assert found[""][1] not in ("libggml-cpu-x64.so", "libggml-cpu-sse42.so")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "--gpu-layers" in text.replace("_", "-")
    assert os.sep not in text.split("usage")[0]
