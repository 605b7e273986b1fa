"""How far a run is: a bar on a terminal, a plain line now and then in a job's log.

with Progress("generate", total=100, unit="answers") as progress:
    progress.advance()
"""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts up to a total on standard error; `done` are there from an earlier run."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._start, self._first = time.monotonic(), done
        self._last_line = self._start
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=f" {unit}", desc=name, leave=False)

    def advance(self, note: str = "") -> None:
        """One more is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(1)
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = (self.done - self._first) / (now - self._start)
            left = (self.total - self.done) / rate if rate else 0.0
            line = f"{self.name}: {self.done} of {self.total} {self.unit}, about {left:.0f} s left"
            print(f"{line}{', ' if note else ''}{note}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
