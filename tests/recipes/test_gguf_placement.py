"""How many layers fit where, by arithmetic on made-up files and devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")

from llm_recipes.errors import LLMError
from llm_recipes.gguf import placement
from llm_recipes.gguf.engine import Device
from llm_recipes.gguf.file import GgufFile, GgufTensor
from llm_recipes.gguf.model import ContextSettings
from llm_recipes.gguf.placement import (
    MARGIN_BYTES,
    cache_bytes_per_token,
    layers_of_devices,
    memory_need,
    plan_placement,
    sequences_that_fit,
    shares_of,
)

GB = 10**9
CONTEXT = ContextSettings(tokens=1000, micro_batch=1)


def model(layers: int = 8, layer_bytes: int = GB, tied: bool = False) -> GgufFile:
    """A Llama with layers of a given size."""
    tensors = [GgufTensor("token_embd.weight", "F16", (4096, 1000), GB // 2)]
    tensors += [GgufTensor(f"blk.{i}.w", "F16", (4096,), layer_bytes) for i in range(layers)]
    tensors.append(GgufTensor("output_norm.weight", "F32", (4096,), 1000))
    if not tied:
        tensors.append(GgufTensor("output.weight", "F16", (4096, 1000), GB // 2))
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.embedding_length": 4096,
        "llama.feed_forward_length": 11008,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "tokenizer.ggml.tokens#count": 1000,
    }
    path = Path("made-up.gguf")
    return GgufFile(path, (path,), metadata, tuple(tensors), sum(t.bytes for t in tensors))


def gpu(free: float, name: str = "CUDA0") -> Device:
    return Device(name, "a GPU", "gpu", int(free * GB), int(free * GB), 0)


@pytest.fixture(autouse=True)
def _host_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_host_bytes", lambda: 100 * GB)


def test_cache_of_llama_3_8b_by_hand() -> None:
    # 8 heads of 128 values, keys and values of 2 bytes: 4 KiB a layer, 128 KiB for 32 layers
    assert cache_bytes_per_token(model(32), CONTEXT) == [4096] * 32
    quantized = replace(CONTEXT, key_type="q8_0", value_type="q8_0")
    assert cache_bytes_per_token(model(1), quantized) == [2 * 1024 // 32 * 34]


def test_need_counts_everything_once() -> None:
    need = memory_need(model(), CONTEXT)
    assert need.layers == (GB,) * 8 + (GB // 2 + 1000,)
    assert need.cache == (1024 * 4096,) * 8  # 1000 tokens have room for 1024
    assert need.input == GB // 2
    tied = memory_need(model(tied=True), CONTEXT)
    assert tied.layers[-1] == GB // 2 + 1000
    beside = sum(need.cache) + need.scratch
    assert need.total == model().tensor_bytes + beside
    assert tied.total == model(tied=True).tensor_bytes + beside
    assert need.on_host(9) == GB // 2 + need.scratch


def test_all_layers_fit_or_as_many_as_do() -> None:
    assert plan_placement(model(), "auto", "layer", (), CONTEXT, [gpu(20)]).gpu_layers == 9
    some = plan_placement(model(), "auto", "layer", (), CONTEXT, [gpu(4.2)]).gpu_layers
    assert some == 4  # output, 3 layers and the margin
    assert plan_placement(model(), "auto", "layer", (), CONTEXT, [gpu(0.3)]).gpu_layers == 0


def test_a_number_that_does_not_fit_is_refused_with_the_gpu() -> None:
    with pytest.raises(LLMError, match="9 layers do not fit") as end:
        plan_placement(model(), "all", "layer", (), CONTEXT, [gpu(4)])
    assert "CUDA0 needs" in end.value.why
    assert plan_placement(model(), 2, "layer", (), CONTEXT, [gpu(4)]).gpu_layers == 2
    assert plan_placement(model(), 99, "layer", (), CONTEXT, [gpu(40)]).gpu_layers == 9


def test_no_gpu() -> None:
    assert plan_placement(model(), "auto", "layer", (), CONTEXT, []).gpu_layers == 0
    with pytest.raises(LLMError, match="--gpu-layers all cannot be"):
        plan_placement(model(), "all", "layer", (), CONTEXT, [])


def test_two_gpus_share_as_llama_cpp_does() -> None:
    assert layers_of_devices(9, 9, (1, 1)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    assert layers_of_devices(4, 9, (3, 1)) == [[5, 6, 7], [8]]
    assert layers_of_devices(9, 9, (0, 1)) == [[], list(range(9))]
    room = (5 * GB + 5 * 1024 * 4096 + MARGIN_BYTES + 10**6) / GB
    pair = [gpu(room), gpu(room, "CUDA1")]
    assert plan_placement(model(), "auto", "layer", (), CONTEXT, pair).gpu_layers == 9
    # With all on the first, as many as fit there.
    assert plan_placement(model(), "auto", "layer", (1, 0), CONTEXT, pair).gpu_layers == 5
    assert plan_placement(model(), "auto", "none", (), CONTEXT, pair).gpu_layers == 5
    assert plan_placement(model(), "auto", "row", (), CONTEXT, pair).gpu_layers == 9


def test_shares_are_one_for_each_gpu() -> None:
    with pytest.raises(LLMError, match="--shares has 3 numbers") as end:
        plan_placement(model(), "auto", "layer", (1, 1, 1), CONTEXT, [gpu(20), gpu(20, "CUDA1")])
    assert "CUDA0, CUDA1" in end.value.why


def test_a_model_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_host_bytes", lambda: 3 * GB)
    with pytest.raises(LLMError, match=r"made-up.gguf does not fit into memory") as end:
        plan_placement(model(), 0, "layer", (), CONTEXT, [])
    assert "3.00 GB are free" in end.value.why
    # What lies on a GPU needs no host memory.
    assert plan_placement(model(), "auto", "layer", (), CONTEXT, [gpu(20)]).gpu_layers == 9
    with pytest.raises(LLMError, match="does not fit into memory"):
        plan_placement(model(), 3, "layer", (), CONTEXT, [gpu(20)])


def test_sequences() -> None:
    weights = 9 * GB + 10**6
    assert sequences_that_fit(model(), CONTEXT, 64, 100 * GB) == 64
    three = weights + int(3.5 * 8 * 1024 * 4096)
    assert sequences_that_fit(model(), CONTEXT, 64, three) == 3
    assert sequences_that_fit(model(), CONTEXT, 64, 1) == 1


@pytest.mark.parametrize("text", ["3;1", "a", "-1,2", "0,0", "nan,1", "inf,1", "1,,2", " "])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(LLMError, match="are no shares"):
        shares_of(text)


def test_shares() -> None:
    assert shares_of("3,1") == (3.0, 1.0)
    assert shares_of(None) == shares_of("") == ()
