"""How fast sft.py trains against other trainers on a CPU: same model, sequences and precision.

    python3 benchmarks/finetune_against_peers.py --model build/demo/tiny-llama \\
        --litgpt-python build/litgpt/bin/python \\
        --llama-recipes-python "bin/llm-run --image llama-recipes python"

Each contestant trains in a process of its own, one after the other and then again; medians. A
step's time is from the end of one optimizer step to the end of the next, measured alike for all by
peers/stopwatch.py; a rate counts tokens without padding, and leaves out the first two steps, as
sft.py's own does. Loading counts in none. Contestants whose Python is not given, or which can't do
a case, are left out with a note. The environment for LitGPT:

    python3.11 -m venv build/litgpt
    build/litgpt/bin/pip install litgpt==0.5.13 torch==2.13.0+cpu requests transformers

Exits with 1 if sft.py reaches less than 0.98 of the best. --profile also runs a bare loop with
sft.py's batches and attention, and says how much longer a step of sft.py is.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from results import write_json

HOME = Path(__file__).resolve().parents[1]
PEERS = HOME / "benchmarks/peers"
LIMIT, GOAL = 0.98, 1.0
FIRST_STEPS = 2  # that warm up, as in sft.py's record
SAME_LOSS = 1e-4
SCRIPTS = {
    "sft": "sft.py", "loop": "transformers_trainers.py", "trainer": "transformers_trainers.py",
    "trl": "transformers_trainers.py", "litgpt": "litgpt_trainer.py",
    "llama-recipes": "llama_recipes_trainer.py",
}
UNPACKED_ONLY = ("litgpt", "llama-recipes")  # packed sequences would see each other


@dataclass(frozen=True)
class Case:
    """What is trained. global_batch: sequences, or packed rows, a step."""

    method: str
    packing: bool
    learn_prompt: bool
    global_batch: int
    max_length: int = 512
    lora_rank: int = 16
    learning_rate: float = 1e-4
    seed: int = 0

    @property
    def name(self) -> str:
        """For people."""
        rows = "packed rows" if self.packing else "sequences"
        learned = "all tokens" if self.learn_prompt else "responses only"
        return f"{self.method}, {self.global_batch} {rows} a step, loss of {learned}"


CASES = tuple(
    Case(method, packing, learn_prompt, 8 if packing else 32)
    for method in ("lora", "full")
    for packing, learn_prompt in ((False, True), (False, False), (True, True))
)


def run(command: list[str], case: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """One training in a process of its own: its result, or an `error` in a line."""
    result = Path(case["result"])
    result.unlink(missing_ok=True)
    described = result.with_suffix(".case.json")
    described.write_text(json.dumps(case, indent=2))
    log = result.with_suffix(".log")
    env = {**os.environ, "OMP_NUM_THREADS": str(case["threads"]), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        try:
            status = subprocess.run(
                [*command, str(described)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=env, cwd=HOME, timeout=limit_s, check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {limit_s:.0f} s"}
        except OSError as error:
            return {"error": f"{command[0]}: {error.strerror}"}
    if status == 0 and result.exists():
        return json.loads(result.read_text())
    last = log.read_text(errors="replace").strip().splitlines() or ["no word"]
    return {"error": f"status {status}: {last[-1][:200]} ({log})"}


def rate(seconds: list[float], tokens: list[int]) -> float:
    """Tokens a second: the median of the steps."""
    # The first step's time is not known: it has no step before it.
    steps = list(zip(tokens[1:], seconds))[FIRST_STEPS - 1 :]
    return statistics.median(count / second for count, second in steps)


def same_losses(ours: list[float], others: list[float], method: str, name: str) -> float:
    """The largest difference of the losses that must be the same: of the first step, and of the
    second and third where the whole model is trained by the same optimizer from the same weights.
    """
    count = 3 if method == "full" and name not in UNPACKED_ONLY else 1
    pairs = list(zip(ours[:count], others[:count]))
    return max(abs(a - b) for a, b in pairs)


def measure(case: Case, pythons: dict[str, list[str]], options: argparse.Namespace) -> Any:
    """All contestants of a case, in turn."""
    folder = options.work / f"{case.method}-{case.packing:d}{case.learn_prompt:d}"
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        **asdict(case), "model": str(options.model.resolve()), "steps": options.steps,
        "threads": options.threads, "folder": str(folder), "examples": 4000,
        "data": str(options.work / "instructions.json"), "batches": str(folder / "batches.jsonl"),
    }
    described = folder / "prepare.json"
    described.write_text(json.dumps(common))
    subprocess.run(
        [*pythons["sft"], str(PEERS / "prepare_batches.py"), str(described)], check=True, cwd=HOME
    )
    batches = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
    tokens = [sum(len(row["input_ids"]) for row in rows) for rows in batches]
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    notes: dict[str, str] = {}
    if case.packing:
        notes = dict.fromkeys(UNPACKED_ONLY, "can't keep packed sequences apart")
    for _ in range(options.rounds):
        for name, python in pythons.items():
            if name in notes:
                continue
            result = str(folder / f"{name}.json")
            mine = {**common, "contestant": name, "result": result}
            found = run([*python, str(PEERS / SCRIPTS[name])], mine, options.limit)
            if "error" in found and name == "sft":
                raise RuntimeError(f"sft.py: {found['error']}")
            if "error" in found:
                notes[name] = found["error"]
            else:
                seen[name].append(found)
    return compare(case, seen, tokens, notes)


def compare(
    case: Case, seen: dict[str, list[dict[str, Any]]], tokens: list[int], notes: dict[str, str]
) -> dict[str, Any]:
    """Rates and ratios of a case. Raises RuntimeError if sft.py did other work than it should."""
    for found in seen["sft"]:
        if found["tokens"] != tokens:
            raise RuntimeError("sft.py's steps had other tokens than the peers'")
    ours = [rate(found["seconds"], tokens) for found in seen["sft"]]
    rows: dict[str, Any] = {}
    for name, runs in seen.items():
        if name in notes or not runs:
            rows[name] = {"note": notes.get(name, "not run")}
            continue
        rates = [rate(found["seconds"], tokens) for found in runs]
        steps = [statistics.median(found["seconds"][1:]) for found in runs]
        differs = same_losses(seen["sft"][0]["losses"], runs[0]["losses"], case.method, name)
        rows[name] = {
            "tokens_per_s": statistics.median(rates),
            "step_s": statistics.median(steps),
            "ratio": statistics.median(a / b for a, b in zip(ours, rates)),
            "loss_difference": differs,
            "same_loss": differs <= SAME_LOSS,
            "first_loss": runs[0]["losses"][0],
            "cpu_ratio": cpu_ratio(seen["sft"], runs),
            "rates": rates,
        }
    peers = {n: r for n, r in rows.items() if n not in ("sft", "loop") and "ratio" in r}
    fair = {n: r for n, r in peers.items() if r["same_loss"]}
    best = min(fair, key=lambda name: fair[name]["ratio"], default=None)
    return {
        "case": asdict(case), "name": case.name, "tokens_a_step": statistics.mean(tokens),
        "contestants": rows, "best_peer": best, "ratio": fair[best]["ratio"] if best else None,
        "overhead_ms": overhead(seen),
    }


def cpu_ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Their CPU time a step by ours: what the ratio would be if nothing else ran."""
    spent = [
        statistics.median(second for found in runs for second in found["cpu_seconds"][1:])
        for runs in (theirs, ours)
    ]
    return spent[0] / spent[1]


