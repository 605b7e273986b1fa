"""llm-run where a user may start it in a cluster: in allocations, batch scripts, steps, terminals.

make test-cluster ARGS="-k test_roles"
"""

from __future__ import annotations

import re
import shlex

import pytest
from llm_run import LLM_RUN, SMALL, Desk

from box.cluster import Cluster

WHERE = "echo $(hostname) gpus=$CUDA_VISIBLE_DEVICES step=$SLURM_STEP_ID tasks=$SLURM_NTASKS"


def test_salloc_runs_on_the_node(desk: Desk) -> None:
    done = desk.run(["salloc", "--gpus=1", LLM_RUN, *SMALL, "sh", "-c", WHERE])
    assert done.stdout == "n1 gpus=0 step=0 tasks=1\n", done.stderr


def test_salloc_of_several_nodes(desk: Desk) -> None:
    done = desk.run(["salloc", "--nodes=3", "--ntasks=6", LLM_RUN, *SMALL, "sh", "-c", WHERE])
    assert sorted(done.stdout.splitlines()) == [
        f"{node} gpus= step=0 tasks=3" for node in ("n1", "n2", "n3")
    ], done.stderr


def test_sbatch_with_gpus_on_two_nodes(desk: Desk) -> None:
    _, log = desk.sbatch("--nodes=2", "--gpus=2", LLM_RUN, *SMALL, "sh", "-c", WHERE)
    assert sorted(log.splitlines()) == [f"n{n} gpus=0 step=0 tasks=2" for n in (1, 2)]


def test_tasks_per_node(desk: Desk) -> None:
    _, log = desk.sbatch(
        "--nodes=2", "--cpus-per-task=4", LLM_RUN, *SMALL, "--tasks-per-node=3", "sh", "-c",
        "echo $(hostname) $SLURM_PROCID",
    )  # fmt: skip
    assert sorted(log.splitlines()) == [f"n{1 + task // 3} {task}" for task in range(6)]


def test_a_step_of_the_user_s_own(desk: Desk) -> None:
    done = desk.run(["srun", "--nodes=2", LLM_RUN, *SMALL, "sh", "-c", WHERE])
    assert sorted(done.stdout.splitlines()) == [f"n{n} gpus= step=0 tasks=2" for n in (1, 2)]


def test_a_shell_in_a_step(desk: Desk) -> None:
    typed = desk.llm_run("sh", "-c", "tty; " + WHERE) + "; exit\n"
    screen = desk.terminal("srun --pty sh", typed)
    assert "/dev/pts/" in screen and "n1 gpus= step=0 tasks=1" in screen, screen


def test_salloc_on_a_terminal_gives_the_program_one(desk: Desk) -> None:
    screen = desk.terminal("salloc " + desk.llm_run("sh", "-c", "tty; stty size"))
    assert "/dev/pts/" in screen, screen


def test_interactive_steps(cluster: Cluster, desk: Desk) -> None:
    cluster.configure(LaunchParameters="use_interactive_step")
    try:
        typed = desk.llm_run("sh", "-c", WHERE) + "; exit\n"
        screen = desk.terminal("salloc --gpus=1", typed)
        assert re.search(r"n\d gpus=0 step=4294967290", screen), screen
        screen = desk.terminal("salloc --nodes=2", typed)
        assert "n1 gpus= step=0 tasks=2" in screen and "n2 gpus= step=0 tasks=2" in screen, screen
    finally:
        cluster.configure(LaunchParameters="")


def test_a_job_submitted_from_inside_another_one(desk: Desk) -> None:
    inner = f"sbatch --wait --nodes=2 --output=inner.out {desk.llm_run('sh', '-c', WHERE)}"
    done = desk.run(["srun", "--nodes=1", "--ntasks=1", "sh", "-c", inner])
    assert done.returncode == 0, done.stderr
    log = desk.read("inner.out").splitlines()
    assert sorted(log) == [f"n{n} gpus= step=0 tasks=2" for n in (1, 2)]


def test_submitted_from_another_folder_by_a_path_with_a_space(desk: Desk) -> None:
    folder = desk.folder / "it's a ; ü folder"
    desk.run(["mkdir", str(folder)], check=True)
    desk.run(["ln", "-s", LLM_RUN.rpartition("/bin/")[0], str(folder / "the home")], check=True)
    program = str(folder / "the home" / "bin" / "llm-run")
    script = "pwd; printf '%s\\n' \"$@\""
    _, log = desk.sbatch(program, *SMALL, "sh", "-c", script, "sh", "a b", "'")
    assert log.splitlines() == [str(desk.folder), "a b", "'"]


def test_without_the_user_s_environment(desk: Desk) -> None:
    _, log = desk.sbatch("--export=NONE", "--nodes=2", LLM_RUN, *SMALL, "hostname")
    assert sorted(log.split()) == ["n1", "n2"]


def test_found_on_the_path(desk: Desk) -> None:
    folder = shlex.quote(LLM_RUN.rpartition("/")[0])
    done = desk.run(
        f"PATH=$PATH:{folder} sbatch --wait --output=path.out llm-run --image base hostname"
    )
    assert done.returncode == 0 and desk.read("path.out") == "n1\n"


