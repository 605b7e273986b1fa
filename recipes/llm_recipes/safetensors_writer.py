"""Write tensors as safetensors files, block by block: no file, not even a tensor is held.

    from llm_recipes.safetensors_writer import write_safetensors
    written = write_safetensors(folder, tensors, None, 5_000_000_000)

A safetensors file begins with a table of names, shapes and places
(https://huggingface.co/docs/safetensors), all of which are known before the first byte is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from llm_recipes.ahead import ahead
from llm_recipes.errors import LLMError
from llm_recipes.progress import Progress
from llm_recipes.stored_weights import SAFETENSORS_DTYPES, OpenFiles

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {f"{name}i": 1 << 10 * power for power, name in enumerate("KMGT", start=1)}
Source = TypeVar("Source", bound="TensorSource")
_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class TensorSource(Protocol):
    """A tensor that is read block by block: a StoredTensor, or one made of several."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor as it is written."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its blocks."""

    @property
    def count(self) -> int:
        """Elements."""

    def blocks(self, files: OpenFiles) -> Iterator[torch.Tensor]:
        """Its elements in order, in tensors of any shape."""


@dataclass(frozen=True)
class Written:
    """What was written. not_finite: names of tensors that hold infinities or NaN."""

    files: tuple[str, ...]
    bytes: int
    parameters: int
    not_finite: tuple[str, ...]


def size_in_bytes(text: str) -> int:
    """The bytes that 5GB, 500MB, 2GiB or a plain number mean.

    Raises:
        LLMError: If it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|[KMGT]i?)B?", text.strip(), re.IGNORECASE)
    units = {name.lower(): factor for name, factor in UNITS.items()}
    size = int(float(found[1]) * units[found[2].lower()]) if found else 0
    if size < 1:
        raise LLMError(f"{text!r} is no size", "it is a number of bytes, KB, MB, GB or GiB", "5GB")
    return size


def written_bytes(tensors: Mapping[str, TensorSource], dtype: torch.dtype | None) -> int:
    """Bytes that these tensors take when they are written as a dtype; None: as they are."""
    return sum(t.count * target_dtype(t, dtype).itemsize for t in tensors.values())


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, TensorSource],
    dtype: torch.dtype | None,
    shard_bytes: int,
    name: str = "model",
) -> Written:
    """Write NAME.safetensors, or numbered shards of a size with NAME.safetensors.index.json.

    Args:
        folder: Where to.
        tensors: By name, in the order to write them.
        dtype: Floating point tensors are converted to it; None: they are written as they are.
        shard_bytes: Most bytes of tensors in a file; a larger tensor gets one of its own.
        name: Of the files, up to `.safetensors`.

    Raises:
        LLMError: If a file cannot be read, or a weight is too large for fp16.
        OSError: If the folder cannot be written or is full.
    """
    files = planned_files(tensors, dtype, shard_bytes, name)
    not_finite: list[str] = []
    with OpenFiles() as source, Progress("write", len(tensors), "tensors") as progress:
        for file, shard in files.items():
            not_finite += _write_file(folder / file, shard, dtype, source, progress)
    total = written_bytes(tensors, dtype)
    parameters = sum(tensor.count for tensor in tensors.values())
    if len(files) > 1:
        index = {
            "metadata": {"total_parameters": parameters, "total_size": total},
            "weight_map": {t: file for file, shard in files.items() for t in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{name}.safetensors.index.json").write_text(text, encoding="utf-8")
    return Written(tuple(files), total, parameters, tuple(not_finite))


def converted(block: torch.Tensor, dtype: torch.dtype, name: str) -> tuple[torch.Tensor, bool]:
    """A block in the type to write, and whether all its numbers are finite.

    Raises:
        LLMError: If they are, and are no longer in fp16.
    """
    made = block.to(dtype)
    finite = _is_finite(made)
    if not finite and dtype == torch.float16 and _is_finite(block):
        why = "numbers above 65504 are infinite in fp16"
        raise LLMError(f"{name} has weights that do not fit into fp16", why, "--dtype bf16")
    return made, finite


def _is_finite(block: torch.Tensor) -> bool:
    """Whether there is no infinity and no NaN; the types of 8 bits are not looked at."""
    if not block.is_floating_point() or block.element_size() == 1 or not block.numel():
        return True
    # NaN is the least and the largest where it is; isfinite takes 30 times as long for bf16.
    least, largest = torch.aminmax(block)
    return bool(least.isfinite()) and bool(largest.isfinite())


def target_dtype(tensor: TensorSource, dtype: torch.dtype | None) -> torch.dtype:
    """The type in which a tensor is written; whole numbers stay as they are."""
    return dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype


def planned_files(
    tensors: Mapping[str, Source],
    dtype: torch.dtype | None,
    shard_bytes: int,
    name: str = "model",
) -> dict[str, dict[str, Source]]:
    """The files that `write_safetensors` makes, and the tensors of each."""
    shards: list[dict[str, Source]] = [{}]
    filled = 0
    for key, tensor in tensors.items():
        size = tensor.count * target_dtype(tensor, dtype).itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled += size
    if len(shards) == 1:
        return {f"{name}.safetensors": shards[0]}
    of = f"of-{len(shards):05d}"
    return {f"{name}-{n:05d}-{of}.safetensors": shard for n, shard in enumerate(shards, start=1)}


def _write_file(
    path: Path,
    tensors: Mapping[str, TensorSource],
    dtype: torch.dtype | None,
    source: OpenFiles,
    progress: Progress,
) -> list[str]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        target = target_dtype(tensor, dtype)
        start, end = end, end + tensor.count * target.itemsize
        entry = {"dtype": _NAMES[target], "shape": tensor.shape, "data_offsets": [start, end]}
        header[name] = entry
    table = json.dumps(header).encode()
    table += b" " * (-len(table) % 8)  # tensors begin at a multiple of 8 bytes
    not_finite: list[str] = []
    blocks = ((name, block) for name, t in tensors.items() for block in t.blocks(source))
    with open(path, "wb") as file:
        file.write(len(table).to_bytes(8, "little") + table)
        for name, of_tensor in groupby(ahead(blocks), itemgetter(0)):
            target = target_dtype(tensors[name], dtype)
            for _, block in of_tensor:
                made, is_finite = converted(block, target, name)
                if not is_finite and name not in not_finite[-1:]:
                    not_finite.append(name)
                file.write(made.reshape(-1).view(torch.uint8).numpy().data)
            progress.advance()
    return not_finite
