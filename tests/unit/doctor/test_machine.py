"""The machine and its Apptainer, some of them played by scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.doctor import machine
from _llm.doctor.finding import FAIL, OK, WARN, Finding
from _llm.settings import load_settings


def runtime(home: Path, env: dict[str, str], program: str) -> dict[str, Finding]:
    env = {**env, "LLM_APPTAINER": program}
    found = machine.runtime(env, str(home), load_settings(env, str(home)))
    return {finding.check: finding for finding in found}


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("apptainer version 1.4.5", OK),
        ("apptainer version 1.0.3", WARN),
        ("apptainer version 1.4.5-2.el9", OK),
        ("", FAIL),
    ],
)
def test_versions(home: Path, env: dict[str, str], tmp_path: Path, said: str, status: str) -> None:
    program = tmp_path / "apptainer"
    program.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    program.chmod(0o755)
    found = runtime(home, env, str(program))
    assert found["apptainer"].status == status
    assert {"user namespaces", "fuse", "subordinate ids"} < set(found)
    assert found["subordinate ids"].status == OK  # a note, whatever it says


def test_none(home: Path, env: dict[str, str]) -> None:
    found = runtime(home, env, "/no/such/apptainer")["apptainer"]
    assert found.status == FAIL and found.fix


def test_memory_of_a_job() -> None:
    assert machine.memory_limit({"SLURM_MEM_PER_NODE": "64"}) == 64 << 20
    assert machine.memory_limit({"SLURM_MEM_PER_NODE": str(1 << 40)}, "/nonexistent") == 0
    assert machine.memory_limit({"SLURM_MEM_PER_CPU": "2", "SLURM_CPUS_ON_NODE": "3"}) == 6 << 20
    assert machine.memory_limit({}, "/nonexistent") == 0


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/job/step", "job/memory.max"),
        ("9:memory:/job/step", "memory/job/memory.limit_in_bytes"),
    ],
)
def test_memory_of_a_control_group(tmp_path: Path, line: str, file: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"1:cpu:/\n{line}\n", encoding="utf-8")
    limit = tmp_path / "sys/fs/cgroup" / file
    limit.parent.mkdir(parents=True)
    limit.write_text(f"{64 << 20}\n", encoding="utf-8")
    (limit.parent / "step").mkdir()
    (limit.parent / "step" / limit.name).write_text("max\n", encoding="utf-8")
    assert machine.memory_limit({}, str(tmp_path)) == 64 << 20


def test_this_machine() -> None:
    found = machine.machine({})
    assert [f.status for f in found] == [OK, OK]
    assert "Linux" in found[0].text and "CPU" in found[0].measured


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (500, "0 KiB"),
        (3 << 20, "3 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (1023 << 30, "1023 GiB"),
        (2 << 40, "2 TiB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert machine.gib(size) == text
