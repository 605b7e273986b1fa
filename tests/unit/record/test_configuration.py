"""The recorded configuration, as the recipes read it again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from _llm.record.configuration import (
    as_yaml,
    config_file,
    redirected,
    secrets_in,
    working_directory,
)
from _llm.record.finding import GONE
from _llm.record.reading import Record

VALUES = [0, -3, 1.5, 1e-05, 2e20, -1.25e-300, True, None, "", "on", "1e-05", "null", "~",
          "a: b # c", "it's \"x\"; $HOME\n\ttwo", "ünï\u2028\x7f\x85\x00\ufeff", "\U0001f600",
          ["a", 1, [None]], {"k'": {"deep": [1.0]}}]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_yaml_reads_the_same_values(value: Any) -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load(config_file({"key": value}))["key"]
    assert found == value and type(found) is type(value)


def test_numbers_keep_their_type_for_pyyaml() -> None:
    assert as_yaml(1e-05) == "1.0e-05" and as_yaml(1e22) == "1.0e+22" and as_yaml(0.1) == "0.1"
    assert as_yaml(math.inf) == ".inf" and as_yaml(-math.inf) == "-.inf"
    assert json.loads(as_yaml({"a": [1e-05, "x"]})) == {"a": [1e-05, "x"]}


def record(**data: Any) -> Record:
    return Record("/runs/x.run.json", data, "sha256:0")


def test_outputs_go_to_the_new_folder_and_nothing_else_does() -> None:
    config = {"output": "../runs/base/", "model": "output", "cache": None, "log": None,
              "files": ["a/x.txt", "b/x.txt"], "connection": "~/c.env"}
    names = ["output", "cache", "log", "files", "connection", "missing"]
    made, paths = redirected(record(config=config, outputs=names), "/new", "/s")
    assert made["output"] == "/new/base" and made["model"] == "output" and made["log"] is None
    assert made["cache"] == "/s/cache"  # else it would find its own old answers
    assert len(set(made["files"])) == 2 and made["connection"] == "/new/c.env"
    assert set(paths) == {"/new/base", *made["files"], "/new/c.env"}
    assert config["output"] == "../runs/base/" and "missing" not in made
    assert redirected(record(config={"output": "."}), "/new", "")[0]["output"] == "/new/output"


def test_one_folder_becomes_the_new_folder_itself() -> None:
    data = {"config": {"output": "runs/base", "cache": None}, "outputs": ["output", "cache"]}
    made, paths = redirected(Record("/runs/base/run.json", data, ""), "/runs/base.replay-1", "/s")
    assert made == {"output": "/runs/base.replay-1", "cache": "/s/cache"}
    assert paths == ["/runs/base.replay-1"]


def test_the_recorded_folder_is_used_and_one_that_is_gone_is_named(tmp_path: Path) -> None:
    config: dict[str, Any] = {"model": "m", "files": ["m", "n"]}
    assert working_directory(record(cwd=str(tmp_path)), config, []) == (str(tmp_path), [])
    gone = record(cwd=str(tmp_path / "gone"), model={"path": "m", "resolved": "/x/m"})
    folder, findings = working_directory(gone, config, [])
    assert folder == str(Path.cwd()) and "is gone" in findings[0].text
    assert config == {"model": "/x/m", "files": ["/x/m", "n"]} and findings[0].state != GONE
    unknown = record(cwd=str(tmp_path / "gone"), data={"path": "d.jsonl"})
    assert working_directory(unknown, {}, [])[1][0].state == GONE


def test_a_hidden_secret_must_be_given_again() -> None:
    config = {"api_key": "***", "words": ["a", "***"], "model": "m", "data": "https://***@h/f",
              "url": "https://h/f?token=***&x=1", "prompt": "what is ***x***?"}
    (found,) = secrets_in(record(), dict(config), [])
    assert "api_key, words, data, url" in found.text and "--api-key VALUE" in found.fix
    given = ["--api-key=x", "--words", "y", "--data=z", "--url", "u"]
    assert secrets_in(record(), config, given) == []
    assert config == {"model": "m", "prompt": "what is ***x***?"}  # no recipe gets a stand-in


def test_a_record_says_itself_what_it_hides() -> None:
    config: dict[str, Any] = {"stop": "***", "key": {"a": "***"}}
    (found,) = secrets_in(record(config_hidden=["key", "gone", 7]), config, [])
    assert found.text == "the record hides the secret of key"
    assert config == {"stop": "***"}
    assert secrets_in(record(config_hidden=[]), config, []) == []
