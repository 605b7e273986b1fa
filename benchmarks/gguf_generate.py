"""generate.py for GGUF models against llama-bench, and sequences at once against one by one.

    llm-run python benchmarks/gguf_generate.py --output build/benchmarks/gguf_generate.json

A model of 0.54 B random parameters (a tiny one would measure Python). Both process a prompt of the
same length and generate as many tokens after it (llama-bench: `-d`), with the same threads, each in
a process of its own, in turn; ratios of each round, their medians. Loading counts in neither. Exits
with 1 if generate.py reaches less than 0.97 of llama-bench's tokens/s.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from gguf_models import make_model, prompt_of

from llm_recipes.cli import run_recipe

HOME = Path(__file__).resolve().parents[1]
LIMIT = 0.97


def benchmark(
    shape: str = "0.5b",
    type: str = "Q4_K_M",
    folder: Path = HOME / "build/benchmarks/gguf",
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    rounds: int = 5,
    at_once: list[int] | None = None,
    sequences: int = 32,
    sequence_tokens: int = 64,
    threads: int | None = None,
    output: Path | None = None,
) -> int:
    """Time generate.py and llama-bench in turn, then several sequences at once.

    Args:
        shape: Of the model: 0.5b, 1.1b, or tiny to try the program.
        type: Quantization type.
        folder: Where models are kept.
        prompt_tokens: Of the prompt.
        new_tokens: To generate.
        rounds: Pairs of measurements.
        at_once: Sequences at once; repeat the option; null: 1 2 4 8 16 32.
        sequences: How many there are to complete.
        sequence_tokens: Tokens of each prompt, and of each answer.
        threads: Null: as many as cores were granted.
        output: JSON file for the results; null: none.
    """
    from llm_recipes.device import choose_device, device_name
    from llm_recipes.files import write_text
    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.threads import granted_threads

    model = make_model(shape, type, folder)
    count = threads or granted_threads().generate
    pairs = [pair(model, prompt_tokens, new_tokens, count) for _ in range(rounds)]
    rows = {name: summary(name, pairs) for name in ("prompt", "generate")}
    for name, row in rows.items():
        print(f"{name}: {describe(row)}", flush=True)
    parallel = []
    for number in at_once or [1, 2, 4, 8, 16, 32]:
        metrics = generate(model, sequence_tokens, sequence_tokens, count, sequences, number)
        parallel.append({"at_once": number, "tokens_per_s": metrics["tokens_per_s"]})
        one = parallel[0]["tokens_per_s"]
        parallel[-1]["against_one"] = metrics["tokens_per_s"] / one
        print(f"{number} at once: {metrics['tokens_per_s']:.1f} tokens/s", flush=True)
    passed = all(row["ratio"] >= LIMIT for row in rows.values())
    result = {
        "benchmark": "gguf_generate",
        "parameters": read_gguf(model).parameters,
        "type": type,
        "cpu": device_name(choose_device("cpu")),
        "threads": count,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "limit": LIMIT,
        "load_average": os.getloadavg()[0],
        **rows,
        "sequences": sequences,
        "sequence_tokens": sequence_tokens,
        "parallel": parallel,
        "passed": passed,
    }
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(result, indent=2) + "\n")
    return 0 if passed else 1


def pair(model: Path, prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, Any]:
    """One of each, tokens/s of prompt and generation."""
    ours = generate(model, prompt_tokens, new_tokens, threads)
    theirs = llama_bench(model, prompt_tokens, new_tokens, threads)
    return {
        "prompt": (ours["prompt_tokens_per_s"], theirs["prompt"]),
        "generate": (ours["decode_tokens_per_s"], theirs["generate"]),
    }


def generate(
    model: Path,
    prompt_tokens: int,
    new_tokens: int,
    threads: int,
    sequences: int = 1,
    at_once: int = 1,
) -> dict[str, Any]:
    """What generate.py's record says of a run; it must have made exactly these tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        prompts, answers = Path(scratch) / "prompts.txt", Path(scratch) / "answers.jsonl"
        # Each begins with another letter: nothing is shared.
        texts = [prompt_of(prompt_tokens, chr(ord("A") + n % 58)) for n in range(sequences)]
        prompts.write_text("\n".join(texts) + "\n", encoding="utf-8")
        command = [sys.executable, str(HOME / "recipes/quantized/generate.py")]
        command += [f"--model={model}", f"--prompts={prompts}", f"--output={answers}"]
        command += [f"--max-new-tokens={new_tokens}", "--ignore-eos", "--prompt-style=raw"]
        command += [f"--threads={threads}", f"--prompt-threads={threads}", "--gpu-layers=0"]
        command += [f"--parallel={at_once}"]
        run(command)
        record = json.loads((Path(scratch) / "answers.run.json").read_text(encoding="utf-8"))
    metrics: dict[str, Any] = record["metrics"]
    made = (metrics["prompt_tokens"], metrics["generated_tokens"])
    if made != (sequences * prompt_tokens, sequences * new_tokens):
        raise RuntimeError(f"generate.py processed and made {made} tokens")
    return metrics


def llama_bench(model: Path, prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, float]:
    """Tokens/s of llama-bench: a prompt, and generation after such a prompt."""
    found = {}
    for name, options in (
        ("prompt", ["-p", prompt_tokens, "-n", 0]),
        ("generate", ["-p", 0, "-n", new_tokens, "-d", prompt_tokens]),
    ):
        command = ["llama-bench", "-m", model, "-t", threads, "-r", 1, "-o", "jsonl", *options]
        text = run([*map(str, command), "-ngl", "0", "-dev", "none"])
        found[name] = float(json.loads(text)["avg_ts"])
    return found


def run(command: list[str]) -> str:
    """Run a program; its standard output."""
    env = {**os.environ, "PYTHONPATH": str(HOME / "recipes"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def summary(name: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds, and of their ratios."""
    ours, theirs = zip(*(found[name] for found in pairs), strict=True)
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        "ours_tokens_per_s": statistics.median(ours),
        "llama_bench_tokens_per_s": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def describe(row: dict[str, Any]) -> str:
    """A result in a line."""
    return (
        f"generate.py {row['ours_tokens_per_s']:.1f} tokens/s, "
        f"llama-bench {row['llama_bench_tokens_per_s']:.1f}, ratio {row['ratio']:.3f} "
        f"({min(row['ratios']):.3f} to {max(row['ratios']):.3f})"
    )


if __name__ == "__main__":
    run_recipe(benchmark)
