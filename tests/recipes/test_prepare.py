"""prepare.py as a user runs it: what it prints and writes, and what generate.py makes of that."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import RECIPES, recipe_environment

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from llm_recipes.cli import run_recipe
from llm_recipes.prompts import read_prompts

SCRIPT = RECIPES / "data" / "prepare.py"


@dataclass(frozen=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str


Prepare = Callable[..., Ran]


@pytest.fixture
def prepare(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Prepare:
    """prepare.py in this process: starting one takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "cache; ü"))
    spec = importlib.util.spec_from_file_location("recipe_prepare", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where its annotations are looked up
    spec.loader.exec_module(module)

    def run(*arguments: object, model: Path = model_folder) -> Ran:
        with pytest.raises(SystemExit) as caught:
            run_recipe(module.prepare_data, ["--model", str(model), *map(str, arguments)])
        return Ran(int(caught.value.code or 0), *capsys.readouterr())

    return run


def start(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """prepare.py as a user starts it."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**recipe_environment(), "LLM_CACHE_DIR": str(tmp_path / "cache; ü")},
    )


@pytest.fixture
def dolly(tmp_path: Path) -> Path:
    path = tmp_path / "it's; dolly ü.jsonl"
    rows = [
        {"instruction": f"Question {i}", "context": f"Passage {i}" * (i % 2), "response": f"A {i}"}
        for i in range(40)
    ]
    path.write_text("\n".join(json.dumps(row | {"category": "x"}) for row in rows))
    return path


def test_what_is_printed_and_written(
    prepare: Prepare, dolly: Path, tmp_path: Path, model_folder: Path
) -> None:
    options = ("--data", dolly, "--held-out", 0.1, "--output", "out ü", "--prompts", "held.jsonl")
    ran = start(tmp_path, "--model", model_folder, *options)
    assert ran.returncode == 0, ran.stderr
    for text in (
        "format dolly, prompt style chat",
        "40 examples in 40 contexts, 0 bad: 36 rows to train on, 4 held out",
        "0 examples cut off at 1,024 tokens, 0 dropped",
        "prepared data in ",
        "<s><user>Question 0\n<assistant>⟦A 0</s>⟧",
    ):
        assert text in ran.stdout
    assert "read as dolly" in ran.stderr
    out = tmp_path / "out ü"
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((out / "summary.json").read_bytes())
    assert (summary["train"], summary["held_out"]) == (36, 4)
    assert summary["options"]["held_out"] == 0.1
    record = json.loads((out / "run.json").read_bytes())
    assert (record["status"], record["data"]["rows"]) == ("complete", 40)
    # The held-out prompts are what generate.py reads, and its ids are those of training.
    lines = [json.loads(line) for line in (tmp_path / "held.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for line in lines:
        number = int(line["id"]) - 1
        assert line["prompt"] == f"Question {number}"
        assert line.get("input", "") == f"Passage {number}" * (number % 2)
        assert line["reference"] == f"A {number}"
    assert [p.id for p in read_prompts(None, str(tmp_path / "held.jsonl"))] == [
        line["id"] for line in lines
    ]
    again = prepare(*options)
    assert again.stdout == ran.stdout
    assert "prepared before" in again.stderr


def test_without_weights_and_with_a_base_model(
    prepare: Prepare, dolly: Path, tmp_path: Path, model_folder: Path
) -> None:
    base = tmp_path / "only a tokenizer"
    base.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        (base / name).write_bytes((model_folder / name).read_bytes())
    ran = prepare("--data", dolly, model=base)
    assert ran.returncode == 0, ran.stderr
    assert "prompt style alpaca" in ran.stdout
    assert "### Response:⟦A 0</s>⟧" in ran.stdout


def test_faults_of_the_command_line_together(prepare: Prepare) -> None:
    ran = prepare("--data", "nowhere.jsonl", "--held-out", 1, "--max-length", 0)
    assert ran.returncode == 2
    assert "--held-out 1.0 is not a share" in ran.stderr
    assert "--max-length 0 is not possible" in ran.stderr
    assert "Traceback" not in ran.stderr
    ran = prepare("--data", "x", "--held-out", 0, "--prompts", "p.jsonl")
    assert (ran.returncode, "--prompts needs a held-out part" in ran.stderr) == (2, True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "holds no examples"),
        ('{"instruction": "a", "response": ""}\n{', "line 2 is not JSON"),
        ('{"a": 1}', "none of those known"),
    ],
)
def test_bad_data_are_no_traceback(
    data: str, message: str, prepare: Prepare, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(data)
    ran = prepare("--data", "d.jsonl")
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    made = (tmp_path / "cache; ü").glob("prepared/*")
    assert not [path for path in made if path.suffix != ".lock"]


def test_models_and_data_that_are_not_there(
    prepare: Prepare, dolly: Path, tmp_path: Path, model_folder: Path
) -> None:
    ran = prepare("--data", dolly, model=Path("nowhere"))
    assert (ran.returncode, "nowhere does not exist" in ran.stderr) == (2, True)
    hub = ("--data", "databricks/databricks-dolly-15k")
    ran = start(tmp_path, "--model", model_folder, *hub)
    assert ran.returncode == 2
    assert "cannot find the data databricks/databricks-dolly-15k" in ran.stderr
    assert "llm-run hf download" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_documents_have_no_prompts(prepare: Prepare, tmp_path: Path) -> None:
    text = "\n<|endoftext|>\n".join(f"Text {i}" for i in range(30))
    (tmp_path / "d.txt").write_text(text)
    ran = prepare("--data", "d.txt", "--prompts", "p.jsonl")
    assert ran.returncode == 2
    assert "documents have no prompts" in ran.stderr
    assert "<s>⟦Text 0</s>⟧" in ran.stdout.replace("⟦ ", "⟦")
