"""How fast reshard.py converts a checkpoint in Meta's format, against copying the same bytes.

    llm-run python benchmarks/meta_reshard.py --output build/benchmarks/meta_reshard.json

Each conversion is a process of its own, in turn with a plain copy (reads and writes of 8 MB, then
fsync, as reshard.py does) and with what people run today: torch.load of all shards, torch.cat,
torch.save (and, to be as safe, fsync). Files are in the page cache before, so what is measured is
the work and the writing. Medians; seconds from the start of the work, without imports.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from llm_recipes.cli import run_recipe

HOME = Path(__file__).resolve().parents[1]
LIMIT = 0.5  # of the plain copy's rate, at least
# Prints seconds and the peak of resident memory in bytes.
PROGRAM = """
import os, sys, time
from pathlib import Path
{imports}

def flush(folder):
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())

source, output, degree = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
# Not getrusage, which counts what the process that started this one had.
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
print("MEASURED", seconds, peak)
"""
COPY = PROGRAM.format(
    imports="",
    work="""
output.mkdir()
buffer = bytearray(1 << 23)
for path in [*source.glob("*.pth"), *source.glob("*.safetensors")]:
    with open(path, "rb", buffering=0) as old, open(output / path.name, "wb", buffering=0) as new:
        while count := old.readinto(buffer):
            new.write(memoryview(buffer)[:count])
flush(output)
""",
)
OURS = PROGRAM.format(
    imports="""
import importlib.util
if sys.argv[3] == "0":
    from transformers import PreTrainedTokenizerFast
import llm_recipes.meta.resharding
spec = importlib.util.spec_from_file_location("recipe", os.environ["RECIPE"])
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
""",
    work="""
if degree:
    recipe.reshard(source, output, "meta", degree)
else:
    recipe.reshard(source, output, "hf", context_length=4096)
""",
)
# Whole tensors in memory: joined, rearranged if need be, and cut again.
TODAY = PROGRAM.format(
    imports="""
import json
import torch
from safetensors.torch import load_file, save_file

def names(layers):
    part = dict(wq="self_attn.q_proj", wk="self_attn.k_proj", wv="self_attn.v_proj")
    part |= dict(wo="self_attn.o_proj", w1="mlp.gate_proj", w2="mlp.down_proj", w3="mlp.up_proj")
    part |= dict(attention_norm="input_layernorm", ffn_norm="post_attention_layernorm")
    found = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    for layer in range(layers):
        for ours, theirs in part.items():
            group = "attention." if ours in ("wq", "wk", "wv", "wo") else "feed_forward."
            name = ours if "norm" in ours else group + ours
            found[f"layers.{layer}.{name}"] = f"model.layers.{layer}.{theirs}"
    return {a + ".weight": b + ".weight" for a, b in found.items()}

def dimension(name):
    kind = name.split(".")[-2]
    if kind.endswith("norm"):
        return None
    return 1 if kind in ("wo", "w2") else 0
""",
    work="""
output.mkdir()
raw = json.loads(next(p for p in (source / "params.json", source / "original/params.json")
                      if p.is_file()).read_text())
size, known = raw["dim"] // raw["n_heads"], names(raw["n_layers"])
paths = sorted(source.glob("*.pth"))
if paths:
    shards = [torch.load(path, weights_only=True) for path in paths]
    whole = {}
    for name in shards[0]:
        dim = dimension(name)
        whole[name] = shards[0][name] if dim is None else torch.cat([s[name] for s in shards], dim)
