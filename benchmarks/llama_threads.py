"""llama.cpp's default number of threads against ours and the tuned one: all CPUs, and under quotas.

    llm-run python benchmarks/llama_threads.py --model random-0.5B-Q4_K_M.gguf

Where a control group can be made (root, on the host), the quota is a real one; elsewhere one CPU is
emulated by affinity, on which the default still starts a thread for each core of the node. Prompts
and generation by llama-bench, each way in turn, medians. Prints a table, and JSON with --output.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from cpu_group import cpu_group

from llm_recipes.cli import run_recipe

TUNE = Path(__file__).resolve().parents[1] / "recipes" / "quantized" / "tune.py"
GRANTED = (
    "from llm_recipes.gguf.threads import *; cores = granted_cores(); "
    "print(cores.generate, cores.prompt, cores.default)"
)
WORKS = ("generate", "prompt")


@dataclass(frozen=True)
class Scenario:
    """CPUs for a program: the words to put before its command, and what they give it."""

    name: str
    cpus: float
    emulated: bool
    enter: tuple[str, ...]


def benchmark(
    model: Path,
    quotas: list[float] | None = None,
    prompt_tokens: int = 512,
    new_tokens: int = 64,
    rounds: int = 3,
    output: Path | None = None,
) -> None:
    """Time the default, granted and tuned threads in interleaved rounds, with all CPUs and fewer.

    Args:
        model: GGUF file.
        quotas: CPUs' worth of time to measure under; repeat the option for several; null: 1.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens to generate.
        rounds: Measurements of each.
        output: JSON file for the results; null: none.
    """
    from llm_recipes.cpu_topology import cpu_model
    from llm_recipes.files import write_text
    from llm_recipes.gguf.file import read_gguf

    file = read_gguf(model)
    tokens = {"generate": new_tokens, "prompt": prompt_tokens}
    rows = []
    for scenario in scenarios(quotas or [1.0]):
        rows += measure(scenario, file.path, tokens, rounds)
        print(table(rows[-len(WORKS) :]), flush=True)
    result = {
        "benchmark": "llama_threads",
        "architecture": file.architecture,
        "parameters": file.parameters,
        "type": file.file_type,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }
    if output is not None:
        write_text(output, json.dumps(result, indent=2) + "\n")


def scenarios(quotas: Sequence[float]) -> Iterator[Scenario]:
    """All CPUs of ours, then each quota, one after the other; emulated where none can be made."""
    mine = sorted(os.sched_getaffinity(0))
    yield Scenario(f"{len(mine)} CPUs", len(mine), False, ())
    for quota in quotas:
        with ExitStack() as here:
            try:
                enter = here.enter_context(cpu_group(quota))
                yield Scenario(f"a quota of {quota:g} of them", quota, False, tuple(enter))
            except OSError as error:
                print(f"no quota can be set here, one CPU instead: {error}", file=sys.stderr)
                yield Scenario("1 of them by affinity", 1, True, ("taskset", "-c", str(mine[0])))


def measure(
    scenario: Scenario, model: Path, tokens: dict[str, int], rounds: int
) -> list[dict[str, Any]]:
    """Tune there, then measure each number of threads in turn; one row for each kind of work.

    What chose the same number is the same: it is measured once.
    """
    generate, prompt, default = granted_there(scenario)
    granted = {"generate": generate, "prompt": prompt}
    tuned = tuned_there(scenario, model)
    rows = []
    for work in WORKS:
        threads = {"default": default, "granted": granted[work], "tuned": tuned[work]}
        rates: dict[int, list[float]] = {count: [] for count in threads.values()}
        for _ in range(rounds):
            for count, found in rates.items():
                found.append(bench(scenario, model, work, tokens[work], count))
        rows.append(
            {
                "scenario": scenario.name,
                "cpus": scenario.cpus,
                "emulated": scenario.emulated,
                "work": work,
                "threads": threads,
                "tokens_per_s": {
                    name: statistics.median(rates[count]) for name, count in threads.items()
                },
                "ratio": {
                    name: ratio(rates[count], rates[default]) for name, count in threads.items()
                },
                "all_tokens_per_s": {str(count): found for count, found in rates.items()},
            }
        )
    return rows


def granted_there(scenario: Scenario) -> list[int]:
    """Threads that we choose without measuring, for each kind of work, and llama.cpp's default."""
    from llm_recipes.gguf.programs import run_program

    said = run_program([*scenario.enter, sys.executable, "-c", GRANTED], env=recipe_environment())
    return [int(word) for word in said.split()]


def tuned_there(scenario: Scenario, model: Path) -> dict[str, int]:
    """Threads that tune.py chooses."""
    from llm_recipes.gguf.programs import run_program

    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "tune.json"
        command = [*scenario.enter, sys.executable, str(TUNE), "--model", str(model)]
        env = {**recipe_environment(), "LLM_CACHE_DIR": folder}
        run_program([*command, "--output", str(record)], env=env)
        found = json.loads(record.read_text())["metrics"]
    return {"generate": found["threads"], "prompt": found["prompt_threads"]}


def bench(scenario: Scenario, model: Path, work: str, tokens: int, threads: int) -> float:
    """Tokens a second by llama-bench."""
    from llm_recipes.gguf.programs import run_program

    counts = (0, tokens) if work == "generate" else (tokens, 0)
    command = [*scenario.enter, "llama-bench", "-m", str(model), "-o", "jsonl", "-r", "1"]
    command += ["-p", str(counts[0]), "-n", str(counts[1]), "-t", str(threads)]
    return float(json.loads(run_program([*command, "-ngl", "0", "-dev", "none"]))["avg_ts"])


def recipe_environment() -> dict[str, str]:
    """This process's environment, in which Python finds the recipes' library."""
    return {**os.environ, "PYTHONPATH": str(TUNE.parents[1])}


def ratio(rates: Sequence[float], default: Sequence[float]) -> float:
    """How many times as fast as the default, on the median of the rounds."""
    return statistics.median(one / other for one, other in zip(rates, default))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lines for people."""
    lines = []
    for row in rows:
        cells = [
            f"{name} {row['threads'][name]} threads {row['tokens_per_s'][name]:.1f} tokens/s "
            f"({row['ratio'][name]:.2f})"
            for name in row["threads"]
        ]
        lines.append(f"{row['scenario']}, {row['work']}: {'; '.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_recipe(benchmark)
