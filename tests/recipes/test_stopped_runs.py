"""A run that is stopped near its end, or while it overwrites: the same command sets it right."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("transformers")

import stop_points
from conftest import recipe_environment
from test_generate import files, prompts, rows, run  # noqa: F401 - a fixture

from llm_recipes.cli import Terminated

Options = list[object]


@pytest.fixture
def options(model_folder: Path, prompts: Path, tmp_path: Path) -> Options:  # noqa: F811
    given: Options = ["--model", model_folder, "--prompts", prompts, "--max-new-tokens", 4]
    return [*given, "--output", tmp_path / "a.jsonl"]


@pytest.fixture
def whole(model_folder: Path, prompts: Path, tmp_path: Path) -> bytes:  # noqa: F811
    """The output of a run that nothing stops."""
    output = tmp_path / "elsewhere" / "whole.jsonl"
    output.parent.mkdir()
    given = ["--model", model_folder, "--prompts", prompts, "--max-new-tokens", 4]
    assert run(*given, "--output", output) == 0
    return output.read_bytes()


def terminate() -> NoReturn:
    raise Terminated


def check_ended(folder: Path, whole: bytes, measured: bool) -> None:
    """The file and its record are there and belong together, and nothing else is."""
    assert (folder / "a.jsonl").read_bytes() == whole
    record = json.loads((folder / "a.run.json").read_text())
    assert record["status"] == "complete"
    assert record["output_digest"] == sha256(whole).hexdigest()
    assert record["metrics"]["answers"] == 4
    if measured:  # the record of the run that was stopped
        assert record["metrics"]["generated_tokens"] > 0
    assert {name for name in files(folder) if name.startswith("a.")} == {"a.jsonl", "a.run.json"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("file", "when"), stop_points.POINTS)
def test_terminated_near_the_end(
    file: str,
    when: str,
    overwrite: bool,
    options: Options,
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more: Options = ["--overwrite"] if overwrite else []
    if overwrite:
        assert run(*options, "--temperature", 1) == 0
        assert (tmp_path / "a.jsonl").read_bytes() != whole
    with monkeypatch.context() as patch:
        stop_points.stop_at(file, when, terminate, patch.setattr)
        assert run(*options, *more) == 143
    assert run(*options, *more) == 0
    check_ended(tmp_path, whole, measured=when == "after")
    capsys.readouterr()
    assert run(*options) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "when"), stop_points.POINTS)
def test_killed_near_the_end(
    file: str, when: str, options: Options, whole: bytes, tmp_path: Path
) -> None:
    command = [sys.executable, stop_points.__file__, file, when, *map(str, options)]
    done = subprocess.run(command, env=recipe_environment(), capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert run(*options) == 0
    check_ended(tmp_path, whole, measured=when == "after")


def interrupt(*arguments: object, **options: object) -> NoReturn:
    raise KeyboardInterrupt


def run_out_of_space(*arguments: object, **options: object) -> NoReturn:
    from llm_recipes.errors import LLMError

    raise LLMError("no space left")


@pytest.mark.parametrize(("stop", "status"), [(interrupt, 130), (run_out_of_space, 2)])
def test_a_stopped_overwrite_leaves_the_old_file_its_record(
    stop: Callable[..., NoReturn],
    status: int,
    options: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llm_recipes import answering

    assert run(*options) == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("a.jsonl", "a.run.json")}
    with monkeypatch.context() as patch:
        patch.setattr(answering, "_complete", stop)
        assert run(*options, "--overwrite", "--temperature", 1) == status
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    capsys.readouterr()
    assert run(*options) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_outputs_side_by_side_keep_their_records(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [tmp_path / name for name in ("a.jsonl", "a.txt", "a.1", "a.2")]
    for seed in (1, 2):
        for number, output in enumerate(outputs):
            settings = ["--temperature", 1, "--seed", number, "--output", output]
            assert run(*options[:-2], *settings) == 0
            assert len(rows(output)) == 4
        assert capsys.readouterr().err.count("nothing to do") == (seed - 1) * len(outputs)


def test_a_second_run_is_measured_although_the_answers_are_the_same(
    options: Options, tmp_path: Path
) -> None:
    found: list[dict[str, Any]] = []
    for more in ([], ["--overwrite", "--batch-size", 1]):
        assert run(*options, *more) == 0
        found.append(json.loads((tmp_path / "a.run.json").read_text()))
    assert found[0]["output_digest"] == found[1]["output_digest"]
    assert found[1]["config"]["batch_size"] == 1
