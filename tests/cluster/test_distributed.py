"""torchrun on several nodes, in the real image; ranks and nodes that die; jobs side by side.

make test-cluster ARGS="-k test_distributed"
"""

from __future__ import annotations

import re

import pytest
from llm_run import LLM_RUN, Desk

from box.cluster import Cluster

TORCH = ("--image", "llm-cpu")
# os.write() in the programs below: torchrun starts Python with -u, and then print() writes each
# word by itself, between those of the other ranks.
ALL_REDUCE = """
import os, socket, torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
names = "MASTER_ADDR", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "SLURM_NODEID"
words = ["SUM", int(total), dist.get_rank(), dist.get_world_size(), socket.gethostname()]
words += [os.environ.get(name) for name in names]
os.write(1, (" ".join(map(str, words)) + "\\n").encode())
dist.destroy_process_group()
"""


def sums(log: str) -> list[list[str]]:
    """Return the words of every rank's line, in the order of ranks."""
    lines = [line.partition("SUM ")[2].split() for line in log.splitlines() if "SUM " in line]
    return sorted(lines, key=lambda words: int(words[1]))


@pytest.mark.parametrize(
    ("nodes", "gpus", "processes"), [(2, 4, 2), (4, 4, 1)], ids=["two-nodes", "four-nodes"]
)
def test_all_reduce(desk: Desk, nodes: int, gpus: int, processes: int) -> None:
    script = desk.write("all reduce.py", ALL_REDUCE)
    _, log = desk.sbatch(
        f"--nodes={nodes}", f"--gpus={gpus}", LLM_RUN, *TORCH, "--torchrun", script, timeout=300
    )
    world = nodes * processes
    expected = str(world * (world + 1) // 2)
    found = sums(log)
    assert [words[:3] for words in found] == [[expected, str(r), str(world)] for r in range(world)]
    assert sorted(words[3] for words in found) == sorted(
        f"n{n + 1}" for n in range(nodes) for _ in range(processes)
    )
    first = found[0]
    assert first[4] == first[3] and first[5] == "eth0" and int(first[6]) >= 1, log


def test_a_rank_that_dies_ends_the_job_with_its_error(cluster: Cluster, desk: Desk) -> None:
    script = desk.write(
        "die.py",
        "import os, time\n"
        "os.write(1, ('rank ' + os.environ['RANK'] + '\\n').encode())\n"
        "if os.environ['RANK'] == '1':\n    raise RuntimeError('rank one is lost')\n"
        "time.sleep(900)\n",
    )
    # Much less than the other rank sleeps.
    job, log = desk.sbatch("--nodes=2", LLM_RUN, *TORCH, "--torchrun", script, timeout=400)
    assert "RuntimeError: rank one is lost" in log
    assert cluster.job(job)["JobState"] == "FAILED"


def test_failed_processes_start_again(desk: Desk) -> None:
    script = desk.write(
        "again.py",
        "import os, sys\n"
        "count = os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "print('attempt', count, flush=True)\n"
        "sys.exit(count == '0')\n",
    )
    words = ["--torchrun", "--max-restarts=1", script]
    done = desk.run(["salloc", LLM_RUN, *TORCH, *words], timeout=200)
    assert done.returncode == 0 and "attempt 1" in done.stdout, done.stderr


def test_different_numbers_of_gpus(desk: Desk) -> None:
    for command in (["salloc"], ["srun"]):
        done = desk.run([*command, "--nodes=2", "--gpus=3", LLM_RUN, *TORCH, "--torchrun", "x.py"])
        assert done.returncode
        assert "different numbers of GPUs" in done.stderr and "n1: 2, n2: 1" in done.stderr


def test_several_tasks_a_node_are_refused(desk: Desk) -> None:
    done = desk.run(["srun", "--nodes=2", "--ntasks=4", LLM_RUN, *TORCH, "--torchrun", "x.py"])
    assert done.returncode and "--torchrun wants one task a node" in done.stderr


def test_two_jobs_of_one_user_on_one_node(desk: Desk) -> None:
    script = desk.write("all_reduce.py", ALL_REDUCE)
    words = ["--nodes=2", "--nodelist=n1,n2", LLM_RUN, *TORCH, "--torchrun", script]
    jobs = [desk.sbatch(*words, wait=False)[0] for _ in range(2)]
    for job in jobs:
        desk.cluster.wait(job, "COMPLETED", 250)
        assert [words[:3] for words in sums(desk.read(f"{job}.out"))] == [
            ["3", "0", "2"], ["3", "1", "2"],
        ]  # fmt: skip


@pytest.mark.timeout(1200)
def test_a_stop_request_reaches_every_rank(cluster: Cluster, desk: Desk) -> None:
    """A USR2 to the whole step would kill torchrun's agents; the warning does not use one."""
    script = desk.write(
        "train.py",
        "import os, sys, time\n"
        "from llm_recipes.stop_signals import declare_unfinished, restarts, stop_requested\n"
        "def say(what):\n"
        "    os.write(1, f\"rank {os.environ['RANK']} {what}\\n\".encode())\n"
        "say(f'start {restarts()}')\n"
        "while not restarts():\n"
        "    time.sleep(0.5)\n"
        "    if stop_requested():\n"
        "        say('leaves')\n"
        "        declare_unfinished()\n"
        "        break\n",
    )
    words = ["--requeue", "--torchrun", "--nodes=2", "--nproc-per-node=2"]
    words += ["--time=2", "--stop-before=80", "--", script]
    env = {"LLM_LOCAL_DIR": str(cluster.shared)}
    # The image is unpacked for such a job: on a busy machine that takes longer than two minutes.
    unpacking = desk.submit("--requeue", "--time=10", "--", "true", image=TORCH, env=env)
    cluster.wait(unpacking, "COMPLETED", 500)
    job = desk.submit(*words, image=TORCH, env=env)
    cluster.wait(job, "COMPLETED", 400)
    first = desk.read(f"logs/train-{job}.r0.log")
    assert sorted(re.findall(r"rank (\d) leaves", first)) == list("0123"), first
    second = desk.read(f"logs/train-{job}.r1.log")
    assert sorted(re.findall(r"rank (\d) start 1", second)) == list("0123"), second
