"""A model of base and adapter in a folder of its own, which answers as the two do.

from llm_recipes.merged_folder import merge_into
merge_into(folder, find_model("models/base"), find_adapter("runs/mine"), None, dtype, dtype)
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from llm_recipes import merging
from llm_recipes.errors import LLMError
from llm_recipes.merging import Comparison
from llm_recipes.model_folder import ModelFolder
from llm_recipes.say import say


def merge_into(
    folder: Path,
    base: ModelFolder,
    adapter: Path,
    rows: int | None,
    own: torch.dtype,
    target: torch.dtype,
    wider: str = "--dtype fp32",
) -> Comparison:
    """Load, merge, write, load again and compare.

    Args:
        folder: An empty one, for the merged model.
        base: The model that the adapter was trained on.
        adapter: The adapter's folder.
        rows: What `check_adapter` has found.
        own: Type of the base's weights.
        target: Type that the merged weights get.
        wider: The option that keeps what rounding to this type loses.

    Raises:
        LLMError: If the merged model answers otherwise than its rounding explains.
    """
    say(f"loading {base.path} ({base.bytes / 1e9:.3g} GB) and {adapter}")
    tuned = merging.load_both(base, adapter, rows, own)
    ids = merging.check_tokens(base.path, tuned.get_input_embeddings().weight.shape[0])
    wanted = merging.logits_in_fp32(tuned, ids)
    with tuned.disable_adapter():
        plain = merging.logits_in_fp32(tuned, ids)
    say("merging")
    model = merging.merge_layers(tuned, target)
    merging.write_merged(model, base.path, adapter, folder, target, rows is not None)
    del tuned, model
    gc.collect()  # two models at once may be more than there is memory
    say("comparing what was written with base and adapter")
    merging.check_tokens(folder, 1)  # the tokenizer can be loaded
    answers = merging.logits_in_fp32(merging.load_merged(folder, target), ids)
    found = merging.compare(answers, wanted, plain, target)
    _report(found, wider)
    return found


def _report(found: Comparison, wider: str) -> None:
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
        raise LLMError(what, why, f"{wider} if the base's type is too coarse for this adapter")
    say(figures)
    if found.difference > found.adapter_effect / 2:
        say(f"the adapter changes less than rounding does: {wider} keeps what it has learned")
