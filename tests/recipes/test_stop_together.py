"""When a rank wishes to stop, and the warning where the time to leave is too short."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from conftest import recipe_environment

from llm_recipes import stop_signals
from llm_recipes.stop_together import CTRL_C, TIME_LIMIT, TOLD, StopWatch


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("LLM_STOP_FILE", "LLM_DEADLINE", "LLM_STOP_BEFORE", "SLURM_JOB_END_TIME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stop_signals, "_found", False)
    monkeypatch.setattr(stop_signals, "_terminated", False)
    monkeypatch.setattr(stop_signals, "_installed", True)


def deadline_in(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setenv("LLM_DEADLINE", str(time.time() + seconds))


def test_nobody_wishes_to_stop() -> None:
    assert StopWatch(120).wishes() == [0.0, 0.0, 0.0]


def test_sigterm_and_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "_terminated", True)
    deadline_in(monkeypatch, 1000)
    assert StopWatch(120).wishes()[TOLD] == 1.0
    assert StopWatch(120).wishes()[TIME_LIMIT] == 0.0
    deadline_in(monkeypatch, 100)
    assert StopWatch(120).wishes()[TIME_LIMIT] == 1.0
    assert StopWatch(0).wishes()[TIME_LIMIT] == 0.0, "0 is off"


def test_slow_saves_and_steps_make_it_leave_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = StopWatch(120)
    deadline_in(monkeypatch, 300)
    assert watch.wishes()[TIME_LIMIT] == 0.0
    watch.saved(200.0)
    assert watch.wishes()[TIME_LIMIT] == 1.0
    other = StopWatch(120)
    other.longest_step_s = 250.0
    assert other.wishes()[TIME_LIMIT] == 1.0


def test_a_lead_below_twice_the_longest_save_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = StopWatch(120)
    assert watch.saved(500.0) is None, "outside of jobs there is no end"
    deadline_in(monkeypatch, 9999)
    monkeypatch.setenv("LLM_STOP_BEFORE", "300")
    assert StopWatch(120).saved(149.0) is None
    watch = StopWatch(120)
    said = watch.saved(151.0)
    assert said and "saving took 151 s" in said and "--stop-before=303" in said
    assert watch.saved(152.0) is None


def test_the_second_ctrl_c_is_meant() -> None:
    program = (
        "import os, signal\n"
        "from llm_recipes.stop_together import StopWatch\n"
        "with StopWatch(0) as watch:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        f"    assert watch.wishes()[{CTRL_C}] == 1.0\n"
        "    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('never here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=recipe_environment(),
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "goes on\n" and "KeyboardInterrupt" in done.stderr
    assert "saving after this step" in done.stderr


def test_a_rank_that_waits_for_a_dead_one_leaves() -> None:
    program = (
        "import os, signal, time\n"
        "from llm_recipes import stop_together\n"
        "stop_together.LOST_SECONDS = 1.0\n"
        "with stop_together.StopWatch(0) as watch:\n"
        # All within: between the steps a second without CPU time would be one of waiting.
        "    with watch.saving():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(3)\n"
        "        print('saved', flush=True)\n"
        "    time.sleep(60)\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=recipe_environment(),
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 143 and done.stdout == "saved\n", done
    assert "after SIGTERM: leaving" in done.stderr and time.monotonic() - began < 40
    assert os.getpid()
