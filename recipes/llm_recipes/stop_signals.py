"""Leave in time: has the job been asked to stop, when does it end, and is there more to do?

    from llm_recipes.stop_signals import deadline, declare_unfinished, stop_requested

    while step < steps:
        train_one_step()
        if stop_requested():
            save_checkpoint()
            declare_unfinished()      # `llm-run --requeue` puts the job back into the queue
            break

A request comes as the stop file that `llm-run --requeue` writes before the time limit, or as a
SIGTERM, with which Slurm announces a preemption or `scancel`. Neither may come at all: a node can
die, and a preemption can be at once. What saves a run is its periodic checkpoint; this only makes
the last one newer. Standard library only, and no Slurm in the image.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType

# sysexits.h, EX_TEMPFAIL. `sys.exit(UNFINISHED)` says the same as declare_unfinished(), where the
# exit status reaches llm-run: torchrun replaces it by 1.
UNFINISHED = 75
# Seconds between two looks at the stop file, which lies on a shared file system.
LOOK_SECONDS = 1.0

_terminated = False
_installed = False
_found = False
_next_look = 0.0


def stop_requested() -> bool:
    """Say whether this program should save and leave; cheap enough for every step.

    The first call installs a handler for SIGTERM, unless the program has one of its own. On several
    ranks the answers may differ for a moment: let one of them decide for all.
    """
    global _found, _next_look
    _install_handler()
    if _found or _terminated:
        return True
    now = time.monotonic()
    if now >= _next_look:
        _next_look = now + LOOK_SECONDS
        path = os.environ.get("LLM_STOP_FILE", "")
        _found = path != "" and os.path.exists(path)
    return _found


def terminated() -> bool:
    """Whether a SIGTERM came."""
    return _terminated


def listen() -> None:
    """Take note of SIGTERM from now on, in place of whatever it did before.

    For programs that save after the step they are in: `run_recipe` would end them at once.
    """
    global _installed
    _installed = True
    signal.signal(signal.SIGTERM, _remember)


def deadline() -> float | None:
    """When Slurm will end this job, in seconds since 1970; None without a limit that is known."""
    # Newer Slurms say it themselves, also in jobs without --requeue.
    for name in ("LLM_DEADLINE", "SLURM_JOB_END_TIME"):
        try:
            return float(os.environ[name])
        except (KeyError, ValueError):
            continue
    return None


def seconds_left() -> float | None:
    """How long this job still has, in seconds, 0 at least; None without a limit that is known."""
    end = deadline()
    return None if end is None else max(0.0, end - time.time())


def declare_unfinished() -> None:
    """Say that the run is not finished, so that `llm-run --requeue` starts it again.

    Call it after the checkpoint is safe. Without `--requeue` it does nothing.
    """
    path = os.environ.get("LLM_UNFINISHED_FILE")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.flush()
            os.fsync(file.fileno())


def declare_finished() -> None:
    """Take back what `declare_unfinished` said."""
    path = os.environ.get("LLM_UNFINISHED_FILE")
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)


def restarts() -> int:
    """How often Slurm has started this job again: 0 the first time, and outside of jobs."""
    text = os.environ.get("LLM_RESTARTS") or os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdigit() else 0


def _install_handler() -> None:
    global _installed
    if _installed or threading.current_thread() is not threading.main_thread():
        return
    _installed = True
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _remember)


def _remember(number: int, frame: FrameType | None) -> None:
    global _terminated
    _terminated = True
