"""What the tensors of one shard say about the whole model, against what params.json says.

from llm_recipes.meta.shard_sizes import contradictions, shard_sizes
sizes = shard_sizes(tensors)
contradictions(raw, sizes)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_recipes.meta.layout import EMBEDDINGS, OUTPUT, EmbeddingSplit
from llm_recipes.meta.params import MULTIPLE_OF, ffn_width
from llm_recipes.meta.shard import FREQUENCIES
from llm_recipes.stored_weights import StoredTensor

FIRST = "layers.0."
QUERIES, KEYS, UP = (
    f"{FIRST}{name}.weight" for name in ("attention.wq", "attention.wk", "feed_forward.w1")
)
MOST_SHARDS = 999  # of three digits in a name; Meta's have 16 at most
NEEDED = (EMBEDDINGS, QUERIES, KEYS, UP, "norm.weight")


@dataclass(frozen=True)
class ShardSizes:
    """What follows from the shapes in a shard.

    degree: shards that the model is split into. key_rows: rows of a layer's keys in this shard.
    embeddings: how they are split; None: there is one shard, and they are whole. head_size: None
    if it does not follow, as in checkpoints that hold no rotary frequencies.
    """

    degree: int
    dim: int
    layers: int
    ffn: int
    key_rows: int
    vocabulary: int
    embeddings: EmbeddingSplit | None
    head_size: int | None


def shard_sizes(tensors: Mapping[str, StoredTensor]) -> ShardSizes | list[str]:
    """The model's sizes by a shard's tensors, or why it is no shard of a Llama: a line each."""
    lines = [f"missing: {name}" for name in NEEDED if name not in tensors]
    shapes = {name: tensors[name].shape for name in (*NEEDED, OUTPUT) if name in tensors}
    for name, shape in shapes.items():
        if len(shape) != (1 if name == "norm.weight" else 2) or 0 in shape:
            lines.append(f"other shape: {name} is {list(shape)}")
    if lines:
        return lines
    # Queries make all heads, which are as wide as the model: their rows are its share of them.
    rows, dim = shapes[QUERIES]
    if dim % rows or dim // rows > MOST_SHARDS:
        return [f"other shape: {QUERIES} is {list(shapes[QUERIES])}, no even share of {dim} rows"]
    degree = dim // rows
    tokens, columns = shapes[EMBEDDINGS]
    if columns not in (dim, rows):
        return [f"other shape: {EMBEDDINGS} is {list(shapes[EMBEDDINGS])} in a width of {dim}"]
    split: EmbeddingSplit | None = None
    if degree > 1:
        split = "rows" if columns == dim else "columns"
    layers = {found[1] for name in tensors if (found := re.match(r"layers\.(\d+)\.", name))}
    frequencies = [t.count for name, t in tensors.items() if name.endswith(FREQUENCIES)]
    return ShardSizes(
        degree=degree,
        dim=dim,
        layers=len(layers),
        ffn=shapes[UP][0] * degree,
        key_rows=shapes[KEYS][0],
        vocabulary=tokens * degree if split == "rows" else tokens,
        embeddings=split,
        head_size=2 * frequencies[0] if frequencies else None,
    )


def contradictions(raw: Mapping[str, Any], sizes: ShardSizes) -> list[str]:
    """Where params.json and the tensors differ, a line each with both numbers."""
    dim, heads = raw["dim"], raw["n_heads"]
    multiple, multiplier = raw.get("multiple_of") or MULTIPLE_OF, raw.get("ffn_dim_multiplier")
    stated = ffn_width(dim, multiple, multiplier)
    lines = []
    for key, said, found in (
        ("dim", dim, sizes.dim),
        ("n_layers", raw["n_layers"], sizes.layers),
    ):
        if said != found:
            lines.append(f"{key} is {said}, and the tensors have {found}")
    if stated != sizes.ffn:
        how = f"multiple_of {multiple} and ffn_dim_multiplier {multiplier or 1:g}"
        lines.append(f"{how} make a feed-forward of {stated}, and the tensors have {sizes.ffn}")
    vocabulary = raw.get("vocab_size")
    if vocabulary not in (None, -1, sizes.vocabulary):
        lines.append(f"vocab_size is {vocabulary}, and the tensors have {sizes.vocabulary}")
    if dim != sizes.dim:
        return lines
    kv_heads, size = raw.get("n_kv_heads") or heads, dim // heads
    if sizes.head_size not in (None, size):
        said = f"n_heads {heads} makes heads of {size}"
        lines.append(f"{said}, and the rotary frequencies are for {sizes.head_size}")
    rows = size * max(1, kv_heads // sizes.degree)
    if rows != sizes.key_rows:
        said = f"n_heads {heads} and n_kv_heads {kv_heads} make {rows} rows of keys a shard"
        lines.append(f"{said}, and {KEYS} has {sizes.key_rows}")
    return lines
