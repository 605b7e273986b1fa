"""Convert a Llama checkpoint: Meta's format to Hugging Face's and back, or to other shards.

    llm-run python recipes/inference/reshard.py --model Llama-2-13b --to hf --output models/13b
    llm-run python recipes/inference/reshard.py --model models/13b --to meta --model-parallel 4 \\
        --output models/13b-mp4
    llm-run python recipes/inference/reshard.py --model Llama-2-70b --to meta --model-parallel 2 \\
        --output models/70b-mp2 --plan

A folder in Meta's format holds consolidated.NN.pth (one for each process of sharded.py),
params.json and tokenizer.model; its weights are cut by the number of processes, which is changed
here. Tensors are copied bit for bit unless --dtype asks for another type. It needs no GPU and no
other process. Memory: blocks of 8 MB, whatever the model; about 0.7 GB with Python and torch.

What a format has no place for is kept beside it, so that the way back gives the same files: a
folder in Meta's format gets huggingface/ (config.json, tokenizer, chat template), one in Hugging
Face's gets original/ (params.json, tokenizer.model). --plan shows what would be read and written.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Literal

from llm_recipes.cli import run_recipe
from llm_recipes.folders import new_folder, write_errors
from llm_recipes.made_folder import (
    RECORD,
    check_output,
    check_space,
    existing_parent,
    folder_files,
    made_again,
)
from llm_recipes.record import add_input, start_record, write_record
from llm_recipes.say import say

RECIPE = "inference/reshard"
# What the result depends on besides the model.
SETTINGS = (
    *("to", "model_parallel", "dtype", "shard_size", "embeddings"),
    *("rope_factor", "context_length", "chat"),
)


def reshard(
    model: Path,
    output: Path,
    to: Literal["hf", "meta"],
    model_parallel: int | None = None,
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep",
    shard_size: str = "5GB",
    embeddings: Literal["auto", "rows", "columns"] = "auto",
    tokenizer: Path | None = None,
    rope_factor: float | None = None,
    context_length: int | None = None,
    chat: bool = False,
    plan: bool = False,
    overwrite: bool = False,
) -> None:
    """Convert a Llama checkpoint: Meta's format to Hugging Face's and back, or to other shards.

    Args:
        model: Folder in Meta's format (params.json) or in Hugging Face's (config.json).
        output: Folder to make.
        to: hf: config.json and safetensors; meta: params.json and consolidated.NN.pth.
        model_parallel: Shards to write with --to meta, one for each process that will run them; a
            divisor of the model's heads.
        dtype: Of the weights; keep: each tensor as it is.
        shard_size: Largest file of weights with --to hf, in bytes, MB, GB or GiB.
        embeddings: How --to meta cuts the embeddings: columns (Llama 1 and 2) or rows (3 and
            later); auto: as they are cut now, else as the tokenizer's generation has them.
        tokenizer: tokenizer.model of a checkpoint in Meta's format; null: in its folder, or in the
            one above.
        rope_factor: Of the scaled rotary frequencies, which params.json doesn't state: 8 for
            Llama 3.1 and 3.3, 32 for 3.2; null: from huggingface/config.json.
        context_length: Tokens, for config.json with --to hf, as params.json doesn't state them;
            null: from huggingface/config.json, else the release's with these sizes.
        chat: With --to hf: it is a chat model, and its tokenizer gets the template of its release.
        plan: Show what would be read and written, and write nothing.
        overwrite: Replace what this recipe made there before.
    """
    settings = dict(locals())
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from llm_recipes.device import use_granted_cpus
    from llm_recipes.meta.reshard_source import check_apart
    from llm_recipes.meta.resharding import convert, describe, in_units, prepare

    use_granted_cpus()
    start = time.monotonic()
    folder = output.expanduser().absolute()
    conversion = prepare(settings)
    check_apart(conversion.source, folder)
    if plan:
        with write_errors(folder):
            free = shutil.disk_usage(existing_parent(folder)).free
        print(describe(conversion, folder, free))
        check_space(folder, conversion.bytes_written)
        return
    made_with = {name: settings[name] for name in SETTINGS}
    made_with["model"] = conversion.source.digest
    if made_again(folder, made_with):
        say(f"nothing to do: {folder} is made of this model already")
        return
    check_output(folder, RECIPE, overwrite)
    check_space(folder, conversion.bytes_written)
    record = start_record(RECIPE, settings, "cpu", deterministic=True)
    add_input(record, "model", conversion.source.folder)
    record["made_with"] = made_with
    with new_folder(folder) as staging:
        facts = convert(conversion, staging, say)
        seconds = time.monotonic() - start
        record["model"] = {"path": str(folder), "source": str(conversion.source.folder), **facts}
        files = folder_files(staging)
        record["metrics"] = {"reshard_s": round(seconds, 1), "files": files}
        write_record(staging / RECORD, record, "complete", results=files)
    seconds = time.monotonic() - start  # until all is on the disk
    size, rate = in_units(facts["bytes"]), facts["bytes"] / seconds / 1e9
    print(f"model in {folder} ({size}, {facts['dtype']}, {seconds:.1f} s, {rate:.2g} GB/s)")


if __name__ == "__main__":
    run_recipe(reshard)
