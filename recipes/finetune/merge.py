"""Merge a PEFT adapter (LoRA and its kin) into its base: a model that needs no PEFT.

    llm-run python recipes/finetune/merge.py --adapter runs/mistral --output models/tuned
    llm-run python recipes/finetune/merge.py --adapter runs/mistral --output models/tuned \\
        --base /models/Mistral-7B-v0.1 --dtype bf16

The base's weights keep their type, and all its other files come along; the adapter's tokenizer and
chat template go before the base's. What was written is loaded again, and has to answer a short text
as base and adapter do. It runs on the CPU, in the memory that the base takes.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError
from llm_recipes.folders import new_folder
from llm_recipes.made_folder import (
    RECORD,
    check_output,
    check_space,
    folder_files,
    made_again,
)
from llm_recipes.record import read_record, start_record, write_record

if TYPE_CHECKING:
    import torch

    from llm_recipes.merging import Comparison
    from llm_recipes.model_folder import ModelFolder

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
    from llm_recipes.device import DTYPES, dtype_name, use_granted_cpus
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
    record = start_record(RECIPE, settings, "cpu")
    record["made_with"] = made_with
    start = time.monotonic()
    with new_folder(folder) as staging:
        found = merge(model, adapter_folder, staging, own, target, rows)
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
        write_record(staging / RECORD, record, "complete")
    print(f"model in {folder} ({made_with['dtype']}, {seconds:.0f} s)")


def find_base(adapter: Path, base: str | None) -> ModelFolder:
    """The base's folder: the one given, or the one the adapter names.

    Raises:
        LLMError, ExceptionGroup: If it is not here, or not whole.
    """
    from llm_recipes.adapters import ADAPTER_CONFIG
    from llm_recipes.architecture import read_json
    from llm_recipes.model_folder import find_model

    if base is not None:
        read_json(adapter / ADAPTER_CONFIG)
        return find_model(base)
    named = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise LLMError(f"{adapter / ADAPTER_CONFIG} names no base", fix="--base MODEL names it")
    try:
        return find_model(named)
    except LLMError as error:
        what = f"the base of {adapter} is not usable: {named}"
        raise LLMError(what, error.what, "--base MODEL: where the base is now") from error


def merge(
    base: ModelFolder,
    adapter: Path,
    staging: Path,
    own: torch.dtype,
    target: torch.dtype,
    rows: int | None,
) -> Comparison:
    """Load, merge, write, load again and compare.

    Raises:
        LLMError: If the merged model answers otherwise than its rounding explains.
    """
    from llm_recipes import merging

    say(f"loading {base.path} ({base.bytes / 1e9:.3g} GB) and {adapter}")
    tuned = merging.load_both(base, adapter, rows, own)
    ids = merging.check_tokens(base.path, tuned.get_input_embeddings().weight.shape[0])
    wanted = merging.logits_in_fp32(tuned, ids)
    with tuned.disable_adapter():
        plain = merging.logits_in_fp32(tuned, ids)
    say("merging")
    model = merging.merge_layers(tuned, target)
    merging.write_merged(model, base.path, adapter, staging, target, rows is not None)
    del tuned, model
    gc.collect()  # two models at once may be more than there is memory
    say("comparing what was written with base and adapter")
    merging.check_tokens(staging, 1)  # the tokenizer can be loaded
    answers = merging.logits_in_fp32(merging.load_merged(staging, target), ids)
    found = merging.compare(answers, wanted, plain, target)
    report(found)
    return found


def report(found: Comparison) -> None:
    """Tell what the comparison showed.

    Raises:
        LLMError: If it is more than rounding.
    """
    figures = (
        f"logits of {found.tokens} tokens differ by {found.difference:.2g} of their size "
        f"(largest {found.largest:.2g}; the adapter changes them by {found.adapter_effect:.2g}), "
        f"{found.same_top:.0%} have the same likeliest token"
    )
    if not found.difference <= found.allowed:  # NaN too
        what = "the merged model does not answer as base and adapter do"
        why = f"{figures}; rounding explains {found.allowed:.2g}"
        raise LLMError(what, why, "--dtype fp32 if the base's type is too coarse for this adapter")
    say(figures)
    if found.difference > found.adapter_effect / 2:
        say("the adapter changes less than rounding does: --dtype fp32 keeps what it has learned")


def was_quantized(adapter: Path) -> bool:
    """Whether the adapter's run says that its base was quantized."""
    config: Any = (read_record(adapter / RECORD) or {}).get("config")
    return isinstance(config, dict) and config.get("method") == "qlora"


def say(text: str) -> None:
    """Tell the user something."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_recipe(merge_adapter)
