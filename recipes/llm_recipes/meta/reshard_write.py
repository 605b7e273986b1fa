"""Write the weights of a converted Llama: each block of the source is read once.

    from llm_recipes.meta.reshard_write import write_shards
    not_finite = write_shards(folder, shards, dtype=None)

All shards in Meta's format are written at the same time, so that a block goes into each that holds
a part of it; memory is bounded by a few blocks of 8 MB, whatever the model and the shards. One
thread reads, one converts and checks, one cuts and writes.

What was written is looked at again: tables of contents, and rows of each tensor from every part of
it, which are compared with the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path

import torch

from llm_recipes.ahead import Behind, ahead
from llm_recipes.errors import LLMError
from llm_recipes.meta.layout import EmbeddingSplit
from llm_recipes.meta.params import Params
from llm_recipes.meta.reshard_plan import MetaShards, Window
from llm_recipes.meta.whole_tensors import WholeTensor, same_bits, sharded
from llm_recipes.progress import Progress
from llm_recipes.safetensors_writer import converted, target_dtype
from llm_recipes.stored_weights import OpenFiles, StoredTensor, safetensors_file, torch_weights
from llm_recipes.torch_writer import Header, TorchFile

ROW_NUMBERS = 4096  # that are compared at each place in a tensor: rows, but one at least


def write_shards(folder: Path, shards: MetaShards, dtype: torch.dtype | None) -> tuple[str, ...]:
    """Write consolidated.NN.pth, all together.

    Args:
        folder: Where to.
        shards: What goes into each.
        dtype: Of the weights; None: as they are.

    Returns:
        Names of tensors that hold infinities or NaN.

    Raises:
        LLMError: If a file cannot be read, K/V heads that several shards hold differ, or a weight
            is too large for fp16.
        OSError: If the folder cannot be written or is full.
    """
    not_finite: list[str] = []
    with ExitStack() as stack:
        progress = stack.enter_context(Progress("write", len(shards.tensors), "tensors"))
        source = stack.enter_context(OpenFiles())
        files = [
            stack.enter_context(TorchFile(folder / name, headers, shards.shared))
            for name, headers in zip(shards.files, shards.headers, strict=True)
        ]
        behind = stack.enter_context(Behind())  # left before the files are
        blocks = (
            (name, block)
            for name, tensor in shards.tensors.items()
            for block in tensor.blocks(source)
        )
        for name, of_tensor in groupby(ahead(blocks), itemgetter(0)):
            target, first = target_dtype(shards.tensors[name], dtype), 0
            for _, block in of_tensor:
                made, is_finite = converted(block, target, name)
                if not is_finite and name not in not_finite[-1:]:
                    not_finite.append(name)
                behind.do(_write_parts, files, shards.windows[name], name, made, first)
                first += block.shape[0]
            progress.advance()
    return tuple(not_finite)


def _write_parts(
    files: Sequence[TorchFile],
    windows: Sequence[Window],
    name: str,
    block: torch.Tensor,
    first: int,
) -> None:
    """Append to each file what it holds of a block that begins at row `first`."""
    for file, window in zip(files, windows, strict=True):
        cut = window.cut(block, first)
        if cut is not None:
            file.write(name, cut)


def check_shards(folder: Path, shards: MetaShards, params: Params, split: EmbeddingSplit) -> None:
    """See that the files hold what was planned, and rows of each tensor are the model's.

    Args:
        folder: Where they are.
        shards: What went into each.
        params: The model's sizes.
        split: How the embeddings are divided.

    Raises:
        LLMError: If a file does not hold what was written.
    """
    stored = []
    for name, headers in zip(shards.files, shards.headers, strict=True):
        planned = {**headers, **{other: headers[of] for other, of in shards.shared.items()}}
        stored.append(torch_weights(folder / name))
        _check_contents(folder / name, planned, stored[-1])
    _check_rows(folder, shards.tensors, sharded(stored, params, split))


def check_safetensors(
    folder: Path, files: Mapping[str, Mapping[str, WholeTensor]], dtype: torch.dtype | None
) -> None:
    """See that the files hold what was planned, and rows of each tensor are the model's.

    Raises:
        LLMError: If a file does not hold what was written.
    """
    for name, tensors in files.items():
        stored = safetensors_file(folder / name)
        planned = {n: Header(t.shape, target_dtype(t, dtype)) for n, t in tensors.items()}
        _check_contents(folder / name, planned, stored)
        written = {n: WholeTensor(n, t.shape, t.dtype, (t,)) for n, t in stored.items()}
        _check_rows(folder / name, tensors, written)


def _check_contents(
    path: Path, planned: Mapping[str, Header], stored: Mapping[str, StoredTensor]
) -> None:
    found = {name: Header(tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    odd = [name for name in {**planned, **found} if planned.get(name) != found.get(name)]
    if odd:
        raise _not_as_written(path, odd)


def _check_rows(
    path: Path, tensors: Mapping[str, WholeTensor], written: Mapping[str, WholeTensor]
) -> None:
    odd = []
    with OpenFiles() as files:
        for name, tensor in tensors.items():
            groups = max(1, ROW_NUMBERS // (tensor.columns * tensor.group))
            count = min(tensor.shape[0], groups * tensor.group)
            for first in _places(tensor, written[name], count):
                wanted = tensor.rows(files, first, count).to(written[name].dtype)
                if not _is_same(wanted, written[name].rows(files, first, count), tensor.dtype):
                    odd.append(name)
                    break
    if odd:
        raise _not_as_written(path, odd)


def _places(tensor: WholeTensor, written: WholeTensor, count: int) -> list[int]:
    """First rows of `count` each: in the middle, the last, and the first of every part."""
    rows, group = tensor.shape[0], tensor.group
    places = {rows // 2, rows}
    for whole in (tensor, written):
        sizes = [piece.shape[0] for piece in whole.pieces] if whole.split == "rows" else []
        places |= {0, *accumulate(sizes)}
    return sorted({min(place, rows - count) // group * group for place in places})


def _is_same(wanted: torch.Tensor, found: torch.Tensor, dtype: torch.dtype) -> bool:
    if same_bits(wanted, found):
        return True
    # What NaN becomes in another type depends on its place in a block.
    return dtype != found.dtype and torch.allclose(wanted, found, 0, 0, equal_nan=True)


def _not_as_written(path: Path, names: Sequence[str]) -> LLMError:
    what = f"{path} does not hold what was written into it"
    return LLMError(what, ", ".join(names[:8]), "try again on another disk")
