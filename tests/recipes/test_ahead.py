"""Reading ahead and writing behind: the same items in the same order, errors in their place."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from llm_recipes.ahead import Behind, ahead


def numbers(made: list[int], stop: int, error: bool = False) -> Iterator[int]:
    for number in range(stop):
        made.append(number)
        yield number
    if error:
        raise OSError("cut off")


def test_one_item_ahead_in_another_thread() -> None:
    made: list[int] = []
    items = ahead(numbers(made, 5))
    assert next(items) == 0
    assert list(items) == [1, 2, 3, 4] and made == [0, 1, 2, 3, 4]
    threads = list(ahead(threading.get_ident() for _ in range(2)))
    assert threading.get_ident() not in threads
    assert list(ahead(iter([]))) == [] and list(ahead(iter([None, 0]))) == [None, 0]


def test_no_more_than_one_item_ahead() -> None:
    made: list[int] = []
    for number in ahead(numbers(made, 50)):
        assert len(made) <= number + 2
        if number == 10:
            break
    assert len(made) <= 12


def test_errors_of_reading_come_after_what_was_read() -> None:
    seen = []
    with pytest.raises(OSError, match="cut off"):
        for number in ahead(numbers([], 3, error=True)):
            seen.append(number)
    assert seen == [0, 1, 2]


def test_writing_behind_is_in_order_and_done_at_the_end() -> None:
    written: list[int] = []
    with Behind() as behind:
        for number in range(20):
            behind.do(written.append, number)
    assert written == list(range(20))


def test_errors_of_writing_are_raised() -> None:
    def fail() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), Behind() as behind:
        behind.do(fail)
    with pytest.raises(OSError, match="no space"), Behind() as behind:
        behind.do(fail)
        behind.do(print)
    # The error that ends a block is not replaced by another.
    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.do(fail)
        raise KeyboardInterrupt
