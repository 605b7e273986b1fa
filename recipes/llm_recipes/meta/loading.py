"""Load one process's shard of a Llama in Meta's format.

The file is mapped: weights that need no conversion stay where they are, in memory that all
programs on the node share; others are converted or sent to the GPU one tensor at a time. So a
process needs memory for its own weights and one tensor more.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm_recipes.meta.model import MetaLlama
from llm_recipes.models import read_mapped_weights
from llm_recipes.stored_weights import StoredTensor, cut_off, unreadable

if TYPE_CHECKING:
    from llm_recipes.meta.checkpoint import MetaCheckpoint


def load_shard(
    checkpoint: MetaCheckpoint,
    tensors: Mapping[str, StoredTensor],
    device: torch.device,
    dtype: torch.dtype,
) -> MetaLlama:
    """The model around this process's weights; `start_model_parallel` has been called.

    Args:
        checkpoint: The whole model; of its files, only those of `tensors` are opened.
        tensors: This process's, from `read_shard`. Without output.weight, the output layer uses
            the embeddings; `read_shard` refuses that where only columns of them are here.
        device: Where they go.
        dtype: What they become.

    Raises:
        LLMError: If the file is gone or shorter than it was.
        torch.OutOfMemoryError, RuntimeError: If there is not enough memory.
    """
    files = MappedFiles()
    weights: dict[str, Tensor] = {}
    places: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        # Tied weights that are stored once are loaded once.
        first = places.setdefault((tensor.extents, tensor.shape), name)
        weights[name] = weights[first] if first != name else files.load(tensor, device, dtype)
    model = MetaLlama(checkpoint.params, weights, checkpoint.embeddings)
    read_mapped_weights(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return model


class MappedFiles:
    """Stored tensors as tensors, without reading them: files are mapped, once each."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def load(self, tensor: StoredTensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A tensor on a device; the mapped file itself where that will do.

        Raises:
            LLMError: If its file is gone or shorter than it was.
        """
        (extent,) = tensor.extents
        mapped = self._mapped(extent.file)
        if extent.offset + tensor.bytes > len(mapped):
            raise cut_off(extent.file, f"it ends before byte {extent.offset + tensor.bytes}")
        if not tensor.count:
            return torch.empty(tensor.shape, dtype=dtype, device=device)
        there = torch.frombuffer(
            mapped, dtype=torch.uint8, count=tensor.bytes, offset=extent.offset
        )
        # torch.save aligns what it writes, other writers may not.
        aligned = there if extent.offset % tensor.dtype.itemsize == 0 else there.clone()
        stored = aligned.view(tensor.dtype).view(tensor.shape)
        if device.type == "cpu" and dtype != tensor.dtype:
            loaded = _on_pages(tensor.shape, dtype).copy_(stored)
        else:
            loaded = stored.to(device).to(dtype)
        if loaded.data_ptr() != there.data_ptr():
            _forget(mapped, extent.offset, tensor.bytes)
        return loaded

    def _mapped(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            try:
                with open(path, "rb") as file:
                    # A private mapping: nothing that is done to the weights reaches the file,
                    # which may be read-only.
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise unreadable(path, error) from error
            except ValueError as error:
                raise cut_off(path, "it is empty") from error
        return self._maps[path]


def _on_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor from a page's beginning on: its rows lie across as few pages as can be.

    Reading a row across two costs a few per cent of a matrix product that waits for memory.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = torch.empty(size + mmap.PAGESIZE, dtype=torch.uint8)
    start = -memory.data_ptr() % mmap.PAGESIZE
    return memory[start : start + size].view(dtype).view(shape)


def _forget(mapped: mmap.mmap, offset: int, length: int) -> None:
    """Take the whole pages of a range out of this process's memory; the file still has them."""
    start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (offset + length - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if whole > 0:
        mapped.madvise(mmap.MADV_DONTNEED, start, whole)
