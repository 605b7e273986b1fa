"""A quantized model over the memory of several nodes, in the real image, and what ends it.

make test-cluster ARGS="-k test_quantized"
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from llm_run import LLM_RUN, REPOSITORY, Desk

from box.cluster import Cluster

# One worker makes the model and the answers to compare with, for all of these tests.
pytestmark = [pytest.mark.xdist_group("quantized"), pytest.mark.timeout(1200)]

IMAGE = ("--image", "llm-cpu")
QUANTIZED = str(REPOSITORY / "recipes/quantized")
GENERATE = f"{QUANTIZED}/generate.py"
TINY = str(REPOSITORY / "recipes/data/tiny.py")
# The nodes' CPUs are all this machine's.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SLOW = 400.0
MODEL = "six layers.gguf"
ASK = (
    f"--model={MODEL}", "--prompt=Once upon a time", "--prompt=def f(x):", "--prompt-style=raw",
    "--threads=1", "--parallel=2",
)  # fmt: skip
SHORT = ("--max-new-tokens=32", "--ignore-eos")
# Long enough to break something meanwhile.
LONG = ("--samples=5000", "--temperature=1", "--max-new-tokens=100", "--ignore-eos")


@pytest.fixture(scope="module")
def work(cluster: Cluster) -> Desk:
    """A desk with a GGUF of six layers."""
    desk = Desk(cluster, "quantized")
    sizes = ["--hidden-size=256", "--intermediate-size=512", "--layers=6", "--vocab-size=1024"]
    shape = [*sizes, "--context-length=256", "--steps=0"]
    options = ["--type=f32", "--check-tokens=0"]
    for recipe in (
        [TINY, "--output=six", *shape],
        [f"{QUANTIZED}/convert.py", "--model=six", f"--output={MODEL}", *options],
    ):
        done = desk.run([LLM_RUN, *IMAGE, "python", *recipe], timeout=SLOW, env=ONE_THREAD)
        assert done.returncode == 0, done.stdout + done.stderr
    return desk


def answers(path: Path) -> list[tuple[str, int, str]]:
    """Return (id, sample, completion) of each answer."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["id"], row["sample"], row["completion"]) for row in rows]


@pytest.fixture(scope="module")
def alone(work: Desk) -> list[tuple[str, int, str]]:
    """The answers of one process on one node."""
    words = ["python", GENERATE, *ASK, *SHORT, "--output=alone.jsonl"]
    done = work.run([LLM_RUN, *IMAGE, *words], timeout=SLOW, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return answers(work.folder / "alone.jsonl")


def left_over(cluster: Cluster, nodes: list[str]) -> dict[str, str]:
    """Return what of a run is still there on each node."""
    # The programs themselves: srun, whose command line names them too, waits for Slurm to notice.
    words = ["pgrep", "-af", "^[^ ]*python[^ ]* [^ ]*quantized/generate|^[^ ]*ggml-rpc-server"]
    found = {node: cluster.run(words, node=node, user=False).stdout for node in nodes}
    return {node: text for node, text in found.items() if text}


def check_nothing_left(cluster: Cluster, nodes: list[str]) -> None:
    """Nothing of a run is left on these nodes, after a moment."""
    cluster.wait_until(
        lambda: left_over(cluster, nodes), lambda seen: not seen, 90, "processes are left"
    )


@pytest.mark.parametrize("start", ["sbatch", "salloc"])
def test_nodes_together_say_what_one_says(
    cluster: Cluster, work: Desk, alone: list[tuple[str, int, str]], start: str
) -> None:
    nodes = {"sbatch": ["n1", "n2"], "salloc": ["n1", "n2", "n3"]}[start]
    output = f"{start}.jsonl"
    where = [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]
    run = [LLM_RUN, *IMAGE, "python", GENERATE, "--hosts", *ASK, *SHORT, f"--output={output}"]
    if start == "sbatch":
        _, said = work.sbatch(*where, *run, timeout=SLOW)
    else:
        done = work.run(["salloc", *where, *run], timeout=SLOW, env=ONE_THREAD)
        assert done.returncode == 0, done.stderr
        said = done.stderr
    found = re.findall(
        r"hosts: (n\d) \(CPU\) at (10\.[\d.]+):\d+: layers? ([\d-]+),"
        r" ([\d.]+) MB, ([\d.]+) MB measured",
        said,
    )
    assert [name for name, *_ in found] == nodes[1:], said
    assert len({address for _, address, *_ in found}) == len(nodes) - 1
    for _, _, _, claimed, measured in found:
        assert float(claimed) > 2 and float(measured) >= 0.9 * float(claimed)
    assert answers(work.folder / output) == alone
    check_nothing_left(cluster, nodes)


def lines(work: Desk, output: str) -> int:
    """Return how many lines a run has written; the first one holds no answer."""
    return sum(path.read_text().count("\n") for path in work.folder.glob(f"{output}*"))


def begin(work: Desk, output: str, nodes: list[str]) -> str:
    """Start a long run on these nodes; return the job, when it has answers."""
    where = [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}", "--no-requeue"]
    run = [LLM_RUN, *IMAGE, "python", GENERATE, "--hosts", *ASK, *LONG, f"--output={output}"]
    job, _ = work.sbatch(*where, *run, wait=False)

    def look() -> tuple[int, str]:
        return lines(work, output), work.cluster.job(job)["JobState"]

    _, state = work.cluster.wait_until(
        look,
        lambda seen: seen[0] > 2 or seen[1] not in ("PENDING", "RUNNING"),
        SLOW, "no answers",
    )  # fmt: skip
    assert state == "RUNNING", work.read(f"{job}.out")
    return job


def check_lost(work: Desk, job: str, host: str, reason: str) -> None:
    """The run says which host it lost, and why."""
    said = work.wait_for_text(f"{job}.out", f"host {host} has left the run", 90)
    assert reason in said and "Traceback" not in said, said


def test_a_killed_server_ends_the_run_everywhere(cluster: Cluster, work: Desk) -> None:
    job = begin(work, "killed.jsonl", ["n1", "n2", "n3"])
    cluster.run(["pkill", "-KILL", "-x", "ggml-rpc-server"], node="n3", user=False, check=True)
    check_lost(work, job, "n3", "was killed, as when memory runs out")
    cluster.wait(job, "FAILED")
    check_nothing_left(cluster, ["n1", "n2", "n3"])


def test_a_cut_cable_ends_the_run_everywhere(cluster: Cluster, work: Desk) -> None:
    cluster.configure(SlurmdTimeout="120")  # or Slurm itself would be first
    try:
        job = begin(work, "cut.jsonl", ["n1", "n2"])
        cluster.cut("n2")
        check_lost(work, job, "n2", "no answer for 20 s")
        # On the other side of the cut, too, where nobody tells them.
        check_nothing_left(cluster, ["n1", "n2"])
    finally:
        cluster.configure(SlurmdTimeout="8")


def test_a_dead_node_ends_the_run_everywhere(cluster: Cluster, work: Desk) -> None:
    cluster.configure(SlurmdTimeout="120")
    try:
        job = begin(work, "dead.jsonl", ["n1", "n2", "n3"])
        cluster.kill_node("n2")
        check_lost(work, job, "n2", "no answer")
        check_nothing_left(cluster, ["n1", "n3"])
        cluster.configure(SlurmdTimeout="8")
        cluster.wait(job, ["FAILED", "NODE_FAIL"])
    finally:
        cluster.configure(SlurmdTimeout="8")
        cluster.start_node("n2")
    assert lines(work, "dead.jsonl") > 2  # what was answered is there
