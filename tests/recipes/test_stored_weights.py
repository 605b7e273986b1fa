"""Tensors found by position in files, whole and damaged."""

from __future__ import annotations

import json
import os
import pathlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llm_recipes import stored_weights
from llm_recipes.errors import LLMError
from llm_recipes.stored_weights import (
    Extent,
    OpenFiles,
    StoredTensor,
    part,
    safetensors_file,
    torch_file,
    torch_weights,
)

TENSORS = {
    "wide": torch.arange(70_000, dtype=torch.float32).view(7, 100, 100),
    "half": torch.linspace(-3, 3, 1001).bfloat16(),
    "ids": torch.arange(9),
    "one": torch.tensor(2.5, dtype=torch.float64),
    "none": torch.empty(0, 4),
    "yes": torch.tensor([True, False]),
}


def read(tensor: StoredTensor) -> torch.Tensor:
    with OpenFiles() as files:
        blocks = list(files.blocks(tensor))
    empty = torch.empty(0, dtype=tensor.dtype)
    return torch.cat(blocks or [empty]).view(tensor.shape)


@pytest.mark.parametrize("name", ["it's; ü.safetensors", "it's; ü.bin"])
def test_every_element(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_weights, "BLOCK_BYTES", 4096)
    path = tmp_path / name
    if path.suffix == ".bin":
        torch.save(TENSORS, path)
        found = torch_weights(path)
    else:
        save_file(TENSORS, path)
        found = safetensors_file(path)
    assert found.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        value = read(found[key])
        assert value.dtype == tensor.dtype and torch.equal(value, tensor), key


def test_views_of_one_storage(tmp_path: Path) -> None:
    whole = torch.arange(100)
    torch.save({"end": whole[90:], "start": whole[:3]}, tmp_path / "w.bin")
    found = torch_weights(tmp_path / "w.bin")
    assert torch.equal(read(found["end"]), whole[90:])
    torch.save({"turned": torch.arange(6).view(2, 3).T}, tmp_path / "w.bin")
    with pytest.raises(LLMError, match="tensor by tensor"):
        torch_weights(tmp_path / "w.bin")


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_weights, "OPEN_FILES", 2)
    extents = []
    for number in range(5):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number, number]))
        extents.append(Extent(path, 0, 2))
    tensor = StoredTensor((10,), torch.uint8, tuple(extents))
    assert read(tensor).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_parts_across_pieces() -> None:
    path = Path("f")
    pieces = [
        StoredTensor((5,), torch.float32, (Extent(path, 100, 5),)),
        StoredTensor((4,), torch.float32, (Extent(path, 900, 4),)),
    ]
    assert part(pieces, 3, 4) == (Extent(path, 112, 2), Extent(path, 900, 2))
    assert part(pieces, 5, 4) == (Extent(path, 900, 4),)
    assert part(pieces, 0, 0) == ()
    with pytest.raises(IndexError):
        part(pieces, 6, 4)


def header(**entries: object) -> bytes:
    table = json.dumps(entries).encode()
    return len(table).to_bytes(8, "little") + table


ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "empty": b"",
    "short": b"abc",
    "header longer than the file": (10**12).to_bytes(8, "little") + b"{}",
    "no JSON": (5).to_bytes(8, "little") + b"{{{{{" + bytes(99),
    "a list": (2).to_bytes(8, "little") + b"[]" + bytes(99),
    "no tensors": header(__metadata__={}) + bytes(99),
    "data cut off": header(x=ENTRY) + bytes(7),
    "sizes that do not fit": header(x={**ENTRY, "shape": [3]}) + bytes(99),
    "negative": header(x={**ENTRY, "data_offsets": [-8, 0]}) + bytes(99),
    "unknown type": header(x={**ENTRY, "dtype": "Q4"}) + bytes(99),
    "entry without place": header(x={"dtype": "F32", "shape": [2]}) + bytes(99),
    "shape of text": header(x={**ENTRY, "shape": "ab"}) + bytes(99),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_safetensors(how: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(BROKEN[how])
    with pytest.raises(LLMError, match="cut off or damaged"):
        safetensors_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, 0.5, 0.9, 0.999])
def test_torch_files_that_are_cut(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save(TENSORS, path)
    size = path.stat().st_size
    os.truncate(path, int(keep * size) if isinstance(keep, float) else keep)
    with pytest.raises(LLMError, match="cut off or damaged"):
        torch_weights(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    found = safetensors_file(path)
    os.truncate(path, 5000)
    with pytest.raises(LLMError, match="cut off"):
        read(found["wide"])
    path.unlink()
    with pytest.raises(LLMError, match="cannot read"):
        read(found["wide"])


def test_formats_that_cannot_be_read_by_position(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(LLMError):
        torch_weights(tmp_path / "old.bin")
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(LLMError, match="holds no weights"):
        torch_weights(tmp_path / "list.bin")


class Harmless:
    pass


def test_classes_are_refused_or_stand_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"scaler": Harmless(), "x": torch.ones(3)}, path)
    name = f"{Harmless.__module__}.Harmless"
    with pytest.raises(LLMError, match="wants to run code") as error:
        torch_file(path)
    assert name in str(error.value)
    assert type(torch_file(path, [name])["scaler"]).__name__ == "Inert"


class MemberOfAnEnum:
    """Pickled as Python 3.11.0 to 3.11.3 pickle a member of an enumeration."""

    def __reduce__(self) -> Any:
        return getattr, (pathlib.PurePosixPath, "stem")


def test_members_of_enumerations_are_data(tmp_path: Path) -> None:
    path = tmp_path / "states.pt"
    torch.save({"stage": MemberOfAnEnum(), "weight": torch.ones(2)}, path)
    with pytest.raises(LLMError, match="wants to run code"):
        torch_file(path)
    found = torch_file(path, ["pathlib.PurePosixPath"])
    assert found["stage"].contents[-1] == "stem", "getattr itself was not called"