def overhead(seen: dict[str, list[dict[str, Any]]]) -> float | None:
    """Milliseconds that a step of sft.py takes longer than the same step of a bare loop."""
    if not seen.get("loop"):
        return None
    return 1000 * statistics.median(
        a - b
        for ours, loops in zip(seen["sft"], seen["loop"])
        for a, b in zip(ours["seconds"][1:], loops["seconds"][1:])
    )


def describe(row: dict[str, Any]) -> str:
    """Lines for people."""
    lines = [f"{row['name']} ({row['tokens_a_step']:.0f} tokens)"]
    for name, found in row["contestants"].items():
        if "note" in found:
            lines.append(f"  {name:14s} {found['note']}")
            continue
        differs = "" if found["same_loss"] else "  OTHER LOSS"
        lines.append(
            f"  {name:14s} {found['tokens_per_s']:8.0f} tokens/s  sft/this {found['ratio']:.3f} "
            f"(by CPU time {found['cpu_ratio']:.3f})  "
            f"loss {found['first_loss']:.6f} (differs by {found['loss_difference']:.1e}){differs}"
        )
    if row["overhead_ms"] is not None:
        lines.append(f"  sft.py over a bare loop: {row['overhead_ms']:.1f} ms a step")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ours = f"{shlex.quote(str(HOME / 'bin/llm-run'))} --image llm-cpu python"
    parser.add_argument("--model", type=Path, required=True, help="folder of a Llama")
    parser.add_argument("--peers", default="trainer,trl,litgpt,llama-recipes",
                        help="which, separated by commas [%(default)s]")
    parser.add_argument("--python", default=ours,
                        help="command that runs Python for sft.py, trainer and trl [llm-run's]")
    parser.add_argument("--litgpt-python", help="Python with LitGPT [left out]")
    parser.add_argument("--llama-recipes-python", help="Python with llama-recipes [left out]")
    parser.add_argument("--cases", help="only those with this in their names: 'lora, 32' [all]")
    parser.add_argument("--rounds", type=int, default=3,
                        help="times that each contestant trains [%(default)s]")
    parser.add_argument("--steps", type=int, default=22,
                        help="optimizer steps of a training [%(default)s]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of a training [this process's CPUs]")
    parser.add_argument("--limit", type=float, default=1200,
                        help="seconds for a training [%(default)s]")
    parser.add_argument("--work", type=Path, default=HOME / "build/benchmarks/finetune",
                        help="folder for batches, logs and outputs [%(default)s]")
    parser.add_argument("--profile", action="store_true", help="measure a bare loop too")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    return parser.parse_args()


