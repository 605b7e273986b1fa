"""Time limits, preemption, dead nodes: a program that counts goes on where it was.

make test-cluster ARGS="-k test_requeue"
"""

from __future__ import annotations

import re

import pytest
from llm_run import COUNT, LLM_RUN, SMALL, Desk

from box.cluster import Cluster


def starts(log: str) -> list[tuple[int, int]]:
    """Return (count at the beginning, number of the start) of each start in a log."""
    return [(int(a), int(b)) for a, b in re.findall(r"from (\d+) start (\d+)", log)]


def logs(desk: Desk, job: str) -> str:
    """Return the logs of all starts of a job's program, in their order."""
    return "".join(
        path.read_text() for path in sorted((desk.folder / "logs").glob(f"*-{job}.r*.log"))
    )


def wait_for_count(cluster: Cluster, desk: Desk, least: int) -> int:
    """Wait until the program has counted so far; return how far."""

    def count() -> int:
        path = desk.folder / "count"
        return int(path.read_text() or 0) if path.exists() else 0

    return cluster.wait_until(count, lambda n: n >= least, 120, f"a count of {least}")


@pytest.fixture(scope="module")
def unpacked(cluster: Cluster) -> None:
    """The image is unpacked on all nodes: of a job's only minute that may take too much."""
    desk = Desk(cluster, "unpacked")
    job = desk.submit("--requeue", "--nodes=4", "--time=10", "--", "true")
    cluster.wait(job, "COMPLETED", 300)


def begin(desk: Desk, goal: int, *options: str) -> str:
    """Submit a job that counts; return its id."""
    desk.write("count.py", COUNT)
    return desk.submit("--requeue", *options, "--", "python3", "count.py", "count", str(goal))


def test_before_the_time_limit_the_program_leaves_and_goes_on(
    cluster: Cluster, desk: Desk, unpacked: None
) -> None:
    job = begin(desk, 60, "--time=1", "--stop-before=45")
    cluster.wait(job, "COMPLETED", 400)
    log, batch = logs(desk, job), desk.read(f"logs/count-{job}.log")
    (zero, _), (first, number), *_ = starts(log)
    assert (zero, number) == (0, 1) and first > 0
    assert f"stopped at {first}\n" in log and "counted to 60\n" in log
    assert "the time limit is near: told the program to save and leave" in batch
    assert "requeue 1 of 20" in batch and batch.rstrip().endswith("finished")
    left = (desk.cluster.home / f".cache/llm/jobs/llm-box-{job}").iterdir()
    assert [path.name for path in left] == []


def test_plain_sbatch_does_the_same(cluster: Cluster, desk: Desk, unpacked: None) -> None:
    desk.write("count.py", COUNT)
    words = ["--requeue", "--stop-before=50", "python3", "count.py", "count", "60"]
    job, _ = desk.sbatch("--time=1", LLM_RUN, *SMALL, *words, wait=False)
    cluster.wait(job, "COMPLETED", 400)
    log = desk.read(f"{job}.out")
    assert len(starts(log)) >= 2 and "counted to 60" in log and "finished" in log


def test_a_signal_reaches_the_program_alone(cluster: Cluster, desk: Desk, unpacked: None) -> None:
    desk.write(
        "wait.py",
        "import os, signal, sys, time\n"
        "def leave(number, frame):\n"
        "    import sqlite3  # from the image, which the signal must not have harmed\n"
        "    print('got', signal.Signals(number).name, os.environ['SLURM_PROCID'], flush=True)\n"
        "    sys.exit(75 if os.environ['SLURM_RESTART_COUNT'] == '0' else 0)\n"
        "os.environ.setdefault('SLURM_RESTART_COUNT', '0')\n"
        "signal.signal(signal.SIGUSR1, leave)\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)\n",
    )
    # It comes after a minute; the step that brings it has forty seconds, also on a busy machine.
    options = ["--requeue", "--stop-signal=USR1", "--stop-before=60", "--time=2", "--nodes=2"]
    job = desk.submit(*options, "--", "python3", "wait.py")
    cluster.wait(job, "COMPLETED", 400)
    log = logs(desk, job)
    assert sorted(re.findall(r"got SIGUSR1 (\d)", log)) == ["0", "0", "1", "1"], log
    assert desk.read(f"logs/wait-{job}.log").count("SIGUSR1 sent to 1 processes") == 4


def test_preemption_with_grace(cluster: Cluster, desk: Desk) -> None:
    cluster.set_grace(15)
    try:
        job = begin(desk, 40, "--nodelist=n1", "--time=5")
        wait_for_count(cluster, desk, 3)
        cluster.preempt("n1", 3)
        cluster.wait(job, "COMPLETED", 240)
    finally:
        cluster.set_grace(0)
    log = logs(desk, job)
    (_, _), (second, _), *_ = starts(log)
    # After the TERM to the whole step it could import, save and leave.
    assert f"stopped at {second}\n" in log and "counted to 40\n" in log


def test_preemption_without_grace_costs_what_was_not_saved(cluster: Cluster, desk: Desk) -> None:
    job = begin(desk, 30, "--nodelist=n1", "--time=5")
    reached = wait_for_count(cluster, desk, 3)
    cluster.preempt("n1", 3)
    cluster.wait(job, "COMPLETED", 240)
    (_, _), (second, number) = starts(logs(desk, job))
    assert number == 1 and second >= reached


