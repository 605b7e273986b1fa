"""The run record: what the environment says goes in, secrets do not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("torch")

from conftest import recipe_environment

from llm_recipes import content_digest
from llm_recipes import record as records
from llm_recipes.errors import LLMError
from llm_recipes.record import (
    add_input,
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
    whole = "schema recipe started finished status argv cwd launch config config_hidden code image"
    parts = "environment host slurm model adapter data outputs results deterministic metrics"
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
        "import sys; from llm_recipes import record, run_environment\n"
        "run_environment.GPU_DRIVERS = ()\n"
        "assert record.start_record('a/b', {}, 'a CPU')['host']['gpus'] == []\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=recipe_environment())


def test_inputs_have_their_content_when_a_run_is_complete(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}")
    (tmp_path / "other.jsonl").write_text("[]")
    digest = "sha256:" + hashlib.sha256(b"{}").hexdigest()
    record = start_record("a/b", {}, "a CPU")
    add_input(record, "data", tmp_path / "data.jsonl", "data.jsonl")
    add_input(record, "model", [tmp_path / "data.jsonl", tmp_path / "other.jsonl"])
    add_input(record, "adapter", None)
    record["data"] = {"rows": 1}
    record["model"] = {"path": "what the recipe says"}
    write_record(tmp_path / "run.json", record, "complete")
    found = read_record(tmp_path / "run.json")
    assert found is not None
    path = str(tmp_path / "data.jsonl")
    assert found["data"] == {"rows": 1, "path": "data.jsonl", "resolved": path, "content": digest}
    assert found["model"]["path"] == "what the recipe says"
    assert found["model"]["content"][0] == digest
    assert found["adapter"] == {}


@pytest.mark.parametrize("name", ["-", "owner/name", "/gone/data.jsonl"])
def test_what_is_no_file_has_no_content(tmp_path: Path, name: str) -> None:
    record = start_record("a/b", {}, "a CPU")
    add_input(record, "data", name)
    write_record(tmp_path / "run.json", record, "complete")
    missing = {"content": None, "content_missing": "it is no file or folder here"}
    assert record["data"] == {"path": name, "resolved": None, **missing}


def test_addresses_of_inputs_show_no_password(tmp_path: Path) -> None:
    record = start_record("a/b", {}, "a CPU")
    add_input(record, "data", "https://me:abc@host/f.jsonl?sig=abc")
    add_input(record, "adapter", tmp_path, ["s3://me:abc@host/x"])
    record["model"] = {"path": "https://me:abc@host/m", "files": ["ftp://me:abc@h"]}
    write_record(tmp_path / "run.json", record, "complete")
    assert "abc" not in (tmp_path / "run.json").read_text()
    assert record["data"]["path"] == "https://***@host/f.jsonl?sig=***"


def test_only_a_complete_run_waits_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(content_digest, "content_digest", lambda path: go_on.wait(60) and "x")
    monkeypatch.setattr(records, "WAIT_S", 0.01)
    monkeypatch.setattr(records, "QUIET_S", 0.001)
    waits: list[float] = []
    wait = content_digest.Reading.wait

    def noted(self: content_digest.Reading, seconds: float) -> object:
        waits.append(seconds)
        return wait(self, seconds)

    monkeypatch.setattr(content_digest.Reading, "wait", noted)
    record = start_record("a/b", {}, "a CPU")
    add_input(record, "data", tmp_path)
    for status in ("running", "interrupted", "failed", "complete"):
        assert not capsys.readouterr().err
        write_record(tmp_path / "run.json", record, status)
        assert record["data"]["content"] is None
        assert record["data"]["content_missing"] == "it was not read to its end"
    assert waits[:3] == [0.0] * 3
    assert waits[3] <= 0.01
    assert capsys.readouterr().err == (
        "reading the data for the run record, once and 0.01 s at most\n"
    )
    go_on.set()
    monkeypatch.setattr(records, "WAIT_S", 60)
    write_record(tmp_path / "run.json", record, "complete")
    assert record["data"] == {"path": str(tmp_path), "resolved": str(tmp_path), "content": "x"}


def test_of_several_processes_the_first_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    record = start_record("a/b", {}, "a CPU")
    add_input(record, "data", tmp_path)
    assert record.inputs["data"].reading is None
    assert record.inputs["data"].paths == (tmp_path,)


def test_results_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "a'; b.jsonl").write_text("1")
    record = start_record("a/b", {}, "a CPU", ("output", "prompts"), deterministic=True)
    name = "scores/a'; b.jsonl"
    for names in ([name, "gone"], ["scores", "gone"], [name]):
        write_record(tmp_path / "run.json", record, "complete", results=names)
        assert record["results"] == {name: hashlib.sha256(b"1").hexdigest(), "gone": None}
    assert record["outputs"] == ["output", "prompts"]
    assert record["deterministic"] is True


def test_results_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run makes is what the next one reads, which may be 140 GB."""
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(content_digest, "FRESH_NS", -1)
    monkeypatch.setattr(records, "SAID_BYTES", 3)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    found = records.file_hashes(folder, ["config.json"])
    assert not capsys.readouterr().err
    (folder / "model.safetensors").write_text("12")
    found = records.file_hashes(folder, ["config.json", "model.safetensors"])
    assert "of results for their hashes" in capsys.readouterr().err
    monkeypatch.setattr(content_digest, "file_sha256", lambda path: "read again")
    assert records.file_hashes(folder, found) == found
    lines = "".join(f"{digest}  {name}\0" for name, digest in sorted(found.items()))
    whole = hashlib.sha256(lines.encode()).hexdigest()
    assert content_digest.content_digest(folder) == f"sha256:{whole}"
