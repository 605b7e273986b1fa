"""Read while writing: another thread makes the next item while this one uses the last.

    from llm_recipes.ahead import ahead, Behind
    for block in ahead(blocks): ...
    with Behind() as behind: behind.do(file.write, block)

Reading, writing and checksums let other threads run, so that two CPUs share such a loop's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")
END = object()


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, of which the next is made while one is used; errors come in their place."""
    with ThreadPoolExecutor(1) as pool:
        following: Future[object] = pool.submit(next, items, END)
        while (item := following.result()) is not END:
            following = pool.submit(next, items, END)
            yield item  # type: ignore[misc]


class Behind:
    """Does one thing after another in a thread of its own, at most one behind its caller."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[object] | None = None

    def do(
        self, work: Callable[Arguments, object], *args: Arguments.args, **named: Arguments.kwargs
    ) -> None:
        """Begin with this when the work before is done.

        Raises:
            Exception: What the work before raised.
        """
        self.wait()
        self._last = self._pool.submit(work, *args, **named)

    def wait(self) -> None:
        """Until all is done.

        Raises:
            Exception: What the last work raised.
        """
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()