def test_a_dead_node(cluster: Cluster, desk: Desk) -> None:
    job = begin(desk, 40, "--nodelist=n4", "--time=5")
    reached = wait_for_count(cluster, desk, 3)
    cluster.kill_node("n4")
    cluster.wait(job, "PENDING", 60)
    cluster.start_node("n4")
    cluster.wait(job, "COMPLETED", 240)
    (_, _), (second, _) = starts(logs(desk, job))
    assert second >= reached and "counted to 40" in logs(desk, job)


def test_requeued_by_an_administrator(cluster: Cluster, desk: Desk) -> None:
    job = begin(desk, 30, "--time=5")
    reached = wait_for_count(cluster, desk, 3)
    cluster.requeue(job)
    cluster.wait(job, "COMPLETED", 240)
    (_, _), (second, _) = starts(logs(desk, job))
    assert second >= reached


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, desk: Desk) -> None:
    # Between the signal and the end on a busy machine; whoever leaves before is not waited for.
    cluster.configure(KillWait="60")
    try:
        job = begin(desk, 300, "--time=5")
        wait_for_count(cluster, desk, 2)
        desk.run(["scancel", job], check=True)
        desk.wait_for_text(f"logs/count-{job}.log", "decides what comes next")
        cluster.wait(job, "CANCELLED")
    finally:
        cluster.configure(KillWait="5")
    assert len(starts(logs(desk, job))) == 1


def test_a_failure_is_not_started_again(cluster: Cluster, desk: Desk) -> None:
    job = desk.submit("--requeue", "--time=5", "--", "sh", "-c", "exit 9")
    fields = cluster.wait(job, "FAILED")
    assert fields["ExitCode"] == "9:0" and fields["Restarts"] == "0"
    assert "the program failed with status 9" in desk.read(f"logs/sh-{job}.log")


def test_the_limit_of_requeues(cluster: Cluster, desk: Desk) -> None:
    job = desk.submit("--requeue", "--max-requeues=1", "--time=5", "--", "sh", "-c", "exit 75")
    fields = cluster.wait(job, "FAILED", 200)
    assert fields["Restarts"] == "1"
    assert "which is the limit (--max-requeues)" in desk.read(f"logs/sh-{job}.log")


def test_a_program_that_does_not_leave_is_put_back_all_the_same(
    cluster: Cluster, desk: Desk, unpacked: None
) -> None:
    # The second start ends at once; the first one does not listen.
    script = 'if [ "$LLM_RESTARTS" = 0 ]; then sleep 300; else echo second; fi'
    job = desk.submit("--requeue", "--stop-before=50", "--time=1", "--", "sh", "-c", script)
    cluster.wait(job, "COMPLETED", 300)
    assert "the program has not left" in desk.read(f"logs/sh-{job}.log")
    assert "second\n" in logs(desk, job)


def test_requeue_is_for_jobs(desk: Desk) -> None:
    done = desk.run(["salloc", LLM_RUN, *SMALL, "--requeue", "true"])
    assert done.returncode == 2 and "--requeue is for batch jobs" in done.stderr


def test_a_task_of_an_array_goes_back_alone(cluster: Cluster, desk: Desk) -> None:
    script = 'echo begun; [ "$SLURM_ARRAY_TASK_ID$LLM_RESTARTS" != 30 ] || exit 75'
    words = ["--requeue", "--array=1-3", "--time=5", "--wait"]
    job = desk.submit(*words, "--", "sh", "-c", script)
    for task, count in ((1, 1), (2, 1), (3, 2)):
        found = list((desk.folder / "logs").glob(f"sh-{job}_{task}.r*.log"))
        assert len(found) == count, [path.name for path in (desk.folder / "logs").iterdir()]


def test_a_lost_job_folder_does_not_end_the_program(
    cluster: Cluster, desk: Desk, unpacked: None
) -> None:
    job = begin(desk, 60, "--time=1", "--stop-before=50")
    wait_for_count(cluster, desk, 3)
    desk.run(["rm", "-rf", str(cluster.home / ".cache/llm/jobs")], check=True)
    cluster.wait(job, "COMPLETED", 400)
    log = logs(desk, job)
    assert "stopped at" in log and "counted to 60" in log


def test_a_controller_that_is_away_when_the_program_leaves(cluster: Cluster, desk: Desk) -> None:
    """scontrol is a stand-in until the file `back` is there; Slurm itself stays."""
    desk.write(
        "scontrol",
        f"#!/bin/sh\nif [ -e {desk.folder}/back ]; then exec /usr/bin/scontrol \"$@\"; fi\n"
        "echo 'Unable to contact slurm controller' >&2\nexit 1\n",
    )
    desk.run(["chmod", "+x", "scontrol"], check=True)
    script = '[ "$LLM_RESTARTS" = 1 ] || exit 75; echo second'
    env = {"PATH": f"{desk.folder}:/usr/bin:/bin"}
    job = desk.submit("--requeue", "--time=5", "--", "sh", "-c", script, env=env)
    cluster.wait_until(
        lambda: desk.wait_for_text(f"logs/sh-{job}.log").partition("start 1")[2],
        lambda text: "Unable to contact" in text, 90, "no question",
    )  # fmt: skip
    desk.run(["touch", "back"], check=True)
    cluster.wait(job, "COMPLETED", 200)
    assert "second\n" in logs(desk, job)
