"""Follow a job: print its logs as they grow, until it is over.

llm-run --submit --follow -- python train.py
"""

from __future__ import annotations

import os
import sys
import time

from _llm.errors import LLMError
from _llm.slurm import has_ended, log_stem, show_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

# Seconds between two looks at the files, and two questions to Slurm: at first, and in the end.
LOOK, ASK, ASK_SELDOM = 0.3, 2.0, 10.0


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


def follow(job: str, folder: str, env: Mapping[str, str]) -> int:
    """Print a job's logs until it is over; return its exit status.

    folder: where the logs of the program are. Ctrl-C ends the following, not the job.
    """
    logs: dict[str, Log] = {}
    state: dict[str, str] = {}
    asked, pause = 0.0, ASK
    said = ""
    try:
        while True:
            if time.monotonic() - asked > pause:
                state, asked = _state(job, env) or state, time.monotonic()
                before, said = said, _say_state(job, state, said)
                # A job may wait for days; the controller has others to answer.
                pause = ASK if said != before else min(pause * 1.2, ASK_SELDOM)
            over = _is_over(state)
            stem = os.path.join(folder, log_stem(state.get("JobName", ""), job))
            starts = int(state.get("Restarts", "0")) + 1
            for path in [state.get("StdOut", ""), *(f"{stem}.r{n}.log" for n in range(starts))]:
                if path and path not in logs:
                    logs[path] = Log(path)
            for log in logs.values():
                log.print_more()
            if over:
                break
            time.sleep(LOOK)
    except KeyboardInterrupt:
        print(f"\nllm-run: job {job} runs on; to end it: scancel {job}", file=sys.stderr)
        return 130
    return _exit_status(state)


def _state(job: str, env: Mapping[str, str]) -> dict[str, str] | None:
    """Return what Slurm says of the job, None while the controller is away."""
    try:
        # Slurm forgets a job minutes after its end (MinJobAge).
        return show_job(job, env) or {"JobState": "FORGOTTEN"}
    except LLMError:
        return None


def _is_over(state: Mapping[str, str]) -> bool:
    return state.get("JobState") == "FORGOTTEN" or (bool(state) and has_ended(state))


def _say_state(job: str, state: Mapping[str, str], before: str) -> str:
    """Say what has changed; return what was said."""
    now = state.get("JobState", "")
    if now == "PENDING":
        now += f" ({state.get('Reason', '')})"
    if now != before:
        print(f"llm-run: job {job} is {now.lower()}", file=sys.stderr, flush=True)
    return now


def _exit_status(state: Mapping[str, str]) -> int:
    code, _, number = state.get("ExitCode", "0:0").partition(":")
    if state.get("JobState") == "COMPLETED":
        return 0
    status = int(code) if code.isdigit() else 0
    return status or (128 + int(number) if number.isdigit() and int(number) else 1)
