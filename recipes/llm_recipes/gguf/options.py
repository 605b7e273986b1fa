"""What the recipes for GGUF models have in common on the command line, checked all at once.

from llm_recipes.gguf.options import placement_faults
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_recipes.errors import LLMError, faults_of
from llm_recipes.gguf.placement import shares_of


def placement_faults(options: Mapping[str, Any]) -> list[LLMError]:
    """Every option about layers, threads, cache and context whose value cannot be meant."""
    o = options
    faults = []
    if isinstance(o["gpu_layers"], int) and o["gpu_layers"] < 0:
        what = f"--gpu-layers {o['gpu_layers']} is negative"
        faults.append(LLMError(what, fix="auto, all, or a number from 0"))
    for name in ("threads", "prompt_threads", "context", "parallel"):
        value = o.get(name, "auto")
        if isinstance(value, int) and value < 1:
            option = name.replace("_", "-")
            faults.append(LLMError(f"--{option} {value} is too small", fix="auto, or 1 or more"))
    faults += faults_of(lambda: shares_of(o["shares"]))
    if o["shares"] and o["split"] == "none":
        fix = "leave one of them out"
        faults.append(LLMError("--shares has no meaning with --split none", fix=fix))
    if o.get("hosts") and o["split"] != "layer":
        fix = "leave one of them out"
        what = f"--split {o['split']} does not go with --hosts"
        faults.append(LLMError(what, "hosts share whole layers", fix))
    quantized = o.get("kv_type", "f16") not in ("f32", "f16", "bf16")
    if quantized and o.get("flash_attention") == "off":
        what = f"--kv-type {o['kv_type']} does not go with --flash-attention off"
        fix = "--flash-attention auto, or --kv-type f16"
        faults.append(LLMError(what, "only flash attention reads quantized values", fix))
    return faults
