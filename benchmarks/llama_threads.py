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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from cpu_group import cpu_group

from llm_recipes.cli import run_recipe

if TYPE_CHECKING:
    from llm_recipes.gguf.sweep import Setting

TUNE = Path(__file__).resolve().parents[1] / "recipes" / "quantized" / "tune.py"
# In the scenario, as recipes do it: threads, their CPUs and the NUMA strategy.
GRANTED = """
import dataclasses, json
from llm_recipes.gguf.sweep import plan_for
from llm_recipes.gguf.threads import granted_cores
plans = {work: plan_for(granted_cores(), work) for work in ("generate", "prompt")}
print(json.dumps({work: dataclasses.asdict(plan) for work, plan in plans.items()}))
"""
RATE = """
import json, pathlib, sys
from llm_recipes.gguf.file import read_gguf
from llm_recipes.gguf.sweep import Setting
from llm_recipes.gguf.threads import granted_cores
from llm_recipes.gguf.tuning import bench_rate
model, work, setting, tokens = sys.argv[1:]
setting = Setting(**json.loads(setting))
print(bench_rate(read_gguf(pathlib.Path(model)), work, setting, int(tokens), granted_cores()))
"""
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
    """Tune there, then measure each way in turn; one row for each kind of work.

    Ways that chose the same are the same: it is measured once.
    """
    granted = granted_there(scenario)
    tuned = tuned_there(scenario, model)
    rows = []
    for work in WORKS:
        ways = {**granted[work], "tuned": tuned[work]}
        rates: dict[Setting, list[float]] = {setting: [] for setting in ways.values()}
        for _ in range(rounds):
            for setting, found in rates.items():
                found.append(bench(scenario, model, work, tokens[work], setting))
        default = ways["default"]
        rows.append(
            {
                "scenario": scenario.name,
                "cpus": scenario.cpus,
                "emulated": scenario.emulated,
                "work": work,
                "threads": {name: way.threads for name, way in ways.items()},
                "settings": {name: asdict(way) for name, way in ways.items()},
                "tokens_per_s": {name: statistics.median(rates[way]) for name, way in ways.items()},
                "ratio": {name: ratio(rates[way], rates[default]) for name, way in ways.items()},
                "all_tokens_per_s": {str(way): found for way, found in rates.items()},
            }
        )
    return rows


def granted_there(scenario: Scenario) -> dict[str, dict[str, Setting]]:
    """What we choose without measuring, for each kind of work, and llama.cpp's default."""
    from llm_recipes.gguf.sweep import Setting

    plans = json.loads(python_there(scenario, GRANTED))
    names = ("default", "granted")
    return {work: {name: Setting(**plan[name]) for name in names} for work, plan in plans.items()}


def tuned_there(scenario: Scenario, model: Path) -> dict[str, Setting]:
    """What tune.py chooses."""
    from llm_recipes.gguf.programs import run_program
    from llm_recipes.gguf.sweep import Setting

    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "tune.json"
        command = [*scenario.enter, sys.executable, str(TUNE), "--model", str(model)]
        env = {**recipe_environment(), "LLM_CACHE_DIR": folder}
        run_program([*command, "--output", str(record)], env=env)
        found = json.loads(record.read_text())["metrics"]
    threads = {"generate": found["threads"], "prompt": found["prompt_threads"]}
    return {work: Setting(threads[work], found["pinned"], found["numa"]) for work in WORKS}


def bench(scenario: Scenario, model: Path, work: str, tokens: int, setting: Setting) -> float:
    """Tokens a second by llama-bench."""
    words = [str(model), work, json.dumps(asdict(setting)), str(tokens)]
    return float(python_there(scenario, RATE, *words))


def python_there(scenario: Scenario, script: str, *words: str) -> str:
    """What a script prints on the scenario's CPUs."""
    from llm_recipes.gguf.programs import run_program

    command = [*scenario.enter, sys.executable, "-c", script, *words]
    return run_program(command, env=recipe_environment())


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
