"""A Llama in Meta's format, its shards on different nodes, in the real image.

make test-cluster ARGS="-k test_sharded"
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llm_run import LLM_RUN, REPOSITORY, Desk

from box.cluster import Cluster

pytestmark = [pytest.mark.xdist_group("sharded"), pytest.mark.timeout(1800)]

TORCH = ("--image", "llm-cpu")
SHARDED = str(REPOSITORY / "recipes/inference/sharded.py")
# The nodes' CPUs are all this machine's. sbatch hands it on to the job.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SLOW = 600.0  # seconds that a job may take where several of them share two CPUs
MAKE = """
from pathlib import Path
from meta_checkpoints import LLAMA_2, make_checkpoint
for degree in (1, 2):
    make_checkpoint(Path(f"llama {degree}"), LLAMA_2, degree)
"""
ANSWERS, TOKENS = 40, 60
OPTIONS = (
    "--device=cpu", "--prompts=prompts.txt", f"--max-new-tokens={TOKENS}", "--ignore-eos",
    "--max-batch-size=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def work(cluster: Cluster) -> Desk:
    """A desk with the same model in one shard and in two."""
    desk = Desk(cluster, "sharded")
    maker = REPOSITORY / "tests/recipes/meta_checkpoints.py"
    desk.write(maker.name, maker.read_text(encoding="utf-8"))
    script = desk.write("make.py", MAKE)
    done = desk.run([LLM_RUN, *TORCH, "python", script], timeout=SLOW, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    desk.write("prompts.txt", "".join(f"Number {n}{' x' * (n % 9)}\n" for n in range(ANSWERS)))
    return desk


def command(nodes: int, shards: int, output: str) -> list[str]:
    """The words of sbatch, for a process a node."""
    torchrun = ["--torchrun", "--nproc-per-node=1"] if nodes > 1 else []
    run = [LLM_RUN, *TORCH, *torchrun, "python", SHARDED, f"--model=llama {shards}"]
    return [f"--nodes={nodes}", *run, *OPTIONS, f"--output={output}"]


def sbatch(desk: Desk, *words: str) -> str:
    """Run a job to its end; return its log."""
    options = ["--parsable", "--wait", "--output=%j.out"]
    done = desk.run(["sbatch", *options, *words], timeout=SLOW, env=ONE_THREAD)
    job = done.stdout.strip()
    assert job.isdigit(), done.stderr
    return desk.read(f"{job}.out")


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_nodes_answer_as_one_process_does_though_one_was_lost(
    cluster: Cluster, work: Desk
) -> None:
    words = command(2, 2, "two.jsonl")
    options = ["--parsable", "--output=lost.out", "--no-requeue", "--nodelist=n1,n2"]
    # A token exchanges 12 KB: on this link all of them take half a minute, however fast the CPUs.
    cluster.set_speed("n1", "4mbit")
    job = work.run(["sbatch", *options, *words], env=ONE_THREAD).stdout.strip()
    partial = work.folder / "two.jsonl.partial"

    def look() -> tuple[int, str]:
        count = len(partial.read_bytes().splitlines()) if partial.exists() else 0
        return count, cluster.job(job)["JobState"]

    count, state = cluster.wait_until(
        look,
        lambda seen: seen[0] > 3 or seen[1] not in ("PENDING", "RUNNING"),
        SLOW, f"no answers of job {job}",
    )  # fmt: skip
    assert state == "RUNNING", work.read("lost.out")
    cluster.kill_node("n2")
    cluster.wait(job, ["FAILED", "NODE_FAIL", "CANCELLED"], SLOW)
    kept = answers(partial)[1:]
    assert count - 1 <= len(kept) < ANSWERS, "too late to show anything"

    log = sbatch(work, "--nodelist=n3,n4", *words)
    assert "in 2 processes" in log, log
    found = answers(work.folder / "two.jsonl")
    assert [row["id"] for row in found] == list(range(1, ANSWERS + 1))
    assert all(row in found for row in kept)
    record = json.loads(work.read("two.run.json"))
    assert record["model"]["model_parallel"] == 2
    assert len(record["metrics"]["rank_peak_host_bytes"]) == 2

    log = sbatch(work, *command(1, 1, "one.jsonl"))
    assert answers(work.folder / "one.jsonl") == found, log


def test_a_wrong_number_of_processes_is_said_once(work: Desk) -> None:
    log = sbatch(work, *command(2, 1, "wrong.jsonl"))
    assert log.count("has 1 shard, and 2 processes were started") == 1, log
    assert 'sharded.py", line' not in log
