"""Write the weights of a converted Llama: each block of the source is read once.

    from llm_recipes.meta.reshard_write import write_shards
    not_finite = write_shards(folder, shards, dtype=None)

All shards in Meta's format are written at the same time, so that a block goes into each that holds
a part of it; memory is bounded by a few blocks of 8 MB, whatever the model and the shards. One
thread reads, one converts and checks, one cuts and writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch

from llm_recipes.ahead import Behind, ahead
from llm_recipes.errors import LLMError
from llm_recipes.meta.reshard_plan import MetaShards, Window
from llm_recipes.progress import Progress
from llm_recipes.safetensors_writer import TensorSource, converted, target_dtype
from llm_recipes.stored_weights import OpenFiles, safetensors_file, torch_weights
from llm_recipes.torch_writer import Header, TorchFile


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


def check_shards(folder: Path, shards: MetaShards) -> None:
    """See that the files' tables of contents are those that were planned.

    Raises:
        LLMError: If a file does not hold what was written.
    """
    for name, headers in zip(shards.files, shards.headers, strict=True):
        found = torch_weights(folder / name)
        planned = {**headers, **{other: headers[of] for other, of in shards.shared.items()}}
        _compare(folder / name, planned, {n: Header(t.shape, t.dtype) for n, t in found.items()})


def check_safetensors(
    folder: Path, files: Mapping[str, Mapping[str, TensorSource]], dtype: torch.dtype | None
) -> None:
    """See that the files' tables of contents are those that were planned.

    Raises:
        LLMError: If a file does not hold what was written.
    """
    for name, tensors in files.items():
        found = safetensors_file(folder / name)
        planned = {n: Header(t.shape, target_dtype(t, dtype)) for n, t in tensors.items()}
        _compare(folder / name, planned, {n: Header(t.shape, t.dtype) for n, t in found.items()})


def _compare(path: Path, planned: Mapping[str, Header], found: Mapping[str, Header]) -> None:
    odd = [name for name in {**planned, **found} if planned.get(name) != found.get(name)]
    if odd:
        what = f"{path} does not hold what was written into it"
        raise LLMError(what, ", ".join(odd[:8]), "try again on another disk")
