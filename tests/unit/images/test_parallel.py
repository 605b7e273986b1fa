"""Several tasks at once: order, all faults, an end when one must not go on."""

from __future__ import annotations

import threading

import pytest

from _llm.errors import LLMError
from _llm.fetch import UnreachableError
from _llm.images.parallel import Failed, run_all, together


def test_results_keep_their_order_and_faults_their_place() -> None:
    def task(number: int) -> int | None:
        if number % 7 == 3:
            raise LLMError(f"cannot fetch {number}", "gone", "lock")
        return None if number == 5 else number

    results = run_all([lambda stop, n=n: task(n) for n in range(40)])
    assert len(results) == 40
    for number, result in enumerate(results):
        if number % 7 == 3:
            assert isinstance(result, Failed) and result.error.what == f"cannot fetch {number}"
        else:
            assert result == (None if number == 5 else number)
    assert run_all([]) == []


def test_ctrl_c_tells_the_others_to_stop() -> None:
    stopped = threading.Event()
    started = threading.Barrier(2)

    def waits(stop: threading.Event) -> None:
        started.wait(20)
        if stop.wait(20):
            stopped.set()

    def interrupted(stop: threading.Event) -> None:
        started.wait(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([waits, interrupted])
    assert stopped.wait(20)  # nobody waits long for a slow thread, so it may come later


def test_several_faults_are_one_message() -> None:
    one = LLMError("cannot fetch a", "404", "lock")
    assert together([one], 5) is one
    both = together([one, LLMError("cannot fetch b", "wrong hash", "lock")], 5)
    assert both.what == "cannot fetch 2 of 5 files"
    assert both.why.split("\n       ") == ["404:", "a", "wrong hash:", "b"]
    assert both.fix == "lock"


def test_a_silent_server_is_one_message_with_a_few_names() -> None:
    silent = [UnreachableError(f"cannot fetch {n}", "mirror: Connection refused", "network")
              for n in range(30)]
    error = together([*silent, LLMError("cannot fetch z", "404", "lock")], 40)
    assert error.what == "cannot fetch 31 of 40 files"
    assert error.why.split("\n       ") == ["mirror: Connection refused:", "0", "1", "2", "3", "4",
                                          "and 25 more", "404:", "z"]
    assert error.fix == "network\nlock"
