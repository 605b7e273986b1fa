"""Make a Hugging Face folder out of a training checkpoint that is spread over many processes.

    llm-run python recipes/finetune/consolidate.py --checkpoint runs/mistral --output models/tuned
    llm-run python recipes/finetune/consolidate.py --output models/tuned --dtype bf16 \\
        --checkpoint runs/mistral/checkpoints/checkpoint-100 --base /models/Mistral-7B-v0.1

Reads FSDP2's sharded checkpoints, DeepSpeed's of ZeRO 1, 2 and 3 (their fp32 weights), and ordinary
ones; of an adapter's checkpoint it makes an adapter. It needs no GPU, none of the processes that
wrote the checkpoint, and memory for blocks of 8 MB, whatever the model's size.
"""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Literal

from llm_recipes.cli import run_recipe
from llm_recipes.folders import new_folder
from llm_recipes.made_folder import RECORD, check_output, folder_files, made_again
from llm_recipes.record import add_input, start_record, write_record
from llm_recipes.say import say

RECIPE = "finetune/consolidate"


def consolidate_checkpoint(
    checkpoint: Path,
    output: Path,
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep",
    shard_size: str = "5GB",
    base: str | None = None,
    overwrite: bool = False,
) -> None:
    """Make a Hugging Face folder out of a training checkpoint that is spread over many processes.

    Args:
        checkpoint: A run's output folder (its newest whole checkpoint is taken), or a checkpoint.
        output: Folder to make, with config.json, tokenizer and safetensors.
        dtype: Of the weights; keep: as the checkpoint has them (fp32 for DeepSpeed's).
        shard_size: Largest file of weights, in bytes, MB, GB or GiB.
        base: Model whose config.json and tokenizer serve where the checkpoint has none; null: none.
        overwrite: Replace what this recipe made there before.
    """
    settings = dict(locals())
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from llm_recipes.consolidation import read_source, write_source
    from llm_recipes.safetensors_writer import size_in_bytes

    start = time.monotonic()
    shard_bytes = size_in_bytes(shard_size)
    folder = output.expanduser().absolute()
    base_folder = _base_folder(base)
    source = read_source(checkpoint.expanduser(), base_folder, say)
    made_with = {
        "checkpoint": _digest(source.checkpoint.weights),
        "config": None if source.config is None else str(source.config),
        **{name: settings[name] for name in ("dtype", "shard_size", "base")},
    }
    if made_again(folder, made_with):
        say(f"nothing to do: {folder} is made of this checkpoint already")
        return
    check_output(folder, RECIPE, overwrite)
    record = start_record(RECIPE, settings, "cpu", deterministic=True)
    add_input(record, "model", source.checkpoint.weights, str(checkpoint))
    record["made_with"] = made_with
    with new_folder(folder) as staging:
        facts = write_source(source, staging, dtype, shard_bytes, base_folder, say)
        seconds = time.monotonic() - start
        record["model"] = {"path": str(folder), **facts}
        record["metrics"] = {"consolidate_s": round(seconds, 1), "files": folder_files(staging)}
        write_record(staging / RECORD, record, "complete", results=record["metrics"]["files"])
    kind = "adapter" if facts["adapter"] else "model"
    print(f"{kind} in {folder} ({facts['bytes'] / 1e9:.3g} GB, {facts['dtype']}, {seconds:.0f} s)")


def _base_folder(base: str | None) -> Path | None:
    """Where the base's settings are; its weights are not needed."""
    if base is None:
        return None
    folder = Path(base).expanduser()
    if (folder / "config.json").is_file():
        return folder
    from llm_recipes.model_folder import find_model

    return find_model(base).path


def _digest(weights: Path) -> str:
    """Of names, sizes and times of the checkpoint's files: reading it takes as long as the work."""
    found = sha256()
    files = sorted(weights.parent.glob("*.safetensors")) if weights.is_file() else []
    for file in [weights, *files] if weights.is_file() else sorted(weights.iterdir()):
        state = file.stat()
        found.update(os.fsencode(file.absolute()))
        found.update(f"\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return found.hexdigest()


if __name__ == "__main__":
    run_recipe(consolidate_checkpoint)
