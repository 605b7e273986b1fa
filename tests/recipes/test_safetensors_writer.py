"""Safetensors written block by block are those that the library reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_recipes import stored_weights
from llm_recipes.errors import LLMError
from llm_recipes.safetensors_writer import converted, size_in_bytes, write_safetensors
from llm_recipes.stored_weights import safetensors_file

TENSORS = {
    "a": torch.rand(100, 7),
    "b": torch.rand(33).half(),
    "c": torch.arange(5),
    "d": torch.empty(0, 3),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def test_as_they_are(source: Path, tmp_path: Path) -> None:
    written = write_safetensors(tmp_path, safetensors_file(source), None, 10**9)
    loaded = load_file(tmp_path / "model.safetensors")
    assert written.files == ("model.safetensors",) and written.parameters == 738
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_another_type_in_shards(source: Path, tmp_path: Path) -> None:
    written = write_safetensors(tmp_path, safetensors_file(source), torch.bfloat16, 1000, "m")
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(written.files) and len(written.files) == 3
    loaded = {n: t for file in written.files for n, t in load_file(tmp_path / file).items()}
    assert torch.equal(loaded["a"], TENSORS["a"].bfloat16())
    assert torch.equal(loaded["c"], TENSORS["c"])  # whole numbers stay
    assert index["metadata"]["total_size"] == written.bytes == 2 * 733 + 40


def test_too_large_for_fp16_and_not_finite(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, 1e6])}, tmp_path / "in.safetensors")
    tensors = safetensors_file(tmp_path / "in.safetensors")
    with pytest.raises(LLMError, match="do not fit into fp16"):
        write_safetensors(tmp_path, tensors, torch.float16, 10**9)
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "in.safetensors")
    tensors = safetensors_file(tmp_path / "in.safetensors")
    assert write_safetensors(tmp_path, tensors, None, 10**9).not_finite == ("w",)


@pytest.mark.parametrize(
    "text, size",
    [("5GB", 5 * 10**9), ("5gb", 5 * 10**9), ("1.5 GiB", 3 << 29), ("700", 700), ("2MB", 2000000)],
)
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "five", "5XB", "1e400"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(LLMError, match="no size"):
        size_in_bytes(text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_seen(dtype: torch.dtype, value: float) -> None:
    for place in (0, 7, 500, 1000):
        block = torch.linspace(-2, 2, 1001).to(dtype)
        assert converted(block, dtype, "w")[1]
        block[place] = value
        assert not converted(block, dtype, "w")[1]
    assert converted(torch.empty(0, dtype=dtype), dtype, "w")[1]


def test_tensors_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_weights, "BLOCK_BYTES", 64)
    tensors = {"a": torch.rand(99), "b": torch.rand(0), "c": torch.rand(50)}
    tensors["a"][[1, 98]] = float("inf")
    save_file(tensors, tmp_path / "in.safetensors")
    written = write_safetensors(tmp_path, safetensors_file(tmp_path / "in.safetensors"), None, 999)
    assert written.not_finite == ("a",)
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
