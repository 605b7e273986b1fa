"""What running a checkpoint in Meta's format will take, before anything is loaded.

print(describe_plan(settings))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_recipes.device import GB, choose_device, choose_dtype, dtype_name, free_memory_bytes
from llm_recipes.meta.checkpoint import find_checkpoint, is_tied, read_shard
from llm_recipes.meta.processes import start_command
from llm_recipes.meta.releases import releases_like
from llm_recipes.meta.sizes import (
    CONTEXT_UNKNOWN,
    Shape,
    fitting_rows,
    kv_bytes,
    parameters,
    row_bytes,
    shard_bytes,
)


def describe_plan(settings: Mapping[str, Any]) -> str:
    """The plan as a few lines for people; the first shard's table of contents is all it reads.

    Args:
        settings: The options of sharded.py by name.

    Raises:
        LLMError, ExceptionGroup: If the checkpoint is damaged.
    """
    o = settings
    tokenizer = None if o["tokenizer"] is None else Path(o["tokenizer"]).expanduser()
    folder = Path(o["model"]).expanduser()
    checkpoint = find_checkpoint(folder, tokenizer, o["rope_factor"])
    device = choose_device(o["device"])
    precision = choose_dtype(o["dtype"], device)
    params, degree = checkpoint.params, checkpoint.degree
    tied = is_tied(read_shard(checkpoint, 0))
    shape = Shape(params, checkpoint.embeddings, degree, tied, precision.itemsize)
    files = sum(path.stat().st_size for path in checkpoint.shards)
    names = ", ".join(release.name for release in releases_like(params)) or "no release of Meta's"
    known = checkpoint.context
    tokens = o["max_seq_len"] or known or CONTEXT_UNKNOWN
    free = free_memory_bytes(device)
    here = degree if device.type == "cpu" else 1  # processes that share it
    weights = shard_bytes(shape)
    left = free / here - weights
    # Half of a row for its prompt: what a prefill takes besides is a part of the whole.
    fitting = fitting_rows(left, row_bytes(shape, tokens, tokens // 2), device.type, 1 << 30)
    rows = fitting if o["max_batch_size"] == "auto" else int(o["max_batch_size"])
    cache = kv_bytes(shape, tokens) * rows
    fits = weights + cache <= free / here
    lines = [
        f"model        {checkpoint.folder}: {parameters(shape) / GB:.4g} billion parameters,"
        f" {params.layers} layers, {params.heads} heads, {params.kv_heads} K/V heads;"
        f" the sizes of {names}",
        f"context      {known or CONTEXT_UNKNOWN} tokens" + ("" if known else ": it is not known"),
        f"processes    {degree}, each with one shard",
        f"read         {files / GB:.3g} GB of files",
        f"weights      {weights / GB:.3g} GB in each process, as {dtype_name(precision)}",
        f"KV cache     {cache / GB:.3g} GB in each process, for {rows} rows of {tokens} tokens"
        f" ({kv_bytes(shape, tokens) / GB:.3g} GB a row)",
        f"free memory  {free / GB:.3g} GB here, on {device}"
        + (f", for all {degree} processes" if here > 1 else "")
        + ("" if fits else ": not enough"),
        f"start        {start_command(checkpoint)}",
    ]
    return "\n".join(lines)
