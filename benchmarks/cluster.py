"""What starting costs under Slurm: many tasks on one node, and a job by `llm-run --submit`.

    python3 benchmarks/cluster.py --runs 5 --json cluster.json

On a cluster in a box of one node (root). Tasks: the time from `srun` until the last of N tasks runs
its program, for a bare program, for `apptainer exec` with and without --sharens, and for llm-run.
With --sharens the tasks of a node share one mount of the image. Submission: `llm-run --submit`
against `sbatch` of the script that it writes, in turn. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cluster"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bin"))

from results import write_json

from _llm.apptainer import find_apptainer
from box.cgroups import find_version
from box.cluster import Cluster
from box.host import user_folders
from box.requirements import missing
from box.settings import Box

HOME = Path(__file__).resolve().parents[1]
LLM_RUN = str(HOME / "bin" / "llm-run")
TASKS = (1, 8, 32, 64)
IMAGE = "/run/llm-box/images/llm-cpu.sif"
# Seconds a task that each stays: until all have started, what shares a mount needs its maker.
STAY_S = 0.25


def start_s(cluster: Cluster, tasks: int, command: list[str]) -> float:
    """Return the seconds from srun until the last of `tasks` tasks runs.

    Raises CalledProcessError where one failed.
    """
    program = ["sh", "-c", f"date +%s.%N; sleep {tasks * STAY_S}"]
    begin = time.time()
    words = ["srun", "--nodes=1", f"--ntasks={tasks}", *command, *program]
    done = cluster.run(words, timeout=300, check=True)
    return max(float(line) for line in done.stdout.split()) - begin


def measure_tasks(cluster: Cluster, runs: int) -> list[dict[str, Any]]:
    """Return a row for each number of tasks: medians in seconds of each way to start them."""
    apptainer = find_apptainer(os.environ, str(HOME)).path
    ways = {
        "bare": [],
        "exec": [apptainer, "-q", "exec", IMAGE],
        "sharens": [apptainer, "-q", "exec", "--sharens", IMAGE],
        "llm_run": [LLM_RUN, "--image", "llm-cpu"],
    }
    start_s(cluster, 1, ways["llm_run"])  # asks the image what it contains, once
    rows = []
    for tasks in TASKS:
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, command in ways.items():
                found[way].append(start_s(cluster, tasks, command))
        row: dict[str, Any] = {"tasks": tasks}
        row.update({f"{way}_s": statistics.median(times) for way, times in found.items()})
        row["ratio"] = statistics.median(
            ours / bare for ours, bare in zip(found["llm_run"], found["exec"])
        )
        rows.append(row)
        print(row, file=sys.stderr)
    return rows


def measure_submission(cluster: Cluster, pairs: int) -> dict[str, float]:
    """Return the medians of both ways to submit a job, in milliseconds, and their difference."""
    words = [LLM_RUN, "--submit", "--image", "llm-cpu", "--hold"]
    script = cluster.run([*words, "--dry-run", "--", "true"], check=True).stdout.partition("\n")[2]
    cluster.run(["sh", "-c", 'cat > "$0"', "job.sh"], input=script, check=True)
    times: dict[str, list[float]] = {"sbatch": [], "submit": []}
    for number in range(pairs + 1):
        for way, command in (
            ("sbatch", ["sbatch", "--hold", "job.sh"]),
            ("submit", [*words, "--", "true"]),
        ):
            begin = time.perf_counter()
            cluster.run(command, check=True)
            if number:  # the first pair fills caches
                times[way].append((time.perf_counter() - begin) * 1000)
        cluster.run(["scancel", "--me"], check=True)
    return {
        "sbatch_ms": statistics.median(times["sbatch"]),
        "submit_ms": statistics.median(times["submit"]),
        "difference_ms": statistics.median(b - a for a, b in zip(times["sbatch"], times["submit"])),
    }


def main() -> int:
    """Measure in a box of its own, print the figures, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each start [5]")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of submissions [20]")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    arguments = parser.parse_args()
    lacking = missing()
    if lacking:
        print(lacking, file=sys.stderr)
        return 2
    state = tempfile.mkdtemp(prefix="llm-box-bench-", dir="/var/tmp")
    images, apptainer = user_folders()
    box = Box(state=state, nodes=1, images=images, apptainer=apptainer, cgroups=find_version())
    cluster = Cluster.up(box, attached=True)
    try:
        result = {
            "benchmark": "cluster",
            "command": "python3 benchmarks/cluster.py " + " ".join(sys.argv[1:]),
            "cpus": os.cpu_count(),
            "runs": arguments.runs,
            "pairs": arguments.pairs,
            "tasks": measure_tasks(cluster, arguments.runs),
            "submission": measure_submission(cluster, arguments.pairs),
        }
    finally:
        cluster.down()
        shutil.rmtree(state, ignore_errors=True)
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        print(error.stderr or error, file=sys.stderr, end="")
        sys.exit(1)
