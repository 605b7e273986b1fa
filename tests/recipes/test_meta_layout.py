"""Shapes of whole tensors and shards, against checkpoints that were made without this code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from meta_checkpoints import GENERATIONS, LAYERS, Generation, hf_weights, shard, weights

from llm_recipes.meta.layout import degree_faults, hf_name, layout, shard_shape
from llm_recipes.meta.params import Params, ffn_width

LLAMA_2_70B = Params(8192, 80, 64, 8, 28672, 32000, 1e-5, 10000.0, None)


def sizes(generation: Generation) -> Params:
    raw: Any = generation.params
    width = ffn_width(raw["dim"], raw["multiple_of"], raw.get("ffn_dim_multiplier"))
    counts = (raw["dim"], LAYERS, raw["n_heads"], generation.kv_heads, width)
    return Params(*counts, generation.vocabulary, 1e-5, 1e4, generation.rope_factor)


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda g: g.name)
def test_shapes_of_each_generation(generation: Generation, degree: int) -> None:
    params = sizes(generation)
    tensors = layout(params, "rows" if generation.rows else "columns")
    whole = weights(generation)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in whole.items()
    }
    assert list(tensors) == list(whole)  # in the order of a file
    assert not degree_faults(params, degree, "rows" if generation.rows else "columns")
    for rank in range(degree):
        part = shard(generation, whole, rank, degree)
        del part["rope.freqs"]
        for name, tensor in part.items():
            assert shard_shape(tensors[name], params, degree) == tuple(tensor.shape), name


def test_rotary_heads_and_shared_heads() -> None:
    tensors = layout(LLAMA_2_70B, "columns")
    heads = {n: t.heads for n, t in tensors.items() if t.heads is not None and ".0." in n}
    assert heads == {"layers.0.attention.wq.weight": 64, "layers.0.attention.wk.weight": 8}
    shared = {n for n, t in tensors.items() if t.shared_by_kv and ".0." in n}
    assert shared == {"layers.0.attention.wk.weight", "layers.0.attention.wv.weight"}
    keys = tensors["layers.79.attention.wk.weight"]
    assert shard_shape(keys, LLAMA_2_70B, 8) == shard_shape(keys, LLAMA_2_70B, 64) == (128, 8192)


def test_names() -> None:
    generation = GENERATIONS[0]
    names = {hf_name(name) for name in layout(sizes(generation), "rows")}
    assert names == hf_weights(generation, weights(generation)).keys()
    assert hf_name("layers.79.feed_forward.w2.weight") == "model.layers.79.mlp.down_proj.weight"
    for wrong in ("rope.freqs", "layers.0.attention.wx.weight", "layers.x.ffn_norm.weight"):
        with pytest.raises(KeyError):
            hf_name(wrong)


@pytest.mark.parametrize(
    ("degree", "reasons"),
    [
        (3, ["64 attention heads", "28672 numbers", "32000 tokens", "8 K/V heads", "8192 columns"]),
        (128, ["64 attention heads"]),
        (0, ["at least"]),
        (-2, ["at least"]),
    ],
)
def test_degrees_that_are_not_possible(degree: int, reasons: list[str]) -> None:
    faults = degree_faults(LLAMA_2_70B, degree, "columns")
    assert len(faults) == 1 and f"into {degree} shards" in faults[0].what
    assert all(reason in faults[0].why for reason in reasons)
    assert faults[0].fix == "possible: 1, 2, 4, 8, 16, 32, 64"


def test_fewer_degrees() -> None:
    odd = replace(LLAMA_2_70B, vocabulary=32001)
    assert "possible: 1" in degree_faults(odd, 2, "rows")[0].fix
    shared = replace(LLAMA_2_70B, heads=48, kv_heads=6, dim=6144)
    assert "6 K/V heads" in degree_faults(shared, 4, "rows")[0].why
    assert not degree_faults(shared, 2, "rows") and not degree_faults(shared, 1, "rows")
