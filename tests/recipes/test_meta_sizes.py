"""Bytes of a Llama in several processes, against the tensors themselves."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from meta_checkpoints import LLAMA_2, LLAMA_3_2, Generation, hf_model, shard, weights

from llm_recipes.batch_memory import MOST_ROWS
from llm_recipes.meta.params import Params
from llm_recipes.meta.sizes import (
    Shape,
    fitting_rows,
    kv_bytes,
    parameters,
    read_bytes,
    row_bytes,
    shard_bytes,
)


def shape(generation: Generation, degree: int, item_bytes: int = 4) -> Shape:
    params = Params(
        dim=64,
        layers=2,
        heads=8,
        kv_heads=generation.kv_heads,
        ffn=generation.ffn,
        vocabulary=generation.vocabulary,
        norm_eps=1e-5,
        rope_theta=1e4,
        rope_factor=generation.rope_factor,
    )
    split = "rows" if generation.rows else "columns"
    return Shape(params, split, degree, generation.tied, item_bytes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generation", "degree"), [(LLAMA_2, 1), (LLAMA_2, 4), (LLAMA_3_2, 2), (LLAMA_3_2, 4)]
)
def test_weights_are_those_of_the_shards(generation: Generation, degree: int) -> None:
    size = shape(generation, degree)
    tensors = shard(generation, weights(generation), 0, degree)
    del tensors["rope.freqs"]
    if generation.tied:
        del tensors["output.weight"]
    assert shard_bytes(size) == sum(tensor.nbytes for tensor in tensors.values())
    read = sum(t.nbytes for n, t in tensors.items() if generation.tied or "embed" not in n)
    assert read_bytes(size) == degree * read
    model = hf_model(generation)
    assert parameters(size) == sum(weight.numel() for weight in model.parameters())
    matrices = [weight.numel() for weight in model.parameters() if weight.dim() > 1]
    looked_up = 0 if generation.tied else model.get_input_embeddings().weight.numel()
    assert parameters(size, matrices_only=True) == sum(matrices) - looked_up


def test_a_row_of_the_cache() -> None:
    # 2 (keys and values) x 2 layers x 4 heads x 8 numbers x 4 bytes
    assert kv_bytes(shape(LLAMA_2, 1), tokens=1) == 512
    assert kv_bytes(shape(LLAMA_2, 2), tokens=10) == 2560
    # Four processes with two heads: each holds one.
    assert kv_bytes(shape(LLAMA_3_2, 4), 1) == kv_bytes(shape(LLAMA_3_2, 2), 1) == 128
    assert kv_bytes(shape(LLAMA_2, 1, item_bytes=2), 1) == 256
    assert row_bytes(shape(LLAMA_2, 1), 100, 50) > kv_bytes(shape(LLAMA_2, 1), 100)


def test_rows_that_fit() -> None:
    assert fitting_rows(free=1000, a_row=100, device="cpu", wanted=1000) == 8
    assert fitting_rows(free=1000, a_row=100, device="cpu", wanted=3) == 3
    assert fitting_rows(free=1e12, a_row=100, device="cuda", wanted=1000) == MOST_ROWS["cuda"]
    assert fitting_rows(free=-5, a_row=100, device="cpu", wanted=3) == 1
