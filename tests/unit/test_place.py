"""Where llm-run was started: by the processes above it, whatever stale variables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.place import find_place


def processes(root: Path, *commands: str, cgroup: str = "") -> str:
    """A /proc in which `self` runs `commands[0]`, its parent `commands[1]` and so on."""
    for number, command in enumerate(commands):
        folder = root / ("self" if number == 0 else str(100 + number))
        folder.mkdir(parents=True)
        parent = 101 + number if number + 1 < len(commands) else 0
        (folder / "stat").write_text(f"{100 + number} (a ) name) S {parent} 1 1 0")
        (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode())
        if command.startswith("slurmstepd"):
            (folder / "cmdline").write_text(command)
    (root / "self" / "cgroup").write_text(cgroup)
    return str(root)


STALE = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_PROCID": "0"}
STALE["SLURM_JOB_ID_HET_GROUP_1"] = "13"


@pytest.mark.parametrize(
    ("parents", "kind"),
    [
        (["slurmstepd: [12.batch]"], "batch"),
        (["bash", "slurmstepd: [12.0]"], "step"),
        (["bash", "slurmstepd: [12.interactive]"], "interactive"),
        (["slurmstepd: [13.0]"], "step"),  # the second part of a heterogeneous job
        (["bash", "salloc -N2 bash"], "allocation"),
        (["/usr/bin/salloc -N2 llm-run", "bash", "slurmstepd: [11.0]"], "allocation"),
        (["bash", "slurmstepd: [11.0]"], "allocation"),
        (["bash", "slurmstepd: [12.extern]"], "allocation"),
        (["bash", "sshd"], "allocation"),
    ],
)
def test_the_processes_above_decide(tmp_path: Path, parents: list[str], kind: str) -> None:
    place = find_place(STALE, processes(tmp_path, "python", *parents))
    assert (place.kind, place.job) == (kind, "12")


def test_without_a_job_nothing_is_looked_at() -> None:
    assert find_place({"SLURM_STEP_ID": "0"}, "/nonexistent").kind == "host"


@pytest.mark.parametrize(
    ("cgroup", "kind"),
    [
        ("0::/system.slice/slurmstepd.scope/job_12/step_0/user/task_0\n", "step"),
        ("4:freezer:/slurm/uid_5/job_12/step_batch\n", "batch"),
        ("4:freezer:/slurm/uid_5/job_12/step_interactive\n", "interactive"),
        ("4:freezer:/slurm/uid_5/job_11/step_0\n", "allocation"),
    ],
)
def test_cgroups_decide_where_processes_are_hidden(
    tmp_path: Path, cgroup: str, kind: str
) -> None:
    assert find_place(STALE, processes(tmp_path, "python", "bash", cgroup=cgroup)).kind == kind


@pytest.mark.parametrize(
    ("step", "kind"), [("0", "step"), ("4294967290", "interactive"), (None, "batch")]
)
def test_last_resort_is_the_task_that_slurm_started(
    tmp_path: Path, step: str | None, kind: str
) -> None:
    env = {"SLURM_JOB_ID": "12", "SLURM_TASK_PID": "101"}
    if step:
        env["SLURM_STEP_ID"] = step
    assert find_place(env, processes(tmp_path, "python", "bash")).kind == kind
