"""Merge a PEFT adapter (LoRA and its kin) into its base: a model that needs no PEFT.

    llm-run python recipes/finetune/merge.py --adapter runs/mistral --output models/tuned
    llm-run python recipes/finetune/merge.py --adapter runs/mistral --output models/tuned \\
        --base /models/Mistral-7B-v0.1 --dtype bf16

The base's weights keep their type, and all its other files come along; the adapter's tokenizer and
chat template go before the base's. What was written is loaded again, and has to answer a short text
as base and adapter do. It runs on the CPU, in the memory that the base takes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.folders import new_folder
from llm_recipes.made_folder import (
    RECORD,
    check_output,
    check_space,
    folder_files,
    made_again,
)
from llm_recipes.record import add_input, read_record, start_record, write_record
from llm_recipes.say import say

RECIPE = "finetune/merge"


def merge_adapter(
    adapter: str,
    output: Path,
    base: str | None = None,
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep",
    overwrite: bool = False,
) -> None:
    """Merge a PEFT adapter (LoRA and its kin) into its base: a model that needs no PEFT.

    Args:
        adapter: Folder of the adapter, or a hub's name.
        output: Folder to make, with safetensors, config.json and tokenizer.
        base: Model the adapter was trained on; null: the one that its adapter_config.json names.
        dtype: Of the merged weights; keep: as the base has them.
        overwrite: Replace what this recipe made there before.
    """
    settings = dict(locals())
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from llm_recipes.adapters import find_base
    from llm_recipes.device import DTYPES, dtype_name, use_granted_cpus
    from llm_recipes.merged_folder import merge_into
    from llm_recipes.merging import check_adapter, stored_dtype
    from llm_recipes.model_folder import find_adapter, folder_digest

    adapter_folder = find_adapter(adapter)
    model = find_base(adapter_folder, base)
    folder = output.expanduser().absolute()
    own = stored_dtype(model)
    target = DTYPES.get(dtype, own)
    made_with = {
        "adapter": folder_digest(adapter_folder),
        "base": folder_digest(model.path),
        "dtype": dtype_name(target),
    }
    if made_again(folder, made_with):
        say(f"nothing to do: {folder} is made of this adapter and base already")
        return
    check_output(folder, RECIPE, overwrite)
    rows = check_adapter(adapter_folder, model.path)
    if was_quantized(adapter_folder):
        say("the adapter was trained on the base in 4 bits, and is merged into all bits of it")
    check_space(folder, model.bytes * target.itemsize // own.itemsize)
    use_granted_cpus()
    record = start_record(RECIPE, settings, "cpu", deterministic=True)
    add_input(record, "model", model.path)
    add_input(record, "adapter", adapter_folder)
    record["made_with"] = made_with
    start = time.monotonic()
    with new_folder(folder) as staging:
        found = merge_into(staging, model, adapter_folder, rows, own, target)
        seconds = round(time.monotonic() - start, 1)
        record["model"] = {
            "path": str(folder),
            "adapter": str(adapter_folder),
            "base": str(model.path),
            "base_digest": made_with["base"],
            "dtype": made_with["dtype"],
            "digest": folder_digest(staging),
        }
        record["metrics"] = {
            "merge_s": seconds,
            **found.as_record(),
            "files": folder_files(staging),
        }
        write_record(staging / RECORD, record, "complete", results=record["metrics"]["files"])
    print(f"model in {folder} ({made_with['dtype']}, {seconds:.0f} s)")


def was_quantized(adapter: Path) -> bool:
    """Whether the adapter's run says that its base was quantized."""
    config: Any = (read_record(adapter / RECORD) or {}).get("config")
    return isinstance(config, dict) and config.get("method") == "qlora"


if __name__ == "__main__":
    run_recipe(merge_adapter)
