"""`llm-run --submit`: what the script asks for, logs, arrays, following, and every mistake at once.

make test-cluster ARGS="-k test_submission"
"""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest
from llm_run import LLM_RUN, REPOSITORY, SMALL, Desk

from box.cluster import Cluster


def test_the_job_runs_and_its_logs_are_named(desk: Desk) -> None:
    done = desk.run([LLM_RUN, "--submit", *SMALL, "--nodes=2", "--wait", "--", "hostname"])
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[3]
    assert f"{desk.folder}/logs/hostname-{job}.log (the job)" in done.stdout
    assert f"tail -F {desk.folder}/logs/hostname-{job}.log" in done.stdout
    assert sorted(desk.read(f"logs/hostname-{job}.r0.log").splitlines()) == ["0: n1", "1: n2"]
    assert f"logs/hostname-{job}.r0.log" in desk.read(f"logs/hostname-{job}.log")


def test_follow_shows_the_logs_and_returns_the_status(cluster: Cluster, desk: Desk) -> None:
    # Slurm is asked now and then: the job goes on until it was seen to run.
    script = "for i in 1 2 3; do echo line $i; sleep 1; done; "
    script += "until [ -e seen ]; do sleep 0.2; done; exit 3"
    follow = desk.llm_run("--submit", "--follow", "--", "sh", "-c", script)
    with cluster.start(f"{follow} 2> said", cwd=desk.folder, stdout=subprocess.PIPE) as process:
        try:
            desk.wait_for_text("said", "is running")
            desk.run(["touch", "seen"], check=True)
            shown, _ = process.communicate(timeout=90)
        finally:
            process.kill()
    said = desk.read("said")
    assert process.returncode == 3, said
    assert [line for line in shown.splitlines() if line.startswith("line")] == [
        "line 1", "line 2", "line 3",
    ]  # fmt: skip
    assert "is failed" in said


