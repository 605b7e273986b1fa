"""Records as users name them, and files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from _llm.errors import LLMError
from _llm.record import reading
from _llm.record.reading import find_record, inputs, normalised, plain, read_record


def test_a_record_is_found_by_its_folder_its_output_and_itself(
    record_file: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in (record_file, run_folder, run_folder / "answers.jsonl"):
        assert find_record(str(given)) == str(record_file)
    monkeypatch.chdir(run_folder)
    assert find_record("answers.jsonl") == str(record_file)
    (run_folder / "run.json").write_text("{}")
    assert find_record(".") == str(run_folder / "run.json")
    (run_folder / "a.txt.run.json").write_text("{}")
    assert find_record("a.txt") == str(run_folder / "a.txt.run.json")
    (run_folder / "kept.json").write_text("{}")
    assert find_record("kept.json") == str(run_folder / "kept.json")


@pytest.mark.parametrize(("given", "wanted"), [
    ("nowhere/run.json", "there is no run record nowhere/run.json"),
    ("nowhere", "there is no file nowhere"),
    ("prompts.txt", "there is no run record of prompts.txt"),
    ("empty", "has no run record"),
    ("many", "has 2 records"),
])
def test_where_there_is_none_it_is_said(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, given: str, wanted: str
) -> None:
    (run_folder / "empty").mkdir()
    (run_folder / "many").mkdir()
    for name in ("a.run.json", "b.run.json"):
        (run_folder / "many" / name).touch()
    monkeypatch.chdir(run_folder)
    with pytest.raises(LLMError, match=wanted) as caught:
        find_record(given)
    assert caught.value.why and caught.value.fix


@pytest.mark.parametrize(("content", "wanted"), [
    (b"", "it is empty"),
    (b'{"schema": 1, "recipe": "a/b", "conf', "cut off"),
    (b"\xff\xfe\x00", "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b"[1]", "a list"),
    (b"7", "one value"),
    (b'{"name": "package.json"}', "some other program's JSON"),
    (b'{"schema": "1", "recipe": "a/b"}', "no version"),
    (b'{"schema": true, "recipe": "a/b"}', "no version"),
    (b'{"schema": 1, "recipe": ["a"]}', "no recipe's name"),
    (b'{"schema": 1, "recipe": "../../etc/passwd"}', "no recipe's name"),
    (b'{"schema": 1, "recipe": "a b; rm"}', "no recipe's name"),
])
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes, wanted: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(LLMError, match="is no run record") as caught:
        read_record(str(path))
    assert wanted in caught.value.why
    assert "\n" not in caught.value.why


def test_a_later_version_a_huge_file_and_a_closed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"schema": 2, "recipe": "a/b"}')
    with pytest.raises(LLMError, match="has schema version 2"):
        read_record(str(path))
    monkeypatch.setattr(reading, "LARGEST_BYTES", 10)
    with pytest.raises(LLMError, match="too large"):
        read_record(str(path))
    with pytest.raises(LLMError, match="can't be read"):
        read_record(str(tmp_path))


def test_fields_of_any_type_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for junk in (None, 1, "x", [], [[]], {"a": {}}):
        parts = dict.fromkeys((*reading.PARTS, "config", "outputs", "launch", "results"), junk)
        path.write_text(json.dumps({"schema": 1, "recipe": "a/b", **parts}))
        record = read_record(str(path))
        assert inputs(record) == []
        assert normalised(record)["code"]["commit"] is None
        assert reading.recipe_file(record) == ("recipes/a/b.py", "")
        assert reading.output_names(record) == []


def test_inputs_with_one_and_with_several_files(record_file: Path, data: dict[str, Any]) -> None:
    data["model"] = {"path": ["a", "b"], "resolved": ["/x/a", "/x/b"],
                     "content": ["sha256:1", None]}
    record_file.write_text(json.dumps(data))
    found = inputs(read_record(str(record_file)))
    assert found[:2] == [("model", "a", "/x/a", "sha256:1"), ("model", "b", "/x/b", "")]
    assert [one[0] for one in found] == ["model", "model", "data"]


def test_nothing_in_a_record_moves_the_cursor() -> None:
    assert plain("a\x1b[2Jb\nok: c\u202e\udcff") == r"a\x1b[2Jb\nok: c\u202e\udcff"
    assert plain("ünï 'x'; \U0001f600") == "ünï 'x'; \U0001f600"


def test_older_records_are_read(record_file: Path, data: dict[str, Any]) -> None:
    for name in ("cwd", "launch", "environment", "outputs", "results", "deterministic", "adapter"):
        del data[name]
    data["image"] = {"name": "llm", "variant": "cpu", "digest": "0123456789ab"}
    record_file.write_text(json.dumps(data))
    record = read_record(str(record_file))
    assert reading.output_names(record) == ["output"]
    assert normalised(record)["image"]["inputs"] is None
    assert normalised(record)["results"] == {} and record.path == os.fspath(record_file)
