"""recipes/data/digits.py: what it makes, and that it makes it once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPES, recipe_environment

from llm_recipes.digits_task import INSTRUCTION, answer, without_order

SMALL = ("--train", "50", "--test", "30", "--tiny-steps", "2")


def digits(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / "data" / "digits.py"), *map(str, arguments)]
    return subprocess.run(
        command, env=recipe_environment(), capture_output=True, text=True, timeout=100
    )


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "it's; digits ü"
    done = digits("--output", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "50 items in" in done.stderr and "30 others in" in done.stderr
    return folder


def test_both_files_ask_the_same_of_other_digits(made: Path) -> None:
    train, test = rows(made / "digits-train.jsonl"), rows(made / "digits-test.jsonl")
    assert len(train) == 50 and len(test) == 30
    for row in [*train, *test]:
        assert row["instruction"] == INSTRUCTION
        assert row["output"] == answer(row["input"]) and len(row["input"]) == 5
    tuned, asked = ({without_order(row["input"]) for row in side} for side in (train, test))
    assert not tuned & asked
    record = json.loads((made / "run.json").read_bytes())
    assert record["status"] == "complete" and record["recipe"] == "data/digits"
    assert record["data"]["rows"] == 50
    # sft.py knows the form by itself.
    from llm_recipes.dataset_formats import open_source, read_examples
    from llm_recipes.examples import DataOptions

    path = str(made / "digits-train.jsonl")
    found = read_examples(open_source(path), DataOptions(path), print)
    assert found.format == "alpaca" and found.examples[0].response == train[0]["output"]


def test_the_same_again_is_nothing_to_do(made: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.iterdir()}
    again = digits("--output", made, *SMALL)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}
    other = digits("--output", made, *SMALL, "--seed", "1")
    assert other.returncode == 2 and "--overwrite" in other.stderr
    # What was changed by hand is not taken for what was made.
    with (made / "digits-test.jsonl").open("a") as file:
        file.write("\n")
    changed = digits("--output", made, *SMALL)
    assert changed.returncode == 2 and "--overwrite" in changed.stderr
    replaced = digits("--output", made, *SMALL, "--overwrite", "true")
    assert replaced.returncode == 0
    for name in ("digits-train.jsonl", "digits-test.jsonl"):
        assert (made / name).read_bytes() == before[made / name][1]  # the same bytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"--train": 0, "--seed": -1}, ("--train 0 is not possible", "--seed -1 is not possible")),
        ({"--test": 90000, "--tiny-steps": 0}, ("there are no 90,000 test items",)),
    ],
)
def test_what_can_not_be(tmp_path: Path, options: dict[str, Any], said: tuple[str, ...]) -> None:
    words = [word for option in options.items() for word in option]
    done = digits("--output", tmp_path / "out", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(text in done.stderr for text in said)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = digits("--output", tmp_path, "--overwrite", "true", *SMALL)
    assert done.returncode == 2 and "choose another --output" in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"
