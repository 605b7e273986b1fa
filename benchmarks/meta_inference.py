"""sharded.py in one and two processes against transformers with the same weights, on a CPU.

    llm-run python benchmarks/meta_inference.py --output build/benchmarks/meta_inference.json

A Llama of 0.2 B random parameters in fp32 (a tiny one would measure Python), made by tiny.py and
converted by reshard.py. Each measurement is a process, or one for each shard, of its own, in turn;
files are in memory; greedy, the same prompts, as many tokens from each. transformers is measured
twice: its own `generate`, which may generate a little first, and generate.py. Loading counts only
where it says so. Exits with 1 if one process of sharded.py reaches less than 0.97 of `generate`.

Memory of each process, by a run before: the kernel's figures. RSS counts the pages of mapped files
too, which all programs share and which the kernel takes back when it needs them; anonymous memory
is the process's own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from llm_recipes.cli import run_recipe

HOME = Path(__file__).resolve().parents[1]
RECIPES = HOME / "recipes"
SHAPES = {
    "0.2b": {"hidden-size": 1024, "intermediate-size": 2816, "layers": 16, "heads": 16},
    "tiny": {"hidden-size": 64, "intermediate-size": 128, "layers": 2, "heads": 4},
}
KV_HEADS = {"0.2b": 4, "tiny": 2}
DEGREES = (1, 2)
# sharded.py in one process / transformers' generate. One prompt at a time, both wait for memory.
GOAL, LIMIT = 1.0, 0.97
SECONDS_BETWEEN_LOOKS = 0.1
SENTENCE = "The value of the first of these names is looked up before the others are, and "


def benchmark(
    shape: str = "0.2b",
    folder: Path = HOME / "build/benchmarks/meta",
    batches: list[int] | None = None,
    new_tokens: int = 64,
    rounds: int = 5,
    output: Path | None = None,
) -> int:
    """Time them in turn, at several batch sizes.

    Args:
        shape: Of the model: 0.2b, or tiny to try the program.
        folder: Where the models are kept.
        batches: Prompts at once; repeat the option; null: 1 and 16.
        new_tokens: Tokens a completion, exactly.
        rounds: Measurements of each.
        output: JSON file for the results; null: none.
    """
    from results import write_json

    from llm_recipes.device import choose_device, device_name, use_granted_cpus

    models = make_models(folder.expanduser().absolute(), shape)
    memory = {name: memory_of(name, models, new_tokens) for name in models}
    rows = []
    for batch in batches or [1, 16]:
        found = [
            {name: measure(name, models, batch, new_tokens) for name in models}
            for _ in range(rounds)
        ]
        rows.append({"batch": batch, **summary(found)})
        print(line(rows[-1]), flush=True)
    passed = all(row["methods"]["sharded.py 1"]["ratio"] >= LIMIT for row in rows)
    if output is not None:
        result = {
            "benchmark": "meta_inference",
            "shape": shape,
            "weight_bytes": sum(f.stat().st_size for f in models["generate"].glob("*.safetensors")),
            "dtype": "fp32",
            "cpu": device_name(choose_device("cpu")),
            "cpus": use_granted_cpus(),
            "load_average": os.getloadavg()[0],
            "new_tokens": new_tokens,
            "rounds": rounds,
            "goal": GOAL,
            "limit": LIMIT,
            "rows": rows,
            "memory": memory,
            "passed": passed,
        }
        write_json(output, result)
    return 0 if passed else 1


def make_models(folder: Path, shape: str) -> dict[str, Path]:
    """The folder that each contestant runs; models that are there already are kept."""
    hf = folder / shape
    if not (hf / "config.json").exists():
        sizes = {**SHAPES[shape], "kv-heads": KV_HEADS[shape], "steps": 0}
        options = [f"--{name}={number}" for name, number in sizes.items()]
        run([sys.executable, RECIPES / "data/tiny.py", f"--output={hf}", *options])
    models = {"generate": hf, "generate.py": hf}
    for degree in DEGREES:
        models[f"sharded.py {degree}"] = meta = folder / f"{shape}-meta-{degree}"
        if not (meta / "params.json").exists():
            command = [sys.executable, RECIPES / "inference/reshard.py", f"--model={hf}"]
            run([*command, f"--output={meta}", "--to=meta", f"--model-parallel={degree}"])
    return models


def measure(
    name: str, models: dict[str, Path], batch: int, new_tokens: int, peaks: Any = None
) -> dict[str, float]:
    """A contestant's seconds of loading and tokens/s; it must have made exactly these tokens."""
    texts = [f"{chr(ord('A') + number)}. {SENTENCE * 5}" for number in range(batch)]
    with tempfile.TemporaryDirectory() as scratch:
        answers = Path(scratch) / "answers.jsonl"
        if name == "generate":
            case = {"model": str(models[name]), "prompts": texts, "batch": batch}
            case |= {"new_tokens": new_tokens, "result": str(answers)}
            (Path(scratch) / "case.json").write_text(json.dumps(case))
            run([*program(name), Path(scratch) / "case.json"], peaks)
            found = json.loads(answers.read_text())
            made, rate = found["tokens"], found["tokens"] / found["seconds"]
        else:
            prompts = Path(scratch) / "prompts.txt"
            prompts.write_text("\n".join(texts) + "\n")
            command = [*program(name), f"--model={models[name]}", f"--prompts={prompts}"]
            command += [f"--output={answers}", f"--max-new-tokens={new_tokens}", "--ignore-eos"]
            command += ["--device=cpu", "--dtype=fp32", "--prompt-style=raw"]
            size = "batch" if name == "generate.py" else "max-batch"
            run([*command, f"--{size}-size={batch}"], peaks)
            found = json.loads(answers.with_suffix(".run.json").read_text())["metrics"]
            made, rate = found["generated_tokens"], found["tokens_per_s"]
    if made != batch * new_tokens:
        raise RuntimeError(f"{name} made {made} tokens, not {batch * new_tokens}")
    return {"tokens_per_s": rate, "load_s": found["load_s"], "prompt": found["prompt_tokens"]}


