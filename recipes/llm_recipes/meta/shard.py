"""One file consolidated.NN.pth: its tensors where they lie, and digests of them.

    from llm_recipes.meta.shard import shard_contents
    tensors = shard_contents(Path("Llama-2-13B/consolidated.00.pth"))

A shard's table of contents is read and no weight; pickles that hold more than data are refused.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import torch

from llm_recipes.errors import LLMError
from llm_recipes.meta.layout import EMBEDDINGS, OUTPUT
from llm_recipes.model_folder import LFS_POINTER, TENSOR_PIECE_BYTES, first_line, lfs_pointer
from llm_recipes.stored_weights import (
    OpenFiles,
    StoredTensor,
    cut_off,
    part,
    torch_weights,
    unreadable,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FREQUENCIES = "rope.freqs"  # of old checkpoints


def shard_contents(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a shard by name; see `weights_of`.

    Raises:
        LLMError: If it cannot be read, is damaged, wants to run code, or holds no weights as they
            are computed with.
    """
    try:
        if path.exists() and not path.is_file():
            raise LLMError(f"cannot read {path}", "it is no file")
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise unreadable(path, error) from error
    if start == LFS_POINTER:
        raise lfs_pointer(path)
    if not start:
        raise cut_off(path, "it is empty")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise cut_off(path, f"it has {size} bytes and ends before its table of contents")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols of pickles, which say less than a fault
            tensors = torch_weights(path)
    except RuntimeError as error:  # a kind of tensor that has no place in a file
        raise cut_off(path, first_line(error)) from error
    if not tensors:
        why = "it has no tensors by name: torch.save of a state dict is expected"
        raise LLMError(f"{path} holds no weights", why)
    others = {str(t.dtype) for t in weights_of(tensors).values() if t.dtype not in DTYPES}
    if others:
        kinds = ", ".join(sorted(others)).replace("torch.", "")
        fix = "take the release in bfloat16: quantized weights in Meta's format are not read"
        raise LLMError(f"{path} holds quantized weights", f"tensors of type {kinds}", fix)
    return tensors


def weights_of(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """A shard's tensors without the rotary frequencies, which follow from the sizes."""
    return {name: t for name, t in tensors.items() if not name.endswith(FREQUENCIES)}


def is_tied(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether a shard's output head is its embeddings: it has none, or it lies at the same place.

    Equal bytes at two places are not looked for here.
    """
    output = tensors.get(OUTPUT)
    return output is None or output == tensors[EMBEDDINGS]


def shard_identity(tensors: Mapping[str, StoredTensor]) -> str:
    """Digest of what every shard of a model has alike: names, types and the whole norms."""
    found = sha256()
    with OpenFiles() as files:
        for name, tensor in sorted(tensors.items()):
            found.update(f"{name}\0{tensor.dtype}\0".encode())
            if len(tensor.shape) == 1:
                for piece in _bytes(files, tensor):
                    found.update(piece)
    return found.hexdigest()


def shard_digest(tensors: Mapping[str, StoredTensor], path: Path) -> str:
    """Digest of a shard for run records: its names, shapes, types, and pieces of each tensor.

    A few KB of each tensor's beginning and middle tell two fine-tuned copies apart; all of it would
    take longer to read than the model to run.
    """
    found = sha256(f"{path.name}\0".encode("utf-8", "surrogateescape"))
    with OpenFiles() as files:
        for name, tensor in sorted(tensors.items()):
            found.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
            length = min(tensor.count, TENSOR_PIECE_BYTES // tensor.dtype.itemsize)
            for start in (0, (tensor.count - length) // 2):
                extents = part([tensor], start, length)
                for piece in _bytes(files, StoredTensor((length,), tensor.dtype, extents)):
                    found.update(piece)
    return found.hexdigest()


def _bytes(files: OpenFiles, tensor: StoredTensor) -> Iterator[bytes]:
    for block in files.blocks(tensor):
        yield block.view(torch.uint8).numpy().tobytes()
