"""Predicted against measured peak memory of sft.py, and what saving and resuming cost.

    bin/llm-run python benchmarks/finetune_memory.py --output build/benchmarks/finetune_memory.json

The presets' models that a machine without a GPU can train, with random weights: Pythia 160M and
410M, LoRA and all weights, in fp32 and with a small batch, each run in a process of its own. What
Python and its libraries take before the model is loaded is left out of both numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from llm_recipes.cli import run_recipe

HOME = Path(__file__).resolve().parents[1]
MODELS = ("pythia-160m", "pythia-410m")
GB = 1e9


def benchmark(
    models: list[str] | None = None,
    methods: list[str] | None = None,
    batch_size: int = 2,
    max_length: int = 512,
    steps: int = 2,
    folder: Path = Path("/var/tmp"),
    output: Path | None = None,
) -> None:
    """Run sft.py on models with random weights and compare its peak memory with the prediction.

    Args:
        models: pythia-160m, pythia-410m; repeat the option; null: both.
        methods: lora, full; repeat the option; null: both.
        batch_size: Rows at once.
        max_length: Tokens a row.
        steps: Optimizer steps of each run.
        folder: Where models and checkpoints go for the time of the measurement (8 GB).
        output: JSON file for the results; null: none.
    """
    rows = []
    for name in models or MODELS:
        with tempfile.TemporaryDirectory(prefix="llm-bench-", dir=folder) as scratch:
            model = make_model(Path(scratch), name)
            data = make_data(Path(scratch), max_length, 4 * batch_size * steps)
            for method in methods or ("lora", "full"):
                for checkpointing in ("false", "true"):
                    options = [f"--method={method}", f"--checkpointing={checkpointing}"]
                    options += [f"--batch-size={batch_size}", f"--global-batch={batch_size}"]
                    options += [f"--max-length={max_length}", f"--max-steps={steps}"]
                    row = {"model": name, "method": method, "checkpointing": checkpointing}
                    row |= memory_of(Path(scratch), model, data, options)
                    print(describe(row), flush=True)
                    rows.append(row)
            saving = saving_of(Path(scratch), model, data, batch_size, max_length)
            print(f"{name} full: {saving}", flush=True)
            rows.append({"model": name, "method": "full", **saving})
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"name": "finetune_memory", "rows": rows}, indent=2) + "\n")


def make_model(scratch: Path, name: str) -> Path:
    """The published shape with random fp32 weights, and a small tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from llm_recipes.known_shapes import KNOWN
    from llm_recipes.tiny_corpus import natural_documents
    from llm_recipes.tiny_tokenizer import llama_tokenizer, save_tokenizer, train_sentencepiece

    shape = dict(KNOWN[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(scratch / "model")
    pieces = train_sentencepiece(natural_documents()[:500], 1000)
    save_tokenizer(llama_tokenizer(pieces), pieces, scratch / "model")
    return scratch / "model"


def make_data(scratch: Path, max_length: int, examples: int) -> Path:
    """Texts that fill a row each."""
    text = " ".join(["one", "two", "three"] * max_length)
    path = scratch / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(examples)))
    return path


def run(scratch: Path, model: Path, data: Path, options: list[str]) -> dict[str, Any]:
    """One run of sft.py; its record."""
    out = scratch / "out"
    command = [sys.executable, str(HOME / "recipes/finetune/sft.py"), f"--model={model}"]
    command += [f"--data={data}", f"--output={out}", "--held-out=0", "--format=text"]
    command += ["--device=cpu", "--save-every=0", *options]
    env = {**os.environ, "PYTHONPATH": str(HOME / "recipes"), "HF_HUB_OFFLINE": "1"}
    env["LLM_CACHE_DIR"] = str(scratch / "cache")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 75):
        raise RuntimeError(done.stderr)
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def memory_of(scratch: Path, model: Path, data: Path, options: list[str]) -> dict[str, Any]:
    """Predicted and measured bytes of a run that writes nothing else."""
    shutil.rmtree(scratch / "out", ignore_errors=True)
    record = run(scratch, model, data, [*options, "--measure-only"])
    measured = record["metrics"]["peak_host_bytes"] - record["sharing"]["host_bytes_before"]
    predicted = record["sharing"]["predicted_bytes"]
    return {
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "ratio": round(predicted / measured, 3),
        "step_s": record["metrics"]["step_s"],
    }


def saving_of(
    scratch: Path, model: Path, data: Path, batch_size: int, max_length: int
) -> dict[str, Any]:
    """Seconds to save a whole checkpoint, and from the start of a command to its first new step."""
    shutil.rmtree(scratch / "out", ignore_errors=True)
    stop = scratch / "stop"
    stop.touch()
    options = ["--method=full", f"--batch-size={batch_size}", f"--global-batch={batch_size}"]
    options += [f"--max-length={max_length}", "--max-steps=2"]
    os.environ["LLM_STOP_FILE"] = str(stop)
    record = run(scratch, model, data, options)
    del os.environ["LLM_STOP_FILE"]
    folder = scratch / "out" / "checkpoints" / "checkpoint-1"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    save_s = record["metrics"]["longest_save_s"]
    began = time.monotonic()
    again = run(scratch, model, data, options)
    whole = time.monotonic() - began
    later = again["metrics"]["step_s"] + again["metrics"]["longest_save_s"]
    shutil.rmtree(scratch / "out")
    return {
        "checkpoint_bytes": size,
        "save_s": save_s,
        "save_bytes_per_s": round(size / save_s),
        "step_s": record["metrics"]["step_s"],
        "resume_s": round(whole - later, 1),
    }


def describe(row: dict[str, Any]) -> str:
    """A result in a line."""
    return (
        f"{row['model']} {row['method']}, checkpointing {row['checkpointing']}: "
        f"predicted {row['predicted_bytes'] / GB:.2f} GB, measured "
        f"{row['measured_bytes'] / GB:.2f} GB, ratio {row['ratio']}"
    )


if __name__ == "__main__":
    run_recipe(benchmark)