def test_control_c_ends_the_following_and_not_the_job(cluster: Cluster, desk: Desk) -> None:
    process = cluster.start(
        [LLM_RUN, "--submit", *SMALL, "--follow", "--", "sh", "-c", "echo begun; sleep 300"],
        cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout and process.stderr
    job = process.stdout.readline().split()[3]
    assert any(line == "begun\n" for line in process.stdout)  # so it follows
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and f"to end it: scancel {job}" in said
    assert cluster.job(job)["JobState"] == "RUNNING"


def test_options_beat_variables_and_these_the_profile(cluster: Cluster, desk: Desk) -> None:
    words = ("--", "true")
    assert cluster.job(desk.submit(*words))["Partition"] == "research"
    env = {"SBATCH_PARTITION": "research-gpu", "LLM_SLURM_TIME": "7"}
    done = desk.run([LLM_RUN, "--submit", *SMALL, "--parsable", *words], env=env)
    job = cluster.job(done.stdout.strip())
    assert (job["Partition"], job["TimeLimit"]) == ("research-gpu", "00:07:00")
    job = cluster.job(desk.submit("-p", "research-gpu", "--job-name", "mine", "-t1", *words))
    assert (job["Partition"], job["JobName"], job["TimeLimit"]) == (
        "research-gpu", "mine", "00:01:00",
    )  # fmt: skip


def test_a_dry_run_shows_the_script_and_submits_nothing(desk: Desk) -> None:
    before = desk.run(["squeue", "--noheader", "--states=all"]).stdout
    words = [LLM_RUN, "--submit", *SMALL, "--dry-run", "--gpus=1", "--", "echo", "it's", "a b"]
    done = desk.run(words)
    assert done.stdout.startswith("# sbatch --gpus=1 < this script\n#!/bin/sh\n#SBATCH "), done
    assert "#SBATCH --partition=research\n" in done.stdout
    assert desk.run(["squeue", "--noheader", "--states=all"]).stdout == before
    desk.write("job.sh", done.stdout.partition("\n")[2])
    desk.run(["mkdir", "logs"], check=True)
    job = desk.run(["sbatch", "--parsable", "--wait", "job.sh"], check=True).stdout.strip()
    assert desk.read(f"logs/echo-{job}.r0.log") == "it's a b\n"


def test_an_array_has_a_log_for_each_task(desk: Desk) -> None:
    done = desk.run(
        [LLM_RUN, "--submit", *SMALL, "--array=3-4", "--wait", "--",
         "sh", "-c", "echo task $SLURM_ARRAY_TASK_ID"]
    )  # fmt: skip
    job = done.stdout.split()[3]
    for task in (3, 4):
        assert desk.read(f"logs/sh-{job}_{task}.r0.log") == f"task {task}\n", done.stderr
        assert desk.read(f"logs/sh-{job}_{task}.log")


def test_a_requeue_keeps_the_logs_of_the_first_start(cluster: Cluster, desk: Desk) -> None:
    job = desk.submit("--requeue", "--", "sh", "-c", "echo start $SLURM_RESTART_COUNT; sleep 300")
    # Not the note about the image, which comes before.
    desk.wait_for_text(f"logs/sh-{job}.r0.log", "start\n")
    cluster.requeue(job)
    cluster.wait(job, "RUNNING")
    desk.wait_for_text(f"logs/sh-{job}.r1.log", "start 1\n")
    assert re.search("^start$", desk.read(f"logs/sh-{job}.r0.log"), re.MULTILINE)
    assert desk.read(f"logs/sh-{job}.r1.log").endswith("start 1\n")
    both = desk.read(f"logs/sh-{job}.log")
    assert f"start 1 of job {job}" in both and f"start 2 of job {job}" in both


def test_submitting_from_inside_a_job(desk: Desk) -> None:
    inner = desk.llm_run("--submit", "--wait", "--nodes=2", "--", "sh", "-c",
                         "echo $SLURM_NTASKS $SLURM_STEP_ID")  # fmt: skip
    done = desk.run(["srun", "--ntasks=2", "--nodes=1", "sh", "-c",
                     f"[ $SLURM_PROCID = 1 ] || {inner}"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs = sorted((desk.folder / "logs").glob("*.r0.log"))
    (log,) = logs
    assert sorted(log.read_text().splitlines()) == ["0: 2 0", "1: 2 0"]


def test_the_status_of_a_job_that_is_waited_for(desk: Desk) -> None:
    done = desk.run([LLM_RUN, "--submit", *SMALL, "--wait", "--", "sh", "-c", "exit 3"])
    assert done.returncode == 3 and done.stdout.startswith("Submitted batch job"), done.stderr


def test_nodes_that_are_drained_today(cluster: Cluster, desk: Desk) -> None:
    for node in cluster.nodes:
        cluster.drain(node)
    job = desk.submit("--nodes=2", "--", "true")
    assert cluster.job(job)["JobState"] == "PENDING"


def test_several_tasks_a_node(desk: Desk) -> None:
    job = desk.submit("--tasks-per-node=3", "--wait", "--", "sh", "-c", "echo $SLURM_PROCID")
    log = desk.read(f"logs/sh-{job}.r0.log")
    assert sorted(log.splitlines()) == ["0: 0", "1: 1", "2: 2"]


def test_a_name_with_a_space_and_a_log_of_one_s_own(desk: Desk) -> None:
    words = ["--follow", "--job-name=a b", "--output=own.log", "--", "echo", "hello"]
    done = desk.run([LLM_RUN, "--submit", *SMALL, *words])
    assert "hello\n" in done.stdout and f"{desk.folder}/own.log (the job)" in done.stdout
    assert "output of the program:" in desk.read("own.log"), done.stderr


def test_the_image_of_the_moment_of_submission(cluster: Cluster, desk: Desk) -> None:
    images = desk.folder / "images"
    desk.run(["mkdir", str(images)], check=True)
    for digest in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        desk.run(["cp", "/run/llm-box/images/base.sif", f"{images}/base-{digest}.sif"], check=True)
    desk.run(["ln", "-s", "base-aaaaaaaaaaaa.sif", f"{images}/base.sif"], check=True)
    env = {"LLM_IMAGE_DIR": str(images)}
    done = desk.run(
        [LLM_RUN, "--submit", *SMALL, "--parsable", "--hold", "--", "sh", "-c",
         "echo $LLM_IMAGE_INPUTS"], env=env,
    )  # fmt: skip
    job = done.stdout.strip()
    desk.run(["ln", "-sfn", "base-bbbbbbbbbbbb.sif", f"{images}/base.sif"], check=True)
    cluster.run(["scontrol", "release", job], check=True)
    cluster.wait(job, "COMPLETED")
    assert desk.read(f"logs/sh-{job}.r0.log") == "aaaaaaaaaaaa\n"


def test_what_the_site_requires_of_images(cluster: Cluster, desk: Desk) -> None:
    image = "/run/llm-box/images/base.sif"
    digest = desk.run(
        [LLM_RUN, *SMALL, "sh", "-c", "echo $LLM_IMAGE_DIGEST"], check=True
    ).stdout.strip()
    listed = f"{desk.folder}/allowed"
    profile = (REPOSITORY / "sites" / "box.ini").read_text(encoding="utf-8")
    ours = f"[container]\nrequire = digest\ndigests = {listed}\n"
    profile = profile.replace("[container]\n", ours)
    site = f"{desk.folder}/{desk.write('ours.ini', profile)}"
    env = {"LLM_SITE": site}
    desk.write("allowed", digest)
    words = [LLM_RUN, "--submit", *SMALL, "--parsable", "--hold", "--", "echo", "ran"]
    jobs = [desk.run(words, env=env, check=True).stdout.strip() for _ in range(2)]
    cluster.run(["scontrol", "release", jobs[0]], check=True)
    cluster.wait(jobs[0], "COMPLETED")
    assert desk.read(f"logs/echo-{jobs[0]}.r0.log") == "ran\n"
    # What is allowed no more is refused on the node, and before it is queued.
    desk.write("allowed", f"sha256:{'0' * 64}")
    cluster.run(["scontrol", "release", jobs[1]], check=True)
    cluster.wait(jobs[1], "FAILED")
    said = desk.read(f"logs/echo-{jobs[1]}.log")
    assert "must not be used: a digest is required" in said and digest in said
    assert not (desk.folder / f"logs/echo-{jobs[1]}.r0.log").exists()
    before = desk.run(["squeue", "--noheader", "--states=all"]).stdout
    done = desk.run(words, env=env)
    assert done.returncode == 2 and "a digest is required" in done.stderr and digest in done.stderr
    assert done.stdout == "" and done.stderr.count("must not be used") == 1
    assert desk.run(["squeue", "--noheader", "--states=all"]).stdout == before
    # srun llm-run asks on the node alone.
    done = desk.run(["srun", LLM_RUN, "--image", image, "echo", "ran"], env=env)
    assert done.returncode == 2 and "a digest is required" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--partition=nosuch"], "invalid partition specified"),
        (["--nodes=99"], "not available"),
        (["--tiem=5"], "unrecognized option '--tiem=5'"),
        (["--gpus-per-node=3"], "not available"),
        (["--log-dir=/proc/logs"], "the log folder /proc/logs cannot be used"),
        (["--log-dir=a\nb"], "no way to write a line break"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(
    desk: Desk, words: list[str], said: str
) -> None:
    before = desk.run(["squeue", "--noheader", "--states=all"]).stdout
    done = desk.run([LLM_RUN, "--submit", *SMALL, *words, "--", "true"])
    assert done.returncode == 2 and said in done.stderr and "  fix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert desk.run(["squeue", "--noheader", "--states=all"]).stdout == before


def test_all_mistakes_at_once(desk: Desk) -> None:
    done = desk.run(
        [LLM_RUN, "--submit", "--image", "bsae", "--bind", "/no such", "--nodes=99", "--", "true"]
    )
    assert done.returncode == 2
    assert "there is no image 'bsae'" in done.stderr and "did you mean base?" in done.stderr
    assert "there is no file or folder /no such" in done.stderr
    assert "Slurm would not accept this job" in done.stderr


def test_a_malformed_profile(desk: Desk) -> None:
    desk.write("bad.ini", "[slurm]\npartitoin = x\n[gpu]\n")
    done = desk.run([LLM_RUN, "--site", "./bad.ini", "--submit", "--", "true"])
    assert done.returncode == 2
    assert "line 2: unknown key 'partitoin'" in done.stderr
    assert "line 3: unknown section [gpu]" in done.stderr


def test_without_slurm(desk: Desk) -> None:
    folder = os.path.dirname(LLM_RUN)
    done = desk.run([LLM_RUN, "--submit", *SMALL, "--", "true"], env={"PATH": f"{folder}:/bin-not"})
    assert done.returncode == 2 and "sbatch is not on PATH" in done.stderr


def test_hostile_words_and_folders(desk: Desk) -> None:
    folder = desk.folder / "it's 50% ; ü #1"
    desk.run(["mkdir", str(folder)], check=True)
    words = ["a b", "it's", "$HOME", "`id`", "x;y", "new\nline", "%j"]
    done = desk.run(
        [LLM_RUN, "--submit", *SMALL, "--wait", "--", "sh", "-c", 'printf "<%s>" "$@"', "sh",
         *words], cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (log,) = (folder / "logs").glob("*.r0.log")
    assert log.read_text() == "".join(f"<{word}>" for word in words)
