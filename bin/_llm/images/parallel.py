"""Several downloads and checks at once, with progress for people and an end at Ctrl-C."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from _llm.errors import LLMError
from _llm.fetch import UnreachableError

T = TypeVar("T")
THREADS = 8
NAMES = 5
# How long threads may take to notice that they are to end; nobody waits longer for daemons.
PATIENCE_SECONDS = 2.0


class Failed(Generic[T]):
    """In place of a result: what went wrong."""

    def __init__(self, error: LLMError) -> None:
        self.error = error


def run_all(
    tasks: Sequence[Callable[[threading.Event], T]], title: str = "",
) -> list[T | Failed[T]]:
    """Run tasks in threads; return their results in order, an LLMError of one as Failed.

    Each task gets an event that is set when it should end. title: said at the start and counted
    along, "" for nothing. Other exceptions end everything and are raised.
    """
    results: dict[int, T | Failed[T]] = {}
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    for number in range(len(tasks)):
        waiting.put(number)

    def work() -> None:
        while not stop.is_set():
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results[number] = tasks[number](stop)
                ended.put(None)
            except LLMError as error:
                results[number] = Failed(error)
                ended.put(None)
            except BaseException as error:  # it belongs to the thread that waits
                ended.put(error)
                return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(THREADS, len(tasks)))]
    if title and tasks:
        print(f"image: {title}", flush=True)
    try:
        for thread in threads:
            thread.start()
        for count in range(1, len(tasks) + 1):
            error = _next(ended)
            if error:
                raise error
            if title and sys.stdout.isatty():
                print(f"\rimage: {count} of {len(tasks)}", end="\n" if count == len(tasks) else "",
                      flush=True)
    except BaseException:
        stop.set()
        until = time.monotonic() + PATIENCE_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        raise
    return [results[number] for number in range(len(tasks))]


def _next(ended: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    """The next task's end; waits in short pieces, so that Ctrl-C is noticed at once."""
    while True:
        try:
            return ended.get(timeout=0.5)
        except queue.Empty:
            continue


def together(errors: Sequence[LLMError], asked: int) -> LLMError:
    """One error for several files that can't be had: every one by its name, once a reason.

    Where a server can't be reached, the first names are enough.
    """
    if len(errors) == 1:
        return errors[0]
    reasons: dict[str, list[str]] = {}
    for error in errors:
        reasons.setdefault(error.why, []).append(error.what.removeprefix("cannot fetch "))
    silent = {error.why for error in errors if isinstance(error, UnreachableError)}
    for why in silent:
        more = len(reasons[why]) - NAMES
        if more > 1:
            reasons[why][NAMES:] = [f"and {more} more"]
    lines = [line for why, names in reasons.items() for line in (f"{why}:", *names)]
    fixes = list(dict.fromkeys(error.fix for error in errors))
    return LLMError(f"cannot fetch {len(errors)} of {asked} files", "\n       ".join(lines),
                    "\n".join(fixes))
