"""Signals to the program alone: the shell around it, and the record of its process id."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from _llm.stop_signal import PATIENT, patient_command, recorded_command, send

TRAPPED = "trap 'echo got USR1; exit 75' USR1; trap 'echo got TERM; exit 3' TERM; echo ready; "
TRAPPED += "while :; do sleep 0.05; done"


def begin(command: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "LLM_UNFINISHED_FILE": str(tmp_path / "unfinished"), "SLURM_JOB_ID": "7"}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert program.stdout and program.stdout.readline() == "ready\n"
    # The shell around the program sets its traps while the program starts already.
    while command[2] == PATIENT and not catches(program.pid, signal.SIGUSR2):
        assert program.poll() is None
        time.sleep(0.01)
    return program


def catches(pid: int, number: signal.Signals) -> bool:
    """Say whether a process has a handler for a signal: proc(5), status, SigCgt."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [mask] = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 3)])
def test_the_shell_hands_signals_on_and_understands_75(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    program = begin(patient_command(["sh", "-c", TRAPPED]), tmp_path)
    program.send_signal(number)
    out, _ = program.communicate(timeout=10)
    assert out == f"got {number.name[3:]}\n" and program.returncode == status
    assert (tmp_path / "unfinished").exists() == (status == 0)


def test_the_shell_is_no_hindrance() -> None:
    done = subprocess.run(
        patient_command(["sh", "-c", 'cat; printf "<%s>" "$@"; exit 7', "sh", "a b", "'", "$x"]),
        input="in\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("in\n<a b><'><$x>", 7)


def test_only_the_recorded_program_of_this_job_gets_it(tmp_path: Path) -> None:
    local = str(tmp_path / "it's ü")
    command = recorded_command(["sh", "-c", TRAPPED], local, {"SLURM_JOB_ID": "7"})
    program = begin(patient_command(command), tmp_path)
    assert send("USR1", local, "8", to_workers=False) == 0
    assert send("USR1", local, "7", to_workers=False) == 1
    assert program.communicate(timeout=10)[0] == "got USR1\n"
    assert send("USR1", local, "7", to_workers=False) == 0


def test_workers_get_it_instead_of_the_agent(tmp_path: Path) -> None:
    local = str(tmp_path)
    agent = ["sh", "-c", 'sh -c "$1" & wait', "agent", TRAPPED]
    command = recorded_command(agent, local, {"SLURM_JOB_ID": "7"})
    program = begin(command, tmp_path)
    time.sleep(0.1)
    assert send("USR1", local, "7", to_workers=True) == 1
    assert program.communicate(timeout=10)[0] == "got USR1\n"
