"""When a server should end: signals, the stop file, the job's time, nobody asking any more.

with stop_requests(margin_s=30) as stop:
    while not stop.reason():
        serve()
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from llm_recipes import stop_signals

CTRL_C, TIME_IS_OVER, ASKED = "Ctrl-C", "the job's time is nearly over", "asked to stop"
NAMES = {signal.SIGINT: CTRL_C, signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


@dataclass
class Stop:
    """margin_s: seconds before the job's end at which to begin. at_once: waste no more time."""

    margin_s: float
    signalled: str = ""
    at_once: bool = False

    def reason(self) -> str:
        """Why to end; empty while nothing says so."""
        if self.signalled:
            return self.signalled
        left = stop_signals.seconds_left()
        if left is not None and left < self.margin_s:
            return TIME_IS_OVER
        return ASKED if stop_signals.stop_requested() else ""

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """A signal. Schedulers repeat theirs; only a second Ctrl-C is impatience."""
        if number == signal.SIGINT and self.signalled:
            self.at_once = True
        self.signalled = self.signalled or NAMES[signal.Signals(number)]


@contextlib.contextmanager
def stop_requests(margin_s: float) -> Iterator[Stop]:
    """Take note of signals instead of ending by them, while the block runs."""
    stop = Stop(margin_s)
    # What was ignored stays so: `nohup`, and SIGINT of what a script starts in the background.
    heard = [number for number in NAMES if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop.take) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
