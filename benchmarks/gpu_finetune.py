"""Fine-tuning speed on a GPU: sft.py at the shapes of Llama-3.2-1B and Llama-3-8B.

    llm-run --gpu python benchmarks/gpu_finetune.py --output build/benchmarks/gpu_finetune.json

Random weights (speed does not depend on them), written once to a folder in /dev/shm; packed rows of
random words. Each run is sft.py as a user starts it; tokens/s and MFU are medians over the steps
without the first two. `--shapes tiny --device cpu` tries the program itself without a GPU.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from results import write_json

from llm_recipes.cli import run_recipe

HOME = Path(__file__).resolve().parents[1]
# config.json of meta-llama/Llama-3.2-1B and meta-llama/Meta-Llama-3-8B.
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "tiny": {
        "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
    },
}  # fmt: skip
WORDS = ("one two three four five six seven eight nine ten north south east west red green blue")


def benchmark(
    shapes: list[str] | None = None,
    methods: list[str] | None = None,
    row_tokens: int = 4096,
    global_batch: int = 4,
    steps: int = 12,
    device: Literal["cuda", "cpu"] = "cuda",
    folder: Path = Path("/dev/shm"),
    output: Path | None = None,
) -> None:
    """Measure sft.py's tokens/s, MFU and peak memory.

    Args:
        shapes: 1b, 8b, tiny; repeat the option; null: 1b and 8b.
        methods: lora, qlora, full; repeat the option; null: lora and full.
        row_tokens: Tokens a packed row.
        global_batch: Rows a step.
        steps: Optimizer steps of each run.
        device: cuda, or cpu to try the program.
        folder: Where models go for the time of the measurement (16 GB for 8b).
        output: JSON file for the results; null: none.
    """
    results: list[dict[str, Any]] = []
    for shape in shapes or ["1b", "8b"]:
        with tempfile.TemporaryDirectory(prefix="llm-bench-", dir=folder) as scratch:
            model = make_model(Path(scratch), shape, device)
            data = make_data(Path(scratch), row_tokens, global_batch * steps)
            for method in methods or ["lora", "full"]:
                row = {"shape": shape, "method": method, "row_tokens": row_tokens}
                options = [f"--max-length={row_tokens}", f"--global-batch={global_batch}"]
                options += [f"--max-steps={steps}", f"--method={method}", f"--device={device}"]
                if method == "full" and shape == "8b":
                    options.append("--pure-bf16")  # 128 GB of fp32 states don't fit one GPU
                row |= run_sft(Path(scratch), model, data, options)
                print(describe(row), flush=True)
                results.append(row)
                if output is not None:  # each time: a job's end leaves what was measured
                    write_json(output, {"name": "gpu_finetune", "rows": results})


def make_model(scratch: Path, shape: str, device: str) -> Path:
    """A Llama with random bf16 weights and a small tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from llm_recipes.tiny_corpus import natural_documents
    from llm_recipes.tiny_tokenizer import llama_tokenizer, save_tokenizer, train_sentencepiece

    print(f"making a model of the shape {shape}", flush=True)
    target = scratch / "model"
    pieces = train_sentencepiece(natural_documents()[:500], 1000)
    config = LlamaConfig(**SHAPES[shape], bos_token_id=1, eos_token_id=2, pad_token_id=3)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(target)
    save_tokenizer(llama_tokenizer(pieces), pieces, target)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return target


def make_data(scratch: Path, row_tokens: int, rows: int) -> Path:
    """Texts of random words, several to a row and more than are needed."""
    rng = random.Random(0)
    words = WORDS.split()
    lines = []
    for _ in range(4 * rows):
        count = rng.randint(row_tokens // 40, row_tokens // 8)
        lines.append(json.dumps({"text": " ".join(rng.choices(words, k=count))}) + "\n")
    path = scratch / "texts.jsonl"
    path.write_text("".join(lines))
    return path


def run_sft(scratch: Path, model: Path, data: Path, options: list[str]) -> dict[str, Any]:
    """One run of sft.py; its numbers, or what it said when it failed."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(HOME / "recipes/finetune/sft.py"), f"--model={model}"]
    command += [f"--data={data}", f"--output={out}", "--packing", "--held-out=0", "--save-every=0"]
    command += ["--measure-only", "--format=text", *options]
    env = {**os.environ, "PYTHONPATH": str(HOME / "recipes"), "HF_HUB_OFFLINE": "1"}
    env["LLM_CACHE_DIR"] = str(scratch / "cache")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-3:]}
    record = json.loads((out / "run.json").read_text())
    wanted = ("step_s", "tokens_per_s", "mfu", "peak_gpu_bytes", "peak_host_bytes", "last_loss")
    return {
        **{name: record["metrics"].get(name) for name in wanted},
        "device": record["host"]["device"],
        "predicted_bytes": record["sharing"]["predicted_bytes"],
        "batch_size": record["sharing"]["batch_size"],
        "checkpointing": record["sharing"]["checkpointing"],
    }


def describe(row: dict[str, Any]) -> str:
    """A result in a line."""
    name = f"{row['shape']} {row['method']}"
    if "failed" in row:
        return f"{name}: {' '.join(row['failed'])}"
    mfu = "MFU unknown" if row["mfu"] is None else f"MFU {row['mfu']:.1%}"
    memory = (row["peak_gpu_bytes"] or row["peak_host_bytes"]) / 1e9
    predicted = (row["predicted_bytes"] or 0) / 1e9
    return (
        f"{name}: {row['tokens_per_s']:.0f} tokens/s, {mfu}, {memory:.1f} GB "
        f"(predicted {predicted:.1f}), batch {row['batch_size']}"
    )


if __name__ == "__main__":
    run_recipe(benchmark)
