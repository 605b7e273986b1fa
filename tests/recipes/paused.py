"""A recipe that stops itself in the middle of its work, for tests that interrupt it there.

    python paused.py MODULE:FUNCTION COUNT SCRIPT OPTION...

Before the COUNT-th call of a function the process stops (SIGSTOP), however fast the machine is. A
test waits for that and sends a signal, which is there when the process goes on (SIGCONT).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def paused(function: str, count: int, command: Sequence[object]) -> list[str]:
    """The command `[..., SCRIPT, OPTION...]` of a recipe, whose process stops at the call."""
    words = [str(word) for word in command]
    script = next(place for place, word in enumerate(words) if word.endswith(".py"))
    return [*words[:script], __file__, function, str(count), *words[script:]]


def wait_for_pause(process: subprocess.Popen[Any], seconds: float = 120) -> int:
    """Wait until a process, or one that it has started, has stopped itself; returns which."""
    end = time.monotonic() + seconds
    while True:
        for pid in _family(process.pid):
            if _status(pid).get("State", "").startswith("T"):
                return pid
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.02)


def go_on(pid: int, number: int, seconds: float = 60) -> None:
    """Let a stopped process go on once this signal waits for it, whoever sends it."""
    end = time.monotonic() + seconds
    try:
        while not int(_status(pid)["ShdPnd"], 16) >> (number - 1) & 1:
            assert time.monotonic() < end, "the signal did not come"
            time.sleep(0.02)
    finally:
        os.kill(pid, signal.SIGCONT)


def _family(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, task.read_text().split())
    return [pid, *(one for child in children for one in _family(child))]


def _status(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _pause_in(function: str, count: int) -> None:
    module, _, names = function.partition(":")
    *outer, name = names.split(".")
    owner: Any = functools.reduce(getattr, outer, importlib.import_module(module))
    plain, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(plain)
    def pausing(*arguments: Any, **named: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGSTOP)
        return plain(*arguments, **named)

    setattr(owner, name, pausing)


if __name__ == "__main__":
    _pause_in(sys.argv[1], int(sys.argv[2]))
    sys.argv = sys.argv[3:]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