def main() -> int:
    """Measure all cases."""
    options = parse()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    given = {
        "trainer": options.python, "trl": options.python, "litgpt": options.litgpt_python,
        "llama-recipes": options.llama_recipes_python,
    }
    wanted = options.peers.split(",")
    unknown = sorted(set(wanted) - set(given))
    if unknown:
        print(f"unknown peers: {', '.join(unknown)} (known: {', '.join(given)})", file=sys.stderr)
        return 2
    pythons = {"sft": shlex.split(options.python)}
    if options.profile:
        pythons["loop"] = shlex.split(options.python)
    for name in wanted:
        if given[name]:
            pythons[name] = shlex.split(given[name])
        else:
            print(f"{name} is left out: no --{name}-python", file=sys.stderr)
    cases = [case for case in CASES if not options.cases or options.cases in case.name]
    rows = []
    for case in cases:
        rows.append(measure(case, pythons, options))
        print(describe(rows[-1]), flush=True)
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    result = {
        "benchmark": "finetune_against_peers", "rounds": options.rounds, "steps": options.steps,
        "threads": options.threads, "load_average": os.getloadavg()[0], "limit": LIMIT,
        "goal": GOAL, "rows": rows, "worst_ratio": min(ratios, default=None),
        "measured": time.strftime("%Y-%m-%d"),
    }
    if options.json:
        write_json(options.json, result)
    return 1 if ratios and min(ratios) < LIMIT else 0


if __name__ == "__main__":
    raise SystemExit(main())
