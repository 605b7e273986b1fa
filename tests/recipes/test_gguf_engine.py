"""What llama.cpp logs is kept, and nothing that is raised meanwhile is lost."""

from __future__ import annotations

import signal

import pytest

pytest.importorskip("llama_cpp")

from llm_recipes.gguf import engine


class Stop(BaseException):
    """Raised by a signal's handler."""


def test_lines_errors_and_continued_lines() -> None:
    engine.forget_errors()
    with engine.captured_log() as lines:
        engine._log.take(2, b"one\ntw", None)
        engine._log.take(engine.CONTINUED, b"o\n", None)
        engine._log.take(engine.ERROR, b"bad: \xff\n", None)
    engine._log.take(2, b"later\n", None)
    assert lines == ["one", "two", "bad: \ufffd"]
    assert engine.last_error() == "bad: \ufffd"
    engine.forget_errors()
    assert engine.last_error() == ""


def test_a_signal_during_the_log_is_not_lost() -> None:
    def stop(number: int, frame: object) -> None:
        raise Stop

    class Raising(list[str]):
        def append(self, line: str) -> None:
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    listener = Raising()
    engine._log.listeners.append(listener)
    try:
        engine._log.take(2, b"line\n", None)
    finally:
        engine._log.listeners.remove(listener)
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(Stop):
        engine.raise_caught()
    engine.raise_caught()


def test_types_and_devices() -> None:
    assert engine.type_number("q4_K") == engine.type_number("Q4_K") == 12
    assert engine.type_name(12) == "Q4_K"
    assert engine.type_number("Q9") is None
    assert engine.type_name(4) is engine.type_name(-1) is engine.type_name(999) is None
    assert engine.row_bytes("Q8_0", 64) == 68
    with pytest.raises(ValueError, match="unknown tensor type"):
        engine.row_bytes("Q9", 64)
    assert [device.kind for device in engine.devices()][-1] == "cpu"
    assert engine.kernel_library().startswith("libggml-cpu")
