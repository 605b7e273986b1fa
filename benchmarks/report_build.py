"""How long report.py takes for many runs, and how large its files are.

    llm-run python benchmarks/report_build.py --output report_build.json

The records have made-up numbers and real sizes: of fifty runs a third are evaluations of 1668
questions with their answers (as many as TAT-QA's dev), a third trainings of 2000 steps, the others
generations. Each round starts the recipe anew, as a user does; medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HOME / "recipes"), str(HOME / "tests" / "recipes")]

from report_records import record, tatqa, write, write_generation, write_training  # noqa: E402
from results import write_json  # noqa: E402

from llm_recipes.cli import run_recipe  # noqa: E402
from llm_recipes.evaluation.run import write_tasks  # noqa: E402

QUESTIONS, STEPS, ANSWERS = 1668, 2000, 200


def measure(output: Path, runs: int = 50, rounds: int = 5) -> None:
    """Measure the time for a report.

    Args:
        output: JSON file for the result.
        runs: Records in the report.
        rounds: Starts; the median counts.
    """
    with tempfile.TemporaryDirectory(prefix="report-") as name:
        folder = Path(name)
        make_records(folder / "runs", runs)
        empty = [build(folder / "runs" / "run 1", folder / "one") for _ in range(rounds)]
        times = [build(folder / "runs", folder / "report") for _ in range(rounds)]
        sizes = {
            f"{kind}_bytes": (folder / "report" / f"report.{kind}").stat().st_size
            for kind in ("html", "md")
        }
    result = {
        "runs": runs,
        "rounds": rounds,
        "evaluations": (runs + 2) // 3,
        "questions": QUESTIONS,
        "cpus": len(os.sched_getaffinity(0)),
        "one_run_s": round(statistics.median(empty), 3),
        "seconds": round(statistics.median(times), 3),
        "slowest_s": round(max(times), 3),
        **sizes,
    }
    print(result)
    write_json(output, result)


def make_records(folder: Path, runs: int) -> None:
    """Records of evaluations, trainings and generations, in turn."""
    for n in range(runs):
        if n % 3 == 0:
            content = record("evaluate/qa", n % 24, metrics={"questions_per_s": 14.0})
            target = folder / f"run {n}"
            write_tasks(target, [tatqa(0.4 + n / 200, n, QUESTIONS)], content)
            write(target, content)
        elif n % 3 == 1:
            write_training(folder / f"run {n}", n % 24, STEPS, seed=n)
        else:
            answers = {m: (f"Question {m}?", f"Answer {m * n}.") for m in range(ANSWERS)}
            write_generation(folder / f"run {n}.jsonl", n % 24, answers)


def build(runs: Path, output: Path) -> float:
    """Start the recipe; returns the seconds it took."""
    recipe = str(HOME / "recipes" / "evaluate" / "report.py")
    start = time.monotonic()
    subprocess.run(
        [sys.executable, recipe, "--run", str(runs), "--output", str(output)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(HOME / "recipes")},
    )
    return time.monotonic() - start


if __name__ == "__main__":
    run_recipe(measure)