@pytest.mark.parametrize("job", ["ended", "unknown"])
def test_a_terminal_left_over_from_a_job(desk: Desk, job: str) -> None:
    number = desk.sbatch("--wrap=true")[0] if job == "ended" else "999999"
    env = {"SLURM_JOB_ID": number, "SLURM_JOBID": number, "SLURM_STEP_ID": "0"}
    done = desk.run([LLM_RUN, *SMALL, "true"], env=env)
    assert done.returncode == 2
    assert f"job {number} has ended" in done.stderr and "--launch=local" in done.stderr
    done = desk.run([LLM_RUN, *SMALL, "--launch=local", "hostname"], env=env)
    assert done.stdout == "login\n", done.stderr


def test_exit_status_and_output_come_back(desk: Desk) -> None:
    done = desk.run(["salloc", LLM_RUN, *SMALL, "sh", "-c", "echo out; echo err >&2; exit 7"])
    assert done.returncode == 7 and done.stdout == "out\n" and "err\n" in done.stderr


def test_a_busy_allocation_is_said(desk: Desk) -> None:
    script = "\n".join(
        (
            f"{desk.llm_run('sh', '-c', 'touch begun; sleep 60')} &",
            "while ! [ -e begun ]; do sleep 0.2; done",
            # Slurm lets a waiting srun look again after a minute only, so this one gives up.
            f"timeout 10 {desk.llm_run('echo', 'second')}",
            f"SLURM_OVERLAP=1 {desk.llm_run('echo', 'third')}",
            "kill $!",
        )
    )
    done = desk.run(["salloc", "sh", "-c", script])
    assert done.stdout == "third\n", done.stderr
    assert done.stderr.count("runs in this job; waiting up to 120 s") == 1


def test_an_image_that_a_compute_node_does_not_have(desk: Desk) -> None:
    image = "/tmp/only here.sif"
    desk.run(["cp", "/run/llm-box/images/base.sif", image], check=True)
    done = desk.run(["salloc", "--nodes=2", LLM_RUN, "--image", image, "true"])
    # The first node to find out ends the step; Slurm's status is then that of the others' end.
    assert done.returncode
    assert re.search(rf"llm-run on n[12]: there is no image '{image}'", done.stderr), done.stderr


def test_options_that_mean_nothing_in_a_step(desk: Desk) -> None:
    for option in ("--requeue", "--tasks-per-node=2"):
        done = desk.run(["srun", LLM_RUN, *SMALL, option, "true"])
        assert done.returncode == 2 and "means nothing here" in done.stderr


def test_a_heterogeneous_job(desk: Desk) -> None:
    parts = ["--nodes=1", ":", "--nodes=1"]
    _, log = desk.sbatch(*parts, LLM_RUN, *SMALL, "hostname")
    assert "is heterogeneous" in log and "srun --het-group=0,1" in log
    inner = f"srun --het-group=0,1 {desk.llm_run('hostname')}"
    desk.write("job.sh", f"#!/bin/sh\n{inner}\n")
    _, log = desk.sbatch(*parts, "job.sh")
    assert sorted(log.split()) == ["n1", "n2"]


def test_a_dry_run_in_an_allocation_prints_the_step(desk: Desk) -> None:
    done = desk.run(["salloc", "--nodes=2", LLM_RUN, *SMALL, "--dry-run", "echo", "a b"])
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in done.stdout
    assert done.stdout.rstrip().endswith("-- echo 'a b'")
    again = desk.run(["salloc", "--nodes=2", "sh", "-c", done.stdout])
    assert again.stdout == "a b\na b\n", again.stderr


def test_a_node_without_fuse_unpacks_once(cluster: Cluster, desk: Desk) -> None:
    cluster.run("rm -rf /tmp/llm-*", node="n1", check=True)
    cluster.set_fuse("n1", False)
    done = desk.run(["srun", "--nodelist=n1", "--ntasks=8", LLM_RUN, *SMALL, "hostname"])
    assert done.stdout.split() == ["n1"] * 8, done.stderr
    assert "unpacked once for this node" in done.stderr
    folder = cluster.run("ls -d /tmp/llm-*/images/*.sif-*", node="n1").stdout.split()
    assert len([name for name in folder if not name.endswith(".lock")]) == 1


def test_64_tasks_at_once_from_one_image(desk: Desk) -> None:
    for name in ("known-images", "image-digests"):
        desk.run(["rm", "-rf", str(desk.cluster.home / ".cache/llm" / name)], check=True)
    script = "import os; print(os.environ['SLURM_PROCID'])"
    words = ["--nodes=1", "--ntasks=64", LLM_RUN, "--image", "llm-cpu", "python", "-c", script]
    done = desk.run(["srun", *words], timeout=500)
    assert sorted(map(int, done.stdout.split())) == list(range(64)), done.stderr
    # One of them reads the image. A busy Slurm says that the job had to wait.
    [note] = [line for line in done.stderr.splitlines() if not line.startswith("srun: job ")]
    assert note.endswith("once for its digest")
