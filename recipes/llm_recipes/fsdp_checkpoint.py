"""Find the tensors of a checkpoint that torch.distributed.checkpoint wrote (FSDP2's shards).

    from llm_recipes.fsdp_checkpoint import fsdp_tensors
    tensors = fsdp_tensors(Path("checkpoint-100/pytorch_model_fsdp_0"))

A folder of `.metadata` and a `.distcp` file or more a process; accelerate and transformers' Trainer
call it pytorch_model_fsdp_0. torch's own reader unpickles `.metadata` with the right to run code:
here a pickle is data.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.stored_weights import (
    ENUM_MEMBERS,
    Extent,
    Inert,
    StoredTensor,
    cut_off,
    stored,
    torch_file,
    unreadable,
)

METADATA = ".metadata"
# What torch.distributed.checkpoint puts into .metadata, besides numbers and text.
PLAIN_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
}


def fsdp_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by its name in the model.

    Raises:
        LLMError, ExceptionGroup: All shards that are missing, cut off or damaged.
    """
    metadata = _read_metadata(folder / METADATA)
    try:
        places = {
            # What is no tensor has no offset.
            (key.fqn, tuple(getattr(key, "offset", None) or ())): (
                folder / info.relative_path,
                int(info.offset),
                int(info.length),
            )
            for key, info in metadata.storage_data.items()
        }
        entries = {
            name: (tuple(entry.size), [(tuple(c.offsets), tuple(c.sizes)) for c in entry.chunks])
            for name, entry in metadata.state_dict_metadata.items()
            if hasattr(entry, "chunks")
        }
        paths = metadata.planner_data or {}
    except (AttributeError, TypeError) as error:
        raise cut_off(folder / METADATA, f"it lacks what it should hold: {error}") from error
    _check_files(places)
    tensors = {}
    for name, (shape, chunks) in entries.items():
        whole = _assemble(name, shape, chunks, places, folder)
        tensors[_name_in_model(name, paths.get(name))] = whole
    return tensors


def _name_in_model(name: str, path: Any) -> str:
    # accelerate saves {"model": state_dict}: the first step of the path is no part of the name.
    nested = isinstance(path, tuple) and len(path) > 1 and path[0] == "model"
    return name.removeprefix("model.") if nested else name


def _check_files(places: dict[Any, tuple[Path, int, int]]) -> None:
    needed: dict[Path, int] = {}
    for path, offset, length in places.values():
        needed[path] = max(needed.get(path, 0), offset + length)
    faults = []
    for path, size in needed.items():
        if not path.is_file():
            why = "the checkpoint's .metadata names it"
            fix = "copy the folder again as a whole, or take an earlier checkpoint"
            faults.append(LLMError(f"the shard {path} is missing", why, fix))
        elif path.stat().st_size < size:
            faults.append(cut_off(path, f"it has {path.stat().st_size} bytes of {size}"))
    raise_all(faults)


def _assemble(
    name: str,
    shape: tuple[int, ...],
    chunks: list[tuple[tuple[int, ...], tuple[int, ...]]],
    places: dict[Any, tuple[Path, int, int]],
    folder: Path,
) -> StoredTensor:
    """The tensor's runs of elements in order, from chunks that may split any dimension."""
    runs: list[tuple[int, Extent]] = []
    dtypes = set()
    for offsets, sizes in chunks:
        count = math.prod(sizes)
        if not count:
            continue
        place = places.get((name, offsets)) or (places.get((name, ())) if not shape else None)
        if place is None:
            raise cut_off(folder / METADATA, f"it names no file for {name} at {offsets}")
        path, start, length = place
        value = torch_file(path, offset=start, length=length)
        if not isinstance(value, torch.Tensor) or value.numel() != count:
            raise cut_off(path, f"it holds no {sizes} elements of {name} at byte {start}")
        chunk = stored(value, path, start)
        dtypes.add(chunk.dtype)
        first, size = chunk.extents[0], chunk.dtype.itemsize
        for index, (at, run) in enumerate(_runs(shape, offsets, sizes)):
            runs.append((at, Extent(path, first.offset + index * run * size, run)))
    runs.sort(key=lambda pair: pair[0])
    position = 0
    for at, extent in runs:
        if at != position:
            raise cut_off(folder / METADATA, f"elements {position} to {at} of {name} are nowhere")
        position += extent.count
    if position != math.prod(shape) or len(dtypes) > 1:
        raise cut_off(folder / METADATA, f"{name} is not whole")
    dtype = dtypes.pop() if dtypes else torch.float32
    return StoredTensor(shape, dtype, tuple(extent for _, extent in runs))


def _runs(
    shape: tuple[int, ...], offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    """Where in the flat tensor a chunk's elements lie: start and length of each run of them."""
    whole = len(shape)
    while whole > 1 and sizes[whole - 1] == shape[whole - 1]:
        whole -= 1
    # Dimensions from `whole` on are complete: together with the one before they make one run.
    split = max(whole - 1, 0)
    run = math.prod(sizes[split:])
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    tail = offsets[split] * strides[split] if shape else 0
    for index in product(*(range(size) for size in sizes[:split])):
        start = sum((o + i) * s for o, i, s in zip(offsets, index, strides, strict=False))
        yield start + tail, run


class _PlainUnpickler(pickle.Unpickler):
    """Knows only classes that do nothing; everything else is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if name in PLAIN_CLASSES.get(module, ()) or f"{module}.{name}" in ENUM_MEMBERS:
            return Inert
        if module == "torch" and name == "Size":
            return torch.Size
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"{module}.{name}")


def _read_metadata(path: Path) -> Any:
    if not path.exists():
        what = f"{path.parent} is no whole checkpoint"
        why = f"{METADATA} is missing: it is written last, when every process has saved its part"
        raise LLMError(what, why, "take an earlier checkpoint")
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file).load()
    except pickle.UnpicklingError as error:
        named = str(error)
        if "." not in named or " " in named:
            raise cut_off(path, named) from error
        what = f"{path} is refused: it wants to run code"
        why = f"its pickle names {named}, which is no plain data"
        raise LLMError(what, why, "take the checkpoint from a source you trust") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # whatever a damaged pickle leads to: nothing in here is code of it
        raise cut_off(path, f"{type(error).__name__}: {error}") from error
