"""Wall time of harness.py against lm_eval's own command line: the same tasks, model and batch size.

    llm-run python benchmarks/harness_against_lm_eval.py --model FOLDER

From the command to its end, in rounds of one of each, every other one backwards. Both write
samples; harness.py keeps answers in a folder that is empty each time. The results must be the same:
of perplexities to the rounding of batches, as lm_eval puts several tasks into one batch.
Prints the figures, and writes JSON with --output.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from results import write_json

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError

HOME = Path(__file__).resolve().parents[1]
TASKS = ("llm_arithmetic_2da", "llm_pydocs", "llm_pydocs_choice")
LIMIT = 1.02
CLOSE = 1e-5  # relative difference of perplexities


def benchmark(
    model: Path,
    rounds: int = 5,
    batch_size: int = 8,
    output: Path | None = None,
) -> int:
    """Time harness.py and lm_eval in turns; exit status 1 if harness.py takes too long.

    Args:
        model: Model folder, without a comma in its path.
        rounds: Measurements of each.
        batch_size: Requests at once, of both.
        output: JSON file for the results; null: none.
    """
    from llm_recipes.device import choose_device, device_name
    from llm_recipes.granted_cpus import granted_cpus

    folder = model.expanduser().resolve()
    seconds: dict[str, list[float]] = {"lm_eval": [], "harness": []}
    index: list[float] = []
    requests = 0
    with tempfile.TemporaryDirectory(prefix="llm-benchmark-") as made:
        for number in range(rounds):
            both = {"lm_eval": by_lm_eval, "harness": by_harness}
            found = {}
            for name in list(both) if number % 2 == 0 else reversed(both):
                place = Path(made) / "run"
                start = time.perf_counter()
                run(both[name](folder, batch_size, place))
                seconds[name].append(time.perf_counter() - start)
                found[name] = results(place)
                if name == "harness":
                    record = json.loads((place / "out" / "run.json").read_bytes())
                    requests = record["metrics"]["requests"]
                shutil.rmtree(place)
            check_same(found["lm_eval"], found["harness"])
            index.append(seconds_of_index())
            print(f"round {number + 1}: {seconds['lm_eval'][-1]:.1f} s by lm_eval, "
                  f"{seconds['harness'][-1]:.1f} s by harness.py", flush=True)
    theirs, ours = (statistics.median(seconds[name]) for name in ("lm_eval", "harness"))
    ratios = [b / a for a, b in zip(seconds["lm_eval"], seconds["harness"], strict=True)]
    reading = statistics.median(index)
    result = {
        "benchmark": "harness_against_lm_eval",
        "model": folder.name,
        "tasks": TASKS,
        "requests": requests,
        "batch_size": batch_size,
        "rounds": rounds,
        "lm_eval_s": theirs,
        "harness_s": ours,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "index_s": reading,
        "ratio_without_index": ours / (theirs - reading),
        "limit": LIMIT,
        "cpu": device_name(choose_device("cpu")),
        "cpus": granted_cpus().count,
        "load_average": os.getloadavg()[0],
        "all_seconds": seconds,
    }
    print(f"ratio {result['ratio']:.3f} (at most {LIMIT}); without the {reading:.1f} s for which "
          f"lm_eval reads its own tasks: {result['ratio_without_index']:.3f}")
    if output is not None:
        write_json(output, result)
    return 0 if statistics.median(ratios) <= LIMIT else 1


def by_lm_eval(model: Path, batch_size: int, place: Path) -> list[str]:
    """lm_eval's command line."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--log_samples"]
    command += ["--include_path", str(HOME / "recipes" / "evaluate" / "tasks")]
    command += ["--tasks", ",".join(TASKS), "--batch_size", str(batch_size)]
    return [*command, "--output_path", str(place)]


def by_harness(model: Path, batch_size: int, place: Path) -> list[str]:
    """The same by harness.py."""
    command = [sys.executable, str(HOME / "recipes" / "evaluate" / "harness.py")]
    command += ["--model", str(model), "--tasks", ",".join(TASKS), "--device", "cpu"]
    command += ["--batch-size", str(batch_size), "--cache", str(place / "answers")]
    return [*command, "--output", str(place / "out")]


def run(command: list[str]) -> None:
    """Run a program to its end.

    Raises:
        LLMError: If it fails.
    """
    paths = os.pathsep.join(filter(None, [str(HOME / "recipes"), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode != 0:
        raise LLMError(f"{command[1]} failed", done.stderr[-2000:], "run it by itself")


def results(place: Path) -> dict[str, dict[str, Any]]:
    """The results that a run has left."""
    [file] = place.rglob("results*.json")
    found: dict[str, dict[str, Any]] = json.loads(file.read_bytes())["results"]
    return found


Rows = Mapping[str, Mapping[str, Any]]


def check_same(one: Rows, other: Rows) -> None:
    """See that both have done the same work.

    Raises:
        LLMError: If a number differs by more than rounding.
    """
    for task, row in one.items():
        for name, value in row.items():
            found = other[task][name]
            same = value == found or (
                isinstance(value, float) and math.isclose(value, found, rel_tol=CLOSE)
            )
            if not same:
                raise LLMError(f"{task}: {name} differs", f"{value} by lm_eval, {found} by ours")


def seconds_of_index() -> float:
    """How long lm_eval takes to read its own task files, in a process of its own."""
    code = (
        "import time, lm_eval.tasks as t; s = time.perf_counter(); t.TaskManager(); "
        "print(time.perf_counter() - s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    run_recipe(benchmark)
