"""Follow a job: print its logs as they grow, until it is over.

llm-run --submit --follow -- python train.py
"""

from __future__ import annotations

import os
import sys
import time

from _llm.errors import LLMError
from _llm.slurm import show_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

# Seconds between two looks at the files, and two questions to Slurm.
LOOK, ASK = 0.3, 3.0


class Log:
    """One file that grows and may not exist yet."""

    __slots__ = ("file", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.file: BinaryIO | None = None

    def print_more(self) -> None:
        """Print what has come since the last time."""
        try:
            if self.file is None:
                self.file = open(self.path, "rb")  # noqa: SIM115 - stays open while it is followed
        except OSError:
            return
        while chunk := self.file.read(65536):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def follow(job: str, folder: str, log_name: str, env: Mapping[str, str]) -> int:
    """Print a job's logs until it is over; return its exit status.

    log_name: as sbatch has it, with %x and %j. Ctrl-C ends the following, not the job.
    """
    logs: dict[str, Log] = {}
    state: dict[str, str] = {}
    asked = 0.0
    said = ""
    try:
        while True:
            over = _is_over(state)
            if not over and time.monotonic() - asked > ASK:
                state, asked = _state(job, env), time.monotonic()
                over = _is_over(state)
                said = _say_state(job, state, said)
            stem = log_name[:-4].replace("%x", state.get("JobName", "")).replace("%j", job)
            names = [stem, *(f"{stem}.r{n}" for n in range(int(state.get("Restarts", "0")) + 1))]
            for name in names:
                path = os.path.join(folder, name + ".log")
                logs.setdefault(path, Log(path)).print_more()
            if over:
                break
            time.sleep(LOOK)
    except KeyboardInterrupt:
        print(f"\nllm-run: job {job} runs on; to end it: scancel {job}", file=sys.stderr)
        return 130
    return _exit_status(job, state)


def _state(job: str, env: Mapping[str, str]) -> dict[str, str]:
    try:
        return show_job(job, env)
    except LLMError:
        # A controller that restarts; the job goes on without it.
        return {"JobState": "UNKNOWN"}


def _is_over(state: Mapping[str, str]) -> bool:
    going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "UNKNOWN")
    return bool(state) and state.get("JobState", "") not in going


def _say_state(job: str, state: dict[str, str], before: str) -> str:
    if not state:
        # Slurm forgets a job minutes after its end (MinJobAge).
        state["JobState"] = "FORGOTTEN"
    now = state["JobState"]
    if now == "PENDING":
        now += f" ({state.get('Reason', '')})"
    if now not in (before, "UNKNOWN"):
        print(f"llm-run: job {job} is {now.lower()}", file=sys.stderr, flush=True)
    return now


def _exit_status(job: str, state: Mapping[str, str]) -> int:
    code, _, number = state.get("ExitCode", "0:0").partition(":")
    if state.get("JobState") == "COMPLETED":
        return 0
    status = int(code) if code.isdigit() else 0
    return status or (128 + int(number) if number.isdigit() and int(number) else 1)
