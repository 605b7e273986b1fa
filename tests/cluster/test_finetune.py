"""Fine-tuning on several nodes, in the real image: the same numbers as on one, whatever happens.

make test-cluster ARGS="-k test_finetune"
"""

from __future__ import annotations

import array
import json
from pathlib import Path
from typing import Any

import pytest
from llm_run import LLM_RUN, REPOSITORY, Desk

from box.cluster import Cluster

# One worker makes the model and the runs to compare with, for all of these tests.
pytestmark = [pytest.mark.xdist_group("finetune"), pytest.mark.timeout(1800)]

TORCH = ("--image", "llm-cpu")
SFT = str(REPOSITORY / "recipes/finetune/sft.py")
TINY = str(REPOSITORY / "recipes/data/tiny.py")
# The nodes' CPUs are all this machine's. sbatch hands it on to the job.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
STEPS, SAVE_EVERY = 20, 5
SEALS = "checkpoints/checkpoint-*/complete.json"
# The fake GPUs of the box are none for torch.
OPTIONS = (
    "--method=full", "--device=cpu", "--learning-rate=1e-3", "--max-length=192",
    "--global-batch=8", "--batch-size=2", f"--max-steps={STEPS}", f"--save-every={SAVE_EVERY}",
    "--keep=0", "--save-dtype=fp32",
)  # fmt: skip
SLOW = 600.0  # seconds that a job may take where several of them share two CPUs


