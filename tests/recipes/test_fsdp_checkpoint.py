"""Checkpoints of torch.distributed.checkpoint; test_consolidate.py has those of two processes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from llm_recipes import fsdp_checkpoint
from llm_recipes.errors import LLMError
from llm_recipes.fsdp_checkpoint import fsdp_tensors
from llm_recipes.stored_weights import OpenFiles, StoredTensor


def read(tensor: StoredTensor) -> torch.Tensor:
    with OpenFiles() as files:
        return torch.cat(list(files.blocks(tensor))).view(tensor.shape)


def save(state: dict[str, object], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one process
        dcp.save(state, checkpoint_id=folder, no_dist=True)


@pytest.mark.parametrize("nested", [True, False])
def test_names_and_values(nested: bool, tmp_path: Path) -> None:
    weights = {"model.norm.weight": torch.rand(5), "scale": torch.tensor(3.0)}
    state: dict[str, object] = {"model": weights} if nested else {**weights}
    save({**state, "step": 3, "note": "text"}, tmp_path / "it's; ü")
    found = fsdp_tensors(tmp_path / "it's; ü")
    assert found.keys() == weights.keys()
    assert all(torch.equal(read(found[name]), weights[name]) for name in weights)


@pytest.mark.parametrize(
    "shape, offsets, sizes",
    [
        ((6, 4), (2, 0), (3, 4)),
        ((6, 4), (0, 1), (6, 2)),
        ((6, 4, 5), (1, 2, 0), (2, 2, 5)),
        ((6, 4, 5), (1, 2, 3), (2, 1, 2)),
        ((6, 4, 5), (0, 0, 0), (6, 4, 5)),
        ((7,), (3,), (2,)),
        ((), (), ()),
    ],
)
def test_where_the_elements_of_a_chunk_are(
    shape: tuple[int, ...], offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    flat = torch.arange(math.prod(shape)).view(shape)
    index = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
    runs = list(fsdp_checkpoint._runs(shape, offsets, sizes))
    found = [element for start, run in runs for element in range(start, start + run)]
    assert found == flat[index].flatten().tolist()


def test_a_tensor_with_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"w": torch.rand(6, 4)}, tmp_path / "c")
    whole = fsdp_checkpoint._read_metadata

    def with_hole(path: Path) -> object:
        metadata = whole(path)
        metadata.state_dict_metadata["w"].size = torch.Size((8, 4))
        return metadata

    monkeypatch.setattr(fsdp_checkpoint, "_read_metadata", with_hole)
    with pytest.raises(LLMError, match="cut off or damaged"):
        fsdp_tensors(tmp_path / "c")
