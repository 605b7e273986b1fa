"""Checks that hang, die, break or start others: none of them holds llm-doctor up."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from _llm.doctor import limits
from _llm.doctor.finding import FAIL, OK, WARN, Finding
from _llm.doctor.limits import Stage, Stopped, Task, run_command, run_tasks
from _llm.errors import LLMError


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


def answer(stage: Stage) -> list[Finding]:
    return [Finding("quick", OK, "here", data={"number": 1})]


def hang(stage: Stage) -> list[Finding]:
    stage("waiting for nothing")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGALRM})
    time.sleep(60)
    return []


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a check begins once it has said something: a loaded machine starts it late."""
    start = limits._start

    def start_and_listen(task: Task, deadline: float) -> limits._Child:
        child = start(task, deadline)
        select.select([child.pipe], [], [], 60)
        child.deadline = time.monotonic() + child.seconds
        return child

    monkeypatch.setattr(limits, "_start", start_and_listen)


def is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_findings_come_in_the_order_of_the_tasks() -> None:
    def slow(stage: Stage) -> list[Finding]:
        time.sleep(0.3)
        return [Finding("slow", OK, "late")]

    got = list(run_tasks([Task("slow", 30, slow), Task("quick", 30, answer)], soon()))
    assert [findings[0].check for findings in got] == ["slow", "quick"]
    assert got[1][0].data == {"number": 1}


@pytest.mark.usefixtures("prompt")
def test_one_that_hangs_is_abandoned_and_says_where() -> None:
    begin = time.monotonic()
    got = list(run_tasks([Task("stuck", 0.5, hang, "call"), Task("quick", 30, answer)], soon()))
    assert time.monotonic() - begin < 30
    assert got[0] == [
        Finding("stuck", FAIL, "did not end within 0.5 s while waiting for nothing", "call")
    ]
    assert got[1][0].status == OK


def test_the_whole_has_a_limit_too() -> None:
    begin = time.monotonic()
    (found,) = run_tasks([Task("stuck", 60, hang)], begin + 0.5)
    assert time.monotonic() - begin < 30
    assert found[0].status == FAIL


def test_waiting_takes_no_processor_time() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    # One that is given up early, one that answers, and those that were started after them.
    tasks = [Task("a", 0.2, hang), Task("b", 5, answer), Task("c", 1.8, hang), Task("d", 5, answer)]
    list(run_tasks(tasks, soon()))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


def test_one_that_is_killed() -> None:
    def die(stage: Stage) -> list[Finding]:
        stage("counting")
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    (found,) = run_tasks([Task("dead", 30, die)], soon())
    assert found == [Finding("dead", FAIL, "was killed by the system while counting")]


@pytest.mark.parametrize(
    ("error", "finding"),
    [
        (
            LLMError("no image", "it is gone", "build it"),
            Finding("x", FAIL, "no image: it is gone", "build it"),
        ),
        (
            PermissionError(13, "Permission denied", "/f"),
            Finding("x", FAIL, "Permission denied (/f)"),
        ),
        (
            ZeroDivisionError("of one"),
            Finding(
                "x",
                WARN,
                "this check stopped by itself: ZeroDivisionError: of one",
                "report it to the maintainers of llm-doctor",
            ),
        ),
    ],
)
def test_errors_become_findings(error: Exception, finding: Finding) -> None:
    def fail(stage: Stage) -> list[Finding]:
        raise error

    assert list(run_tasks([Task("x", 30, fail)], soon())) == [[finding]]


def test_what_a_check_has_started_ends_with_it(tmp_path: Path) -> None:
    def start(stage: Stage) -> list[Finding]:
        process = subprocess.Popen(["sleep", "60"])
        (tmp_path / "id").write_text(str(process.pid), encoding="utf-8")
        return [Finding("x", OK, "done")]

    list(run_tasks([Task("x", 30, start)], soon()))
    process = int((tmp_path / "id").read_text(encoding="utf-8"))
    until = time.monotonic() + 30
    while is_alive(process) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(process)


def test_all_end_when_the_caller_stops(tmp_path: Path) -> None:
    def tell(stage: Stage) -> list[Finding]:
        (tmp_path / "id").write_text(str(os.getpid()), encoding="utf-8")
        return hang(stage)

    running = run_tasks([Task("quick", 30, answer), Task("stuck", 60, tell)], soon())
    next(running)
    while not (tmp_path / "id").exists() or not (tmp_path / "id").stat().st_size:
        time.sleep(0.01)
    running.close()  # type: ignore[attr-defined]
    process = int((tmp_path / "id").read_text(encoding="utf-8"))
    until = time.monotonic() + 30
    while is_alive(process) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(process)


def test_a_word_from_outside_stops_them() -> None:
    reading, writing = os.pipe()
    os.close(writing)  # the end of the input counts as well
    begin = time.monotonic()
    with pytest.raises(Stopped):
        list(run_tasks([Task("stuck", 60, hang)], soon(), reading))
    assert time.monotonic() - begin < 30
    os.close(reading)


def test_more_than_a_pipe_holds() -> None:
    def much(stage: Stage) -> list[Finding]:
        return [Finding("x", OK, "y" * 100) for _ in range(5000)]

    (found,) = run_tasks([Task("x", 60, much)], soon())
    assert len(found) == 5000


def test_command() -> None:
    done = run_command(["sh", "-c", "echo a; echo b >&2; exit 3"], 60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "a\n", "b\n")
    with pytest.raises(LLMError, match=r"sleep did not answer within 0\.2 s"):
        run_command(["sleep", "60"], 0.2)