else:
    tensors = {}
    for path in source.glob("*.safetensors"):
        tensors |= load_file(path)
    whole = {ours: tensors[theirs] for ours, theirs in known.items()}
    for name, tensor in whole.items():
        if name.split(".")[-2] in ("wq", "wk"):
            halves = tensor.view(-1, 2, size // 2, tensor.shape[1])
            whole[name] = halves.transpose(1, 2).reshape(tensor.shape)
if degree:
    for rank in range(degree):
        part = {}
        for name, tensor in whole.items():
            dim = dimension(name)
            cut = tensor if dim is None else tensor.chunk(degree, dim)[rank]
            part[name] = cut if degree == 1 else cut.contiguous().clone()
        torch.save(part, output / f"consolidated.{rank:02d}.pth")
else:
    for name, tensor in whole.items():
        if name.split(".")[-2] in ("wq", "wk"):
            pairs = tensor.view(-1, size // 2, 2, tensor.shape[1])
            whole[name] = pairs.transpose(1, 2).reshape(tensor.shape)
    save_file({known[n]: t.contiguous() for n, t in whole.items()}, output / "model.safetensors")
flush(output)
""",
)


def benchmark(
    layers: int = 18,
    folder: Path = HOME / "build/benchmarks",
    rounds: int = 5,
    output: Path | None = None,
) -> int:
    """Time conversions, in turn with a plain copy and with torch.load, torch.cat and torch.save.

    Args:
        layers: Of the model, each of 0.1 GB; 18 make 2.1 GB in all, 1 is to try the program.
        folder: On the disk that is measured; four times the model's size must be free.
        rounds: Conversions of each kind.
        output: JSON file for the results; null: none.

    Exit status 1 if a conversion is slower than half of the plain copy's rate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="reshard-", dir=folder) as temporary:
        home = Path(temporary)
        make_model(home / "1", layers)
        for source, name, degree in (("1", "2", 2), ("2", "4", 4), ("1", "hf", 0)):
            run(OURS, home / source, home / name, degree)
        kinds = {
            "Meta, 1 shard to 2": ("1", 2),
            "Meta, 2 shards to 4": ("2", 4),
            "Meta, 4 shards to Hugging Face": ("4", 0),
            "Hugging Face to Meta, 4 shards": ("hf", 4),
        }
        for _ in range(rounds):
            for kind, (source, degree) in kinds.items():
                for name, program in (("copy", COPY), ("ours", OURS), ("today", TODAY)):
                    result = home / "result"
                    figures = run(program, home / source, result, degree)
                    figures["bytes"] = sum(p.stat().st_size for p in weights(result))
                    found.setdefault((kind, name), []).append(figures)
                    shutil.rmtree(result)
    rows = []
    for kind in kinds:
        runs = {name: found[kind, name] for name in ("copy", "ours", "today")}
        rates = {n: [f["bytes"] / f["seconds"] for f in figures] for n, figures in runs.items()}
        ratios = [a / b for a, b in zip(rates["ours"], rates["copy"], strict=True)]
        row: dict[str, Any] = {"conversion": kind, "bytes": runs["ours"][0]["bytes"]}
        for name, figures in runs.items():
            row[f"{name}_bytes_per_s"] = statistics.median(rates[name])
            row[f"{name}_peak_bytes"] = statistics.median(f["peak"] for f in figures)
        row |= {"ratio": statistics.median(ratios), "ratios": ratios}
        rows.append(row)
        print(
            f"{kind}: {row['ours_bytes_per_s'] / 1e9:.2f} GB/s, copy "
            f"{row['copy_bytes_per_s'] / 1e9:.2f}, ratio {row['ratio']:.2f}, today "
            f"{row['today_bytes_per_s'] / 1e9:.2f}; memory {row['ours_peak_bytes'] / 1e9:.2f} GB, "
            f"today {row['today_peak_bytes'] / 1e9:.2f} GB",
            flush=True,
        )
    if output is not None:
        from llm_recipes.files import write_text

        result_of_all = {"benchmark": "meta_reshard", "limit": LIMIT, "rounds": rounds}
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps({**result_of_all, "rows": rows}, indent=2) + "\n")
    return 0 if all(row["ratio"] >= LIMIT for row in rows) else 1


def make_model(folder: Path, layers: int) -> None:
    """A checkpoint of one shard with random bf16 weights and a tokenizer."""
    import torch

    from llm_recipes.meta.layout import layout
    from llm_recipes.meta.params import Params
    from llm_recipes.meta.tokenizer_files import SPECIAL_TOKENS, rank_lines
    from llm_recipes.torch_writer import Header, TorchFile

    folder.mkdir()
    params = Params(2048, layers, 16, 8, 5632, 32000, 1e-5, 10000.0, None)
    raw = {"dim": 2048, "n_layers": layers, "n_heads": 16, "n_kv_heads": 8, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps({**raw, "norm_eps": 1e-5}))
    pairs = (bytes((first, second)) for first in range(256) for second in range(256))
    tokens = itertools.chain((bytes((byte,)) for byte in range(256)), pairs)
    first = itertools.islice(tokens, params.vocabulary - SPECIAL_TOKENS)
    (folder / "tokenizer.model").write_bytes(rank_lines(first))
    tensors = layout(params, "rows")
    headers = {name: Header(tensor.shape, torch.bfloat16) for name, tensor in tensors.items()}
    with TorchFile(folder / "consolidated.00.pth", headers) as file:
        for name, tensor in tensors.items():
            file.write(name, (torch.randn(tensor.shape) * 0.02).to(torch.bfloat16))


def weights(folder: Path) -> list[Path]:
    """Files of weights in a folder."""
    return [*folder.glob("*.pth"), *folder.glob("*.safetensors")]


def run(program: str, source: Path, output: Path, degree: int) -> dict[str, float]:
    """Run a program in a process of its own; its seconds and peak memory."""
    recipe = str(HOME / "recipes" / "inference" / "reshard.py")
    env = {**os.environ, "PYTHONPATH": str(HOME / "recipes"), "RECIPE": recipe}
    command = [sys.executable, "-c", program, str(source), str(output), str(degree)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    _, seconds, peak = done.stdout.splitlines()[-1].split()
    return {"seconds": float(seconds), "peak": float(peak)}


if __name__ == "__main__":
    run_recipe(benchmark)
