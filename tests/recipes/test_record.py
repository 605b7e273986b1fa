"""The run record: what the environment says goes in, secrets do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from conftest import recipe_environment

from llm_recipes.errors import LLMError
from llm_recipes.record import (
    is_recorded,
    read_record,
    record_path,
    start_record,
    write_record,
)
from llm_recipes.run_secrets import without_secret


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
    whole = "schema recipe started finished status argv cwd launch config code image environment"
    parts = "host slurm model adapter data outputs results deterministic metrics"
    assert list(found) == [*whole.split(), *parts.split()]


def test_options_that_only_sound_secret_are_kept() -> None:
    assert without_secret("--max-new-tokens=5") == "--max-new-tokens=5"


def test_unreadable_record_is_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert read_record(tmp_path / "run.json") is None
    assert read_record(tmp_path / "nowhere.json") is None


def test_outputs_share_no_record() -> None:
    names = ("answers.jsonl", "answers.1", "answers.2", "answers.txt", "answers.json", ".jsonl.a")
    records = {record_path(Path("x") / name) for name in names}
    assert len(records) == len(names)
    assert record_path(Path("x/a.b.jsonl")) == Path("x/a.b.run.json")
    assert record_path(Path("x/a.txt")) == Path("x/a.txt.run.json")


def test_names_that_are_not_utf8_can_be_recorded(tmp_path: Path) -> None:
    name = b"mod\xe8le".decode("utf-8", "surrogateescape")
    write_record(tmp_path / "run.json", {"argv": [name, "ü"]}, "complete")
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["argv"] == [name, "ü"]


def test_a_record_has_its_end_once_it_is_written(tmp_path: Path) -> None:
    record = {"status": "running", "finished": None, "made_with": {}, "output_digest": "1"}
    with pytest.raises(LLMError, match="cannot write"):
        write_record(tmp_path / "nowhere" / "run.json", record, "complete")
    assert record["status"] == "running"
    file = tmp_path / "run.json"
    for status in ("interrupted", "complete"):
        assert not is_recorded(file, record)
        write_record(file, record, status)
    assert is_recorded(file, record)
    assert not is_recorded(file, {**record, "output_digest": "2"})


def test_a_record_loads_no_torch_where_no_gpu_is() -> None:
    code = (
        "import sys; from llm_recipes import record, run_environment; run_environment.GPU_DRIVERS = ()\n"
        "assert record.start_record('a/b', {}, 'a CPU')['host']['gpus'] == []\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=recipe_environment())
