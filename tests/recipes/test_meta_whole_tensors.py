"""Tensors that are cut in any way are read as the whole they were, in blocks of bounded size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import meta_checkpoints
import pytest
import torch
from meta_checkpoints import GENERATIONS, LLAMA_1, LLAMA_3, LLAMA_3_2, Generation

from llm_recipes.errors import LLMError
from llm_recipes.meta import whole_tensors
from llm_recipes.meta.params import Params, ffn_width
from llm_recipes.meta.whole_tensors import WholeTensor, same, sharded, single
from llm_recipes.stored_weights import OpenFiles, StoredTensor, torch_weights

Shards = list[dict[str, StoredTensor]]


def params(generation: Generation) -> Params:
    raw = generation.params
    width = ffn_width(raw["dim"], raw["multiple_of"], raw.get("ffn_dim_multiplier"))
    sizes = (raw["dim"], raw["n_layers"], raw["n_heads"], generation.kv_heads, width)
    return Params(*sizes, generation.vocabulary, raw["norm_eps"], 1e4, None)


def read(tensor: WholeTensor) -> torch.Tensor:
    with OpenFiles() as files:
        return torch.cat(list(tensor.blocks(files))).view(tensor.shape)


def saved(folder: Path, generation: Generation, degree: int, seed: int = 0) -> Shards:
    """Shards without a tokenizer and params.json, as the reader finds them."""
    whole = meta_checkpoints.weights(generation, seed=seed)
    shards = []
    for rank in range(degree):
        path = folder / f"consolidated.{seed}.{rank:02d}.pth"
        torch.save(meta_checkpoints.shard(generation, whole, rank, degree), path)
        shards.append(torch_weights(path))
    return shards


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks that are no multiple of any shard, so that they cross from one to the next."""
    monkeypatch.setattr(whole_tensors, "BLOCK_BYTES", 7 * 64 * 4)
    return 7 * 64 * 4


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda g: g.name)
def test_shards_as_wholes(
    generation: Generation, degree: int, tmp_path: Path, small_blocks: int
) -> None:
    shards = saved(tmp_path, generation, degree)
    wholes = sharded(shards, params(generation), "rows" if generation.rows else "columns")
    wanted = meta_checkpoints.weights(generation)
    assert list(wholes) == list(wanted)
    for name, tensor in wholes.items():
        assert torch.equal(read(tensor), wanted[name]), name
    with OpenFiles() as files:
        sizes = [b.nbytes for tensor in wholes.values() for b in tensor.blocks(files)]
    assert max(sizes) <= small_blocks


@pytest.mark.parametrize("generation", [LLAMA_1, LLAMA_3_2], ids=lambda g: g.name)
def test_rotary_order_there_and_back(
    generation: Generation, tmp_path: Path, small_blocks: int
) -> None:
    wholes = sharded(saved(tmp_path, generation, 2), params(generation), "rows")
    names = [f"layers.1.attention.{kind}.weight" for kind in ("wq", "wk")]
    theirs = meta_checkpoints.hf_weights(generation, meta_checkpoints.weights(generation))
    for name, hf in zip(names, ("q_proj", "k_proj"), strict=True):
        halves = read(replace(wholes[name], order="halves"))
        assert torch.equal(halves, theirs[f"model.layers.1.self_attn.{hf}.weight"])
        torch.save({"w": halves}, tmp_path / "halves.pth")
        stored = torch_weights(tmp_path / "halves.pth")["w"]
        again = replace(wholes[name], pieces=(stored,), split="whole", copies=(), order="pairs")
        assert torch.equal(read(again), read(wholes[name]))
    assert wholes["layers.1.attention.wv.weight"].heads is None


def test_copies_of_heads_are_compared(tmp_path: Path) -> None:
    shards = saved(tmp_path, LLAMA_3_2, 8)
    name = "layers.0.attention.wv.weight"
    whole = sharded(shards, params(LLAMA_3_2), "rows")[name]
    assert len(whole.pieces) == 2 and [len(c) for c in whole.copies] == [3, 3]
    assert whole.bytes_read == 4 * whole.count * 4
    shards[6][name] = saved(tmp_path, LLAMA_3_2, 8, seed=1)[6][name]
    broken = sharded(shards, params(LLAMA_3_2), "rows")[name]
    with pytest.raises(LLMError, match="no shard of the same model") as error:
        read(broken)
    assert "consolidated.1.06.pth" in str(error.value) and name in str(error.value)


def test_another_type_in_one_shard(tmp_path: Path) -> None:
    shards = saved(tmp_path, LLAMA_3, 2)
    name = "layers.1.feed_forward.w2.weight"
    shards[1][name] = replace(shards[1][name], dtype=torch.bfloat16)
    with pytest.raises(LLMError, match="several types") as error:
        sharded(shards, params(LLAMA_3), "rows")
    assert name in str(error.value)


def test_equal_bits(tmp_path: Path) -> None:
    shards = saved(tmp_path, LLAMA_3, 1)
    wholes = sharded(shards, params(LLAMA_3), "rows")
    (tmp_path / "cut").mkdir()
    cut = sharded(saved(tmp_path / "cut", LLAMA_3, 4), params(LLAMA_3), "rows")
    one, other = wholes["norm.weight"], wholes["layers.0.ffn_norm.weight"]
    with OpenFiles() as files:
        assert all(same(wholes[name], cut[name], files) for name in wholes)
        assert not same(one, other, files)
        assert not same(one, wholes["output.weight"], files)


def test_a_row_and_a_head_larger_than_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_tensors, "BLOCK_BYTES", 16)
    shards = saved(tmp_path, LLAMA_3, 1)
    wholes = sharded(shards, params(LLAMA_3), "rows")
    query = replace(wholes["layers.0.attention.wq.weight"], order="halves")
    with OpenFiles() as files:
        assert {tuple(block.shape) for block in query.blocks(files)} == {(8, 64)}
        value = wholes["layers.0.attention.wv.weight"]
        assert {tuple(block.shape) for block in value.blocks(files)} == {(1, 64)}
    assert torch.equal(read(value), meta_checkpoints.weights(LLAMA_3)[value.name])


def test_a_single_place(tmp_path: Path) -> None:
    from llm_recipes.meta.layout import layout

    stored = saved(tmp_path, LLAMA_3, 1)[0]
    name = "layers.0.attention.wk.weight"
    whole = single(layout(params(LLAMA_3), "rows")[name], stored[name])
    assert whole.heads == 4 and whole.bytes_read == 4 * whole.count
    assert torch.equal(read(whole), meta_checkpoints.weights(LLAMA_3)[name])
