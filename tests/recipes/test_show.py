"""show.py: a question, what it is about and the answer, by number or id."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPES, recipe_environment

from llm_recipes.cli import run_recipe

TATQA = Path(__file__).resolve().parents[3] / "shared/data/tatqa/tatqa_dataset_dev.json"
SCRIPT = RECIPES / "data" / "show.py"


@dataclass(frozen=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str


Show = Callable[..., Ran]


@pytest.fixture
def show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Show:
    """show.py in this process."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("recipe_show", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where its annotations are looked up
    spec.loader.exec_module(module)

    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as caught:
            run_recipe(module.show, [str(argument) for argument in arguments])
        return Ran(int(caught.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two contexts of two questions; the last has no answer, as in unlabelled test files."""

    def question(uid: str, **values: Any) -> dict[str, Any]:
        return {"uid": uid, "question": f"Question {uid}?", **values}

    first = [
        question("q0", answer=["a", "b"], scale=""),
        question("q1", answer=-5, scale="million"),
    ]
    table = [["", "2019"], ["Long name | x", "1"]]
    contexts = [
        {"table": {"uid": "t0", "table": table}, "paragraphs": [], "questions": first},
        {
            "table": {"uid": "t1", "table": table},
            "paragraphs": [{"uid": "p", "order": 1, "text": "A paragraph."}],
            "questions": [question("q2", answer="3", scale=""), question("q3")],
        },
    ]
    path = tmp_path / "it's; ü.json"
    path.write_text(json.dumps(contexts))
    return path


def test_by_number_and_id_in_the_order_asked(data: Path) -> None:
    asked = ("--sid", "2-3", "--sid", "1", "--uid", "q1", "--uid", "q0")
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--data", str(data), *asked],
        capture_output=True,
        text=True,
        timeout=120,
        env=recipe_environment(),
    )
    assert ran.returncode == 0, ran.stderr
    heads = [line for line in ran.stdout.splitlines() if line.startswith("== ")]
    assert [head.split()[2] for head in heads] == ["2,", "3,", "1,", "0,"]
    parts = ran.stdout.split("== sid ")
    assert "| Long name \\| x | 1    |" in parts[1]
    assert "A paragraph.\n\nQuestion: Question q2?" in parts[1]
    assert parts[1].rstrip().endswith("-- answer\n3")
    assert parts[2].rstrip().endswith("-- answer\n(the file has none)")
    assert parts[3].rstrip().endswith("-- answer\n-5 million")
    assert parts[4].rstrip().endswith("-- answer\na; b")


def test_as_the_model_sees_it(show: Show, data: Path, model_folder: Path) -> None:
    ran = show("--data", data, "--sid", 1, "--model", model_folder)
    assert ran.returncode == 0, ran.stderr
    assert "-- the model sees (chat, " in ran.stdout
    assert "<s><user>Answer the question" in ran.stdout
    assert "Question: Question q1?\n<assistant>\n\n-- answer\n-5 million" in ran.stdout


def test_faults_together(show: Show, data: Path) -> None:
    ran = show("--data", data, "--sid", 4, "--sid", "0-9", "--uid", "nobody")
    assert ran.returncode == 2
    assert "--sid 4 is out of range" in ran.stderr
    assert "--sid 0-9 is out of range" in ran.stderr
    assert "has 4 questions: 0 to 3" in ran.stderr
    assert "--uid nobody is not there" in ran.stderr
    ran = show("--data", data, *(f"--sid={text}" for text in ("x", "5-3", "-1", "1.5", "9" * 30)))
    assert ran.returncode == 2
    assert ran.stderr.count("names no question") == 5
    ran = show("--data", data)
    assert (ran.returncode, "nothing to show" in ran.stderr) == (2, True)


def test_other_formats(show: Show, tmp_path: Path) -> None:
    chat = [{"role": r, "content": f"{r} says"} for r in ("system", "user", "assistant")]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": chat}) + "\n{\n")
    ran = show("--data", "c.jsonl", "--sid", 0)
    assert "-- system\nsystem says\n\n-- user\nuser says\n\n-- answer\nassistant says" in ran.stdout
    assert "1 bad rows are not counted, such as: c.jsonl, line 2 is not JSON" in ran.stderr
    (tmp_path / "d.csv").write_text("frage,antwort\nWas?,Das\n")
    columns = ("--prompt-column", "frage", "--response-column", "antwort")
    ran = show("--data", "d.csv", "--sid", 0, *columns)
    assert "-- prompt\nWas?\n\n-- answer\nDas" in ran.stdout
    (tmp_path / "t.txt").write_text("Some text")
    assert "\nSome text\n" in show("--data", "t.txt", "--sid", 0).stdout


def test_a_table_that_is_not_ours_is_left_alone(show: Show, tmp_path: Path) -> None:
    text = "|a|\n|b|c|\n|\nend"
    row = {"instruction": "x", "context": text, "response": "y"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    assert f"-- input\n{text}\n" in show("--data", "d.jsonl", "--sid", 0).stdout


def test_the_published_numbers(show: Show) -> None:
    if not TATQA.is_file():
        pytest.skip(f"{TATQA.name} is not here")
    ran = show("--data", TATQA, "--sid", 100, "--sid", 1667)
    assert "How many expenses segments  in 2018 were below $100 million?" in ran.stdout
    assert "has 1,668 questions: 0 to 1667" in show("--data", TATQA, "--sid", 1668).stderr
