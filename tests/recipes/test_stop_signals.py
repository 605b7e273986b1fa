"""Requests to stop: by a file, by SIGTERM, and what the program answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_recipes import stop_signals


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLM_STOP_FILE", "LLM_DEADLINE", "LLM_RESTARTS", "LLM_UNFINISHED_FILE"):
        monkeypatch.delenv(name, raising=False)
    # No handler in pytest itself, which would ignore SIGTERM from then on.
    monkeypatch.setattr(stop_signals, "_installed", True)
    monkeypatch.setattr(stop_signals, "_found", False)
    monkeypatch.setattr(stop_signals, "_terminated", False)
    monkeypatch.setattr(stop_signals, "_next_look", 0.0)


def test_nobody_asks_outside_of_jobs() -> None:
    assert not stop_signals.stop_requested()
    assert stop_signals.deadline() is None and stop_signals.seconds_left() is None
    stop_signals.declare_unfinished()


def test_the_stop_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it's ü stop"
    monkeypatch.setenv("LLM_STOP_FILE", str(path))
    monkeypatch.setattr(stop_signals, "LOOK_SECONDS", 0.0)
    assert not stop_signals.stop_requested()
    path.touch()
    assert stop_signals.stop_requested()
    path.unlink()
    assert stop_signals.stop_requested(), "a request is not taken back"


def test_the_file_is_looked_at_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_STOP_FILE", str(tmp_path / "stop"))
    looks: list[str] = []
    monkeypatch.setattr(os.path, "exists", lambda path: bool(looks.append(path)))
    for now in (10.0, 10.9, 11.1):  # a clock that goes on only here
        monkeypatch.setattr(stop_signals, "time", SimpleNamespace(monotonic=lambda now=now: now))
        for _ in range(1000):
            stop_signals.stop_requested()
    assert len(looks) == 2


def test_sigterm_in_a_program() -> None:
    program = (
        "import time\n"
        "from llm_recipes.stop_signals import stop_requested\n"
        "stop_requested(); print('ready', flush=True)\n"
        "while not stop_requested(): time.sleep(0.01)\n"
        "print('saved')\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGTERM)
        assert run.stdout.read() == "saved\n"
    assert run.returncode == 0


def test_a_handler_of_the_program_stays() -> None:
    program = (
        "import signal\n"
        "from llm_recipes.stop_signals import stop_requested\n"
        "def own(number, frame): pass\n"
        "signal.signal(signal.SIGTERM, own); stop_requested()\n"
        "assert signal.getsignal(signal.SIGTERM) is own\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    end = round(time.time()) + 100
    monkeypatch.setenv("LLM_DEADLINE", str(end))
    before, left, after = end - time.time(), stop_signals.seconds_left(), end - time.time()
    assert left is not None and after <= left <= before
    monkeypatch.setenv("LLM_DEADLINE", "1")
    assert stop_signals.seconds_left() == 0
    monkeypatch.setenv("LLM_DEADLINE", "tomorrow")
    assert stop_signals.deadline() is None


def test_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_UNFINISHED_FILE", str(tmp_path / "unfinished"))
    stop_signals.declare_unfinished()
    stop_signals.declare_unfinished()
    assert (tmp_path / "unfinished").exists()


@pytest.mark.parametrize(
    ("env", "count"),
    [({}, 0), ({"LLM_RESTARTS": "2"}, 2), ({"SLURM_RESTART_COUNT": "3"}, 3)],
)
def test_restarts(env: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert stop_signals.restarts() == count
