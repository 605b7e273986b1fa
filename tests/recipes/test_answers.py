"""The file of answers: what is there already is continued, refused or left alone."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from llm_recipes.answers import Answers, open_answers
from llm_recipes.errors import LLMError

MADE_WITH = {"seed": 0, "prompts": "digest"}
ORDER = [("1", 0), ("2", 0)]
CONTENTS = {"1": "a", "2": "b"}


def answer(number: int) -> dict[str, Any]:
    return {"id": number, "sample": 0, "prompt": CONTENTS[str(number)], "completion": "ü"}


def partial_file(path: Path, *numbers: int) -> Path:
    lines = [{"made_with": MADE_WITH}, *map(answer, numbers)]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return partial


def opened(path: Path, record: dict[str, Any] | None = None) -> Any:
    return open_answers(path, MADE_WITH, CONTENTS, record, overwrite=False)


def record_of(path: Path) -> dict[str, Any]:
    return {"made_with": MADE_WITH, "output_digest": sha256(path.read_bytes()).hexdigest()}


def test_the_record_is_kept_before_the_file_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    kept: list[str] = []

    def keep(digest: str) -> None:
        assert not path.exists()
        assert path.with_name("a.jsonl.partial").exists()
        kept.append(digest)

    with opened(path) as answers:
        answers.append(answer(2))
        answers.append(answer(1))
        answers.finish(ORDER, keep)
    assert kept == [sha256(path.read_bytes()).hexdigest()]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [answer(1), answer(2)]
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def finish(answers: Answers) -> None:
    answers.finish(ORDER, lambda digest: None)


def test_a_device_is_no_place_for_answers() -> None:
    """/dev/full has no end: looking for earlier answers in it would fill the memory."""
    with pytest.raises(LLMError, match="no place for a file"), opened(Path("/dev/full")):
        pass


@pytest.mark.parametrize("recorded", [False, True])
def test_a_file_with_its_partial_file_is_finished(recorded: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    partial = partial_file(path, 2, 1)
    path.write_text("".join(json.dumps(answer(n), ensure_ascii=False) + "\n" for n in (1, 2)))
    before = path.read_bytes()
    with opened(path, record_of(path) if recorded else None) as answers:
        assert not answers.finished
        assert set(answers.done) == set(ORDER)
        finish(answers)
    assert path.read_bytes() == before
    assert not partial.exists()


def test_a_finished_file_has_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    partial_file(path, 2, 1)
    with opened(path) as answers:
        finish(answers)
    with opened(path, record_of(path)) as answers:
        assert answers.finished
        assert set(answers.done) == set(ORDER)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("text", ["mine", "", '{"id": 3, "sample": 0, "completion": "mine"}\n'])
def test_a_foreign_file_is_refused_although_there_is_a_partial_file(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    partial = partial_file(path, 2, 1)
    before = partial.read_bytes()
    path.write_text(text)
    with pytest.raises(LLMError, match="is there already"), opened(path):
        pass
    assert path.read_text() == text
    assert partial.read_bytes() == before


@pytest.mark.parametrize("method", ["read_bytes", "stat"])
def test_closed_folders_are_said_to_be(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As root every folder is open; Path's methods raise what the system says to others.
    def refuse(path: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(LLMError, match=r"cannot read .*a\.jsonl"), opened(tmp_path / "a.jsonl"):
        pass
