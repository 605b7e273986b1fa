"""Which tensors a Llama in Meta's format has, and how its shards divide them.

    from llm_recipes.meta.layout import layout, shard_shape
    for tensor in layout(params, "rows").values(): shard_shape(tensor, params, degree=8)

Split by rows (dimension 0 of a weight [out, in]): what makes heads, the feed-forward's width and
the vocabulary; by columns (dimension 1): what takes these; on every shard as a whole: the norms.
Where there are fewer K/V heads than shards, several shards hold the same head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from llm_recipes.errors import LLMError
from llm_recipes.meta.params import Params

Split = Literal["rows", "columns", "whole"]
EmbeddingSplit = Literal["rows", "columns"]

EMBEDDINGS, OUTPUT = "tok_embeddings.weight", "output.weight"
HF_NAMES = {
    EMBEDDINGS: "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    OUTPUT: "lm_head.weight",
}
HF_PARTS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@dataclass(frozen=True)
class Layout:
    """A tensor of the model. shape: of the whole; split: how shards divide it.

    heads: rotary heads in its rows, None if they are not rotated. shared_by_kv: its rows are K/V
    heads, which several shards hold where there are more shards than heads.
    """

    name: str
    shape: tuple[int, ...]
    split: Split
    heads: int | None = None
    shared_by_kv: bool = False


def layout(params: Params, embeddings: EmbeddingSplit) -> dict[str, Layout]:
    """All tensors by name, in the order in which they stand in a file.

    Args:
        params: The model's sizes.
        embeddings: How the embeddings are split: by columns in Llama 1 and 2, by rows since 3.
    """
    dim, ffn = params.dim, params.ffn
    kv = params.kv_heads * params.head_size
    found = [Layout(EMBEDDINGS, (params.vocabulary, dim), embeddings)]
    for layer in range(params.layers):
        name = f"layers.{layer}."
        found += [
            Layout(f"{name}attention.wq.weight", (dim, dim), "rows", params.heads),
            Layout(f"{name}attention.wk.weight", (kv, dim), "rows", params.kv_heads, True),
            Layout(f"{name}attention.wv.weight", (kv, dim), "rows", None, True),
            Layout(f"{name}attention.wo.weight", (dim, dim), "columns"),
            Layout(f"{name}feed_forward.w1.weight", (ffn, dim), "rows"),
            Layout(f"{name}feed_forward.w2.weight", (dim, ffn), "columns"),
            Layout(f"{name}feed_forward.w3.weight", (ffn, dim), "rows"),
            Layout(f"{name}attention_norm.weight", (dim,), "whole"),
            Layout(f"{name}ffn_norm.weight", (dim,), "whole"),
        ]
    found.append(Layout("norm.weight", (dim,), "whole"))
    found.append(Layout(OUTPUT, (params.vocabulary, dim), "rows"))
    return {tensor.name: tensor for tensor in found}


def shard_shape(tensor: Layout, params: Params, degree: int) -> tuple[int, ...]:
    """Shape of one shard's part of a tensor; the degree must be a possible one."""
    if tensor.split == "whole":
        return tensor.shape
    if tensor.split == "columns":
        return (tensor.shape[0], tensor.shape[1] // degree)
    if tensor.shared_by_kv:
        degree = min(degree, params.kv_heads)
    return (tensor.shape[0] // degree, *tensor.shape[1:])


def degree_faults(params: Params, degree: int, embeddings: EmbeddingSplit) -> list[LLMError]:
    """Why a model cannot be split into this many shards, as one fault; none if it can.

    Args:
        params: The model's sizes.
        degree: Number of shards.
        embeddings: How they are split: by rows, or by columns.
    """
    reasons = _reasons(params, degree, embeddings)
    if not reasons:
        return []
    possible = [n for n in range(1, params.heads + 1) if not _reasons(params, n, embeddings)]
    what = f"the model cannot be split into {degree} shards"
    fix = f"possible: {', '.join(map(str, possible))}"
    return [LLMError(what, "\n".join(reasons), fix)]


def hf_name(name: str) -> str:
    """transformers' name of a tensor, by Meta's.

    Raises:
        KeyError: If it is none of a Llama.
    """
    if name in HF_NAMES:
        return HF_NAMES[name]
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    if found is None:
        raise KeyError(name)
    return f"model.layers.{found[1]}.{HF_PARTS[found[2]]}.weight"


def _reasons(params: Params, degree: int, embeddings: EmbeddingSplit) -> list[str]:
    if degree < 1:
        return ["there must be one at least"]
    counts = {
        "attention heads": params.heads,
        "numbers of the feed-forward": params.ffn,
        "tokens of the vocabulary": params.vocabulary,
    }
    if embeddings == "columns":
        counts["columns of the embeddings"] = params.dim
    reasons = [
        f"{count} {what} cannot be divided by it"
        for what, count in counts.items()
        if count % degree
    ]
    if params.kv_heads % degree and degree % params.kv_heads:
        what = f"{params.kv_heads} K/V heads cannot be divided by it, nor can it be by them"
        reasons.append(what)
    return reasons
