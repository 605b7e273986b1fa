"""Stop all ranks of a training run after the same step, in time, and say why.

    from llm_recipes.stop_together import StopWatch

A rank that is told to stop can't simply leave: the others would wait for it in the next collective
until they time out. So the wish of each rank goes along with the numbers that the ranks add up in
every step anyway, and all of them see the sum.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from llm_recipes import stop_signals
from llm_recipes.ranks import is_first_process

REASONS = ("told to stop", "the time limit is near", "interrupted by Ctrl-C")
TOLD, TIME_LIMIT, CTRL_C = range(3)
SAVES_AHEAD = 2.0  # times the longest save: what leaving in time needs
# A rank that was told to leave and has made no step for so long waits for one that is gone.
LOST_SECONDS, LOST_STEPS = 60.0, 10.0


class StopWatch:
    """Knows whether this rank should stop, and how long a save takes.

    stop_before: seconds before the job's time limit to stop at, where nothing says so earlier; 0:
    never by itself.
    """

    def __init__(self, stop_before: float) -> None:
        self.stop_before = stop_before
        self.longest_save_s = 0.0
        self.longest_step_s = 0.0
        self._warned = False
        self._interrupted = False
        self._previous: Any = None
        self._heard = time.monotonic()
        self._busy = False
        self._ended = threading.Event()

    def __enter__(self) -> StopWatch:
        stop_signals.listen()
        self._previous = signal.signal(signal.SIGINT, self._interrupt)
        threading.Thread(target=self._look_after, name="stop-watch", daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()
        signal.signal(signal.SIGINT, self._previous)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """However long this takes, the rank is not lost."""
        self._busy = True
        try:
            yield
        finally:
            self._heard = time.monotonic()
            self._busy = False

    def wishes(self) -> list[float]:
        """One number a reason: 1 if this rank wishes to stop for it; asked for in every step."""
        self._heard = time.monotonic()
        left = stop_signals.seconds_left()
        needed = max(self.stop_before, SAVES_AHEAD * self.longest_save_s)
        late = left is not None and self.stop_before > 0 and left - self.longest_step_s < needed
        return [float(stop_signals.stop_requested()), float(late), float(self._interrupted)]

    def saved(self, seconds: float) -> str | None:
        """Take note of a save; returns a warning, once, if the time to leave is too short."""
        self.longest_save_s = max(self.longest_save_s, seconds)
        lead = self.lead()
        if lead is None or self._warned or lead >= SAVES_AHEAD * self.longest_save_s:
            return None
        self._warned = True
        wanted = int(SAVES_AHEAD * self.longest_save_s) + 1
        return (
            f"warning: saving took {self.longest_save_s:.0f} s, and a warning comes {lead:.0f} s "
            f"before the end: too short to be sure. Submit with llm-run --stop-before={wanted}"
        )

    def lead(self) -> float | None:
        """Seconds between being told and the end of the job; None outside of jobs with a limit."""
        if stop_signals.deadline() is None:
            return None
        text = os.environ.get("LLM_STOP_BEFORE", "")
        told = float(text) if text.isdigit() else 0.0
        return max(self.stop_before, told)

    def _look_after(self) -> None:
        """Leave where another rank has died and this one waits for it in a collective.

        torchrun then sends a SIGTERM, which this program only remembers, and kills much later.
        """
        while not self._ended.wait(1.0):
            limit = max(LOST_SECONDS, LOST_STEPS * self.longest_step_s)
            is_busy = self._busy  # before the time: `saving` sets both in the other order
            waiting = time.monotonic() - self._heard
            if stop_signals.terminated() and not is_busy and waiting > limit:
                print(f"no step for {waiting:.0f} s after SIGTERM: leaving", file=sys.stderr)
                sys.stderr.flush()
                os._exit(128 + signal.SIGTERM)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:  # the second time it is meant
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        self._interrupted = True
        if is_first_process():
            print("\nCtrl-C: saving after this step (again: at once)", file=sys.stderr, flush=True)
