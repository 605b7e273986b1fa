"""What llm-run adds to the start of a program: `llm-run true` against bare `apptainer exec`.

    python3 benchmarks/launch.py --pairs 30 --json launch.json

Both start `true` in the same image, one after the other in turn, so that whatever else the machine
does meets both alike. Medians of all pairs; the difference is the median of the pairs' differences.
On a busy machine processes wait for a processor, and the difference measures that wait;
as root, `chrt -f 10 python3 benchmarks/launch.py` goes before all others.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results import write_json

LLM_RUN = str(Path(__file__).resolve().parents[1] / "bin" / "llm-run")
# What the project promises, in milliseconds of difference: at most, and the goal.
LIMIT_MS = 60.0
GOAL_MS = 40.0


def bare_command(image: str) -> list[str]:
    """Return the shortest `apptainer exec` that works here, with the image that llm-run takes."""
    line = subprocess.run(
        [LLM_RUN, "--image", image, "--dry-run", "true"], check=True, capture_output=True, text=True
    ).stdout
    words = shlex.split(line)
    program = next(i for i, word in enumerate(words) if word == "exec") - 2
    flags = ["--userns"] if "--userns" in words else []
    return [words[program], "-q", "exec", *flags, words[-2], "true"]


def start(command: list[str]) -> tuple[float, float]:
    """Return how long a command takes, and how much processor time it needs, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (end - begin) * 1000, cpu * 1000


def measure(image: str, pairs: int) -> dict[str, object]:
    """Return the times of `pairs` pairs of starts, in milliseconds, and what follows from them."""
    ours = [LLM_RUN, "--image", image, "true"]
    bare = bare_command(image)
    for command in (ours, bare):  # the first start fills file caches and asks the image once
        start(command)
    load = os.getloadavg()[0]
    bare_starts, our_starts = [], []
    for number in range(pairs):
        # In turn, so that neither always comes first.
        for which in (0, 1) if number % 2 else (1, 0):
            if which:
                bare_starts.append(start(bare))
            else:
                our_starts.append(start(ours))
    bare_ms, bare_cpu = (statistics.median(column) for column in zip(*bare_starts))
    ours_ms, ours_cpu = (statistics.median(column) for column in zip(*our_starts))
    difference = statistics.median(b[0] - a[0] for a, b in zip(bare_starts, our_starts))
    return {
        "benchmark": "launch",
        "command": "python3 benchmarks/launch.py " + " ".join(sys.argv[1:]),
        "image": Path(bare[-2]).name,
        "pairs": pairs,
        "cpus": os.cpu_count(),
        "load_average": round(load, 1),
        "python": platform.python_version(),
        "apptainer_exec_ms": round(bare_ms, 1),
        "llm_run_ms": round(ours_ms, 1),
        "difference_ms": round(difference, 1),
        "difference_cpu_ms": round(ours_cpu - bare_cpu, 1),
        "ratio": round(ours_ms / bare_ms, 3),
        "limit_ms": LIMIT_MS,
        "goal_ms": GOAL_MS,
        "passed": difference <= LIMIT_MS,
    }


def main() -> int:
    """Measure, print a table, write the JSON; exit status 1 when the limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", default="llm-cpu", help="name or path [llm-cpu]")
    parser.add_argument("--pairs", type=int, default=30, help="pairs of starts to measure [30]")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error("--pairs must be at least 1")
    try:
        result = measure(arguments.image, arguments.pairs)
    except subprocess.CalledProcessError as error:
        print(error.stderr or error, file=sys.stderr, end="")
        return 2
    print("| start of `true` | median, ms |\n|---|---|")
    print(f"| apptainer exec | {result['apptainer_exec_ms']} |")
    print(f"| llm-run | {result['llm_run_ms']} |")
    print(f"| difference (limit {LIMIT_MS:.0f}, goal {GOAL_MS:.0f}) | {result['difference_ms']} |")
    print(f"| difference in processor time | {result['difference_cpu_ms']} |")
    print(f"| ratio | {result['ratio']} |")
    if arguments.json:
        write_json(arguments.json, result)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
