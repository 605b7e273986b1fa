"""The run record: what the environment says goes in, secrets do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from llm_recipes.record import read_record, record_path, start_record, without_secret, write_record


def test_environment_goes_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLM_IMAGE_DIGEST", "3f9c2a")
    monkeypatch.setenv("LLM_CODE_DIRTY", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setattr(sys, "argv", ["x.py", "--hub-token=abc", "--top-p=1", "hf_verysecret"])
    record = start_record("a/b", {"output": Path("x"), "seed": 3}, "a CPU")
    file = record_path(tmp_path / "answers.jsonl")
    write_record(file, record, "complete")
    found = json.loads(file.read_text())
    assert file.name == "answers.run.json"
    assert found["image"]["digest"] == "3f9c2a"
    assert found["code"]["dirty"] is True
    assert found["slurm"]["job"] == "42"
    assert found["config"] == {"output": "x", "seed": 3}
    assert found["argv"] == ["x.py", "--hub-token=***", "--top-p=1", "***"]
    assert "verysecret" not in file.read_text()
    assert found == read_record(file)
    whole = "schema recipe started finished status argv config code image host slurm model data"
    assert set(found) == {*whole.split(), "metrics"}


def test_options_that_only_sound_secret_are_kept() -> None:
    assert without_secret("--max-new-tokens=5") == "--max-new-tokens=5"


def test_unreadable_record_is_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert read_record(tmp_path / "run.json") is None
    assert read_record(tmp_path / "nowhere.json") is None