def program(name: str) -> list[Any]:
    """The command of a contestant, and of torchrun if it has several processes."""
    if name == "generate":
        return [sys.executable, HOME / "benchmarks/peers/transformers_generate.py"]
    if name == "generate.py":
        return [sys.executable, RECIPES / "inference/generate.py"]
    degree = int(name.split()[1])
    start = [sys.executable]
    if degree > 1:
        start += ["-m", "torch.distributed.run", f"--nproc-per-node={degree}"]
    return [*start, RECIPES / "inference/sharded.py"]


def memory_of(name: str, models: dict[str, Path], new_tokens: int) -> list[dict[str, int]]:
    """Peaks of each process that held weights."""
    peaks: dict[int, dict[str, int]] = {}
    measure(name, models, 1, new_tokens, peaks)
    first, *others = peaks.values()
    return others if "torch.distributed.run" in program(name) else [first]


def run(command: list[Any], peaks: dict[int, dict[str, int]] | None = None) -> None:
    """Run a program to its end; peaks: filled with the memory of it and of its children."""
    env = {**os.environ, "PYTHONPATH": str(RECIPES), "HF_HUB_OFFLINE": "1"}
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(words, env=env, stdout=said, stderr=said) as process:
            while peaks is not None and process.poll() is None:
                look(process.pid, peaks)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(words)}\n{text}")


def look(pid: int, peaks: dict[int, dict[str, int]]) -> None:
    """Note the memory of a process and of its children."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return
    now = dict(words.split(":", 1) for words in text.splitlines()[1:])
    peak = peaks.setdefault(pid, {"rss": 0, "pss": 0, "anonymous": 0})
    for name, key in (("rss", "Rss"), ("pss", "Pss"), ("anonymous", "Anonymous")):
        peak[name] = max(peak[name], 1024 * int(now[key].split()[0]))
    for child in children:
        look(int(child), peaks)


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of each contestant, and of the ratios to transformers' generate in each round."""
    methods = {}
    for name in rounds[0]:
        if any(found[name]["prompt"] != found["generate"]["prompt"] for found in rounds):
            raise RuntimeError(f"{name} read other prompts than generate")
        rates = [found[name]["tokens_per_s"] for found in rounds]
        ratios = [found[name]["tokens_per_s"] / found["generate"]["tokens_per_s"]
                  for found in rounds]
        methods[name] = {
            "tokens_per_s": statistics.median(rates),
            "load_s": statistics.median(found[name]["load_s"] for found in rounds),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    prompt = rounds[0]["generate"]["prompt"]
    return {"prompt_tokens": prompt, "methods": methods}


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    cells = [
        f"{name} {one['tokens_per_s']:.1f} tokens/s ({one['ratio']:.2f})"
        for name, one in row["methods"].items()
    ]
    return f"batch {row['batch']}: " + ", ".join(cells)


if __name__ == "__main__":
    run_recipe(benchmark)