@pytest.fixture(scope="module")
def work(cluster: Cluster) -> Desk:
    """A desk with a tiny model and texts of different lengths: ranks differ in their tokens."""
    desk = Desk(cluster, "finetune")
    rows = [
        {"instruction": f"Count to {n}.", "response": " ".join(map(str, range(1, n + 1)))}
        for n in range(1, 65)
    ]
    desk.write("numbers.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    small = ["--hidden-size=64", "--intermediate-size=128", "--vocab-size=1024"]
    command = ["python", TINY, "--output=tiny", "--steps=0", "--context-length=256", *small]
    done = desk.run([LLM_RUN, *TORCH, *command], timeout=SLOW, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    return desk


def sft(output: str, *options: str) -> list[str]:
    """Return the recipe and its arguments."""
    return [SFT, "--model=tiny", "--data=numbers.jsonl", f"--output={output}", *OPTIONS, *options]


def sbatch(desk: Desk, nodes: int, words: list[str]) -> tuple[str, str]:
    """Run `sbatch --nodes=N --gpus=N llm-run WORDS` to its end; return job id and log."""
    run = [LLM_RUN, *TORCH, *words]
    command = ["sbatch", "--parsable", "--wait", "--output=%j.out", f"--nodes={nodes}"]
    done = desk.run([*command, f"--gpus={nodes}", *run], timeout=SLOW, env=ONE_THREAD)
    job = done.stdout.strip()
    assert job.isdigit(), done.stderr
    return job, desk.read(f"{job}.out")


def distributed(desk: Desk, nodes: int, strategy: str) -> Path:
    """Fine-tune on several nodes, one process each; return the output folder."""
    name = f"{strategy}-{nodes}"
    words = ["--torchrun", "--nproc-per-node=1", *sft(name, f"--strategy={strategy}")]
    _, log = sbatch(desk, nodes, words)
    assert f"model of step {STEPS} in {desk.folder / name}" in log, log
    assert f"x {nodes} processes x" in log, log
    return desk.folder / name


@pytest.fixture(scope="module")
def alone(work: Desk) -> Path:
    """The output of one process on one node."""
    _, log = sbatch(work, 1, ["python", *sft("alone")])
    assert f"model of step {STEPS} in" in log, log
    return work.folder / "alone"


@pytest.fixture(scope="module")
def on_two_nodes(work: Desk) -> Path:
    """The output of two processes on two nodes."""
    return distributed(work, 2, "ddp")


def losses(output: Path, name: str = "loss") -> list[tuple[int, float]]:
    """Return (step, number) of each line of metrics.jsonl, in the order of the lines."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row[name]) for row in rows if name in row]


def weights(output: Path) -> dict[str, array.array[float]]:
    """Return the fp32 numbers of each tensor; the tests' own Python has no torch."""
    data = (output / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, facts in header.items():
        assert facts["dtype"] == "F32", name
        begin, end = facts["data_offsets"]
        found[name] = array.array("f", data[start + begin : start + end])
    return found


def check_same(output: Path, expected: Path, tolerance: float) -> None:
    """Each step once, with the same losses; the same weights at the end."""
    for name in ("loss", "held_out_loss"):
        ours, theirs = losses(output, name), losses(expected, name)
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert max(abs(a - b) for (_, a), (_, b) in zip(ours, theirs)) < tolerance, name
    assert [step for step, _ in losses(output)] == list(range(1, STEPS + 1))
    one, other = weights(output), weights(expected)
    assert one.keys() == other.keys()
    assert max(abs(a - b) for name in one for a, b in zip(one[name], other[name])) < 1e-4


def test_two_nodes_do_what_one_process_does(on_two_nodes: Path, alone: Path) -> None:
    check_same(on_two_nodes, alone, 2e-5)
    # Something was learned: equal numbers of a run that does nothing would say little.
    assert losses(alone)[-1][1] < losses(alone)[0][1] - 0.5


def test_four_nodes_with_sharded_weights_do_too(work: Desk, alone: Path) -> None:
    output = distributed(work, 4, "fsdp")
    check_same(output, alone, 2e-5)
    # Where it is not set up, accelerate does DDP on CPUs and says nothing.
    checkpoint = output / f"checkpoints/checkpoint-{STEPS}"
    shards = sorted(path.name for path in (checkpoint / "pytorch_model_fsdp_0").glob("*.distcp"))
    assert shards == [f"__{rank}_0.distcp" for rank in range(4)]
    assert not (checkpoint / "model.safetensors").exists()


def wait_for_step(desk: Desk, job: str, output: Path, step: int) -> int:
    """Wait until a job's run has done a step; return how far it is."""

    def look() -> tuple[int, str]:
        done = losses(output) if (output / "metrics.jsonl").exists() else []
        return done[-1][0] if done else 0, desk.cluster.job(job)["JobState"]

    reached, state = desk.cluster.wait_until(
        look,
        lambda seen: seen[0] >= step or seen[1] not in ("PENDING", "RUNNING"),
        SLOW, f"no step {step}",
    )  # fmt: skip
    assert state == "RUNNING", logs(desk, job)
    return reached


def logs(desk: Desk, job: str) -> str:
    """Return what a submitted job and its starts have said."""
    return "".join(path.read_text() for path in sorted((desk.folder / "logs").glob(f"*-{job}.*")))


def test_a_dead_node_costs_the_steps_since_the_last_checkpoint(
    cluster: Cluster, work: Desk, on_two_nodes: Path
) -> None:
    # A step exchanges a megabyte: on a slow link it takes a second, whatever the CPUs.
    cluster.set_speed("n1", "8mbit")
    options = ["--requeue", "--torchrun", "--nodes=2", "--gpus=2", "--nproc-per-node=1"]
    words = [*options, "--time=30", "--nodelist=n1,n2", "--", *sft("killed", "--strategy=ddp")]
    # The image is unpacked for such a job, and a node's /tmp counts as memory here.
    env = {**ONE_THREAD, "LLM_LOCAL_DIR": str(cluster.shared)}
    job = work.submit(*words, image=TORCH, env=env)
    output = work.folder / "killed"
    reached = wait_for_step(work, job, output, 2 * SAVE_EVERY + 1)
    cluster.kill_node("n2")
    assert reached < STEPS - 2, "too late to show anything"
    cluster.wait(job, "PENDING", SLOW)
    # The next one, where the node could run on for a while.
    saved = max(int(path.parent.name.partition("-")[2]) for path in output.glob(SEALS))
    assert 2 * SAVE_EVERY <= saved < STEPS, "too late to show anything"
    cluster.start_node("n2")
    end = cluster.wait(job, ["COMPLETED", "FAILED"], SLOW)
    assert end["JobState"] == "COMPLETED" and end["Restarts"] == "1", logs(work, job)
    log = work.read(f"logs/sft-{job}.r1.log")
    assert f"going on after step {saved}, from" in log, log
    check_same(output, on_two_nodes, 1e-5)
    assert json.loads((output / "run.json").read_text())["status"] == "complete"


def test_a_folder_of_each_node_is_refused(cluster: Cluster, work: Desk) -> None:
    job, log = sbatch(work, 2, ["--torchrun", "--nproc-per-node=1", *sft("/tmp/out")])
    assert log.count("/tmp/out is not the same folder on all nodes") == 1, log
    assert "1 of 2 processes don't see what the first one wrote there" in log
    assert "choose an --output on a file system that all nodes share" in log
    assert cluster.job(job)["JobState"] == "FAILED"
    assert "loading tiny" not in log  # before any of the long work
