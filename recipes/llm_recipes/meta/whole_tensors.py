"""Tensors that are spread over shards, read as wholes: block by block, in either rotary order.

    from llm_recipes.meta.whole_tensors import sharded, single
    wholes = sharded(shards, params, "rows", kinds)     # of consolidated.NN.pth
    with OpenFiles() as files:
        for rows in wholes["layers.0.attention.wq.weight"].blocks(files): ...

Memory is bounded by blocks of 8 MB (or a head's rows, if they are larger), not even by a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from llm_recipes.errors import LLMError
from llm_recipes.meta.layout import OUTPUT, EmbeddingSplit, Layout, Split, layout
from llm_recipes.meta.params import Params
from llm_recipes.stored_weights import BLOCK_BYTES, OpenFiles, StoredTensor, part

# Meta turns neighbouring numbers of a head, (0, 1), (2, 3), ...; transformers turns numbers of its
# two halves, (0, h/2), (1, h/2 + 1), ...: the rows of queries and keys stand accordingly.
Order = Literal["pairs", "halves"]


@dataclass(frozen=True)
class WholeTensor:
    """A tensor and where its parts are.

    pieces: parts in the order of the ranks, one for a tensor that is not divided. split: how.
    copies: other parts that must equal a piece, by its number. heads: in how many groups of rows
    the rotary order is changed, which `order` gives; None: the rows stay as they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[StoredTensor, ...]
    split: Split = "whole"
    copies: tuple[tuple[StoredTensor, ...], ...] = ()
    heads: int | None = None
    order: Order | None = None

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Numbers in a row; 1 for a vector."""
        return math.prod(self.shape[1:])

    @property
    def bytes_read(self) -> int:
        """Bytes that reading it takes, copies included."""
        every = [*self.pieces, *(copy for copies in self.copies for copy in copies)]
        return sum(piece.bytes for piece in every)

    @property
    def group(self) -> int:
        """Rows that are read together: those of a head whose order changes, else 1."""
        return 1 if self.order is None or self.heads is None else self.shape[0] // self.heads

    def blocks(self, files: OpenFiles) -> Iterator[torch.Tensor]:
        """The tensor's rows from first to last, as tensors [rows, columns] of 8 MB or a head.

        Raises:
            LLMError: If a file is gone or shorter than it was, or copies of a piece differ.
        """
        size = self.group * self.columns * self.dtype.itemsize
        step = self.group * max(1, BLOCK_BYTES // max(1, size))
        for first in range(0, self.shape[0], step):
            yield self.rows(files, first, min(step, self.shape[0] - first))

    def rows(self, files: OpenFiles, first: int, count: int) -> torch.Tensor:
        """Some of its rows [count, columns]; both numbers are multiples of `group`.

        Raises:
            LLMError: If a file is gone or shorter than it was, or copies of a piece differ.
        """
        block = self._rows(files, first, count)
        return block if self.group == 1 else _reordered(block, self.group, self.order)

    def _rows(self, files: OpenFiles, first: int, count: int) -> torch.Tensor:
        if self.split == "columns":
            parts = [self._read(files, place, first, count) for place in range(len(self.pieces))]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        parts = []
        for place, piece in enumerate(self.pieces):
            begin, end = max(first, 0), min(first + count, piece.shape[0])
            if begin < end:
                parts.append(self._read(files, place, begin, end - begin))
            first -= piece.shape[0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _read(self, files: OpenFiles, place: int, first: int, count: int) -> torch.Tensor:
        """Rows of one piece, compared with those of its copies."""
        piece = self.pieces[place]
        rows = _read(files, piece, first, count)
        for copy in self.copies[place] if self.copies else ():
            if not same_bits(rows, _read(files, copy, first, count)):
                one, other = piece.extents[0].file, copy.extents[0].file
                what = f"{other} is no shard of the same model as {one.name}"
                why = f"both hold the same K/V heads, and {self.name} differs"
                raise LLMError(what, why, "take all shards from one checkpoint")
        return rows


def sharded(
    shards: Sequence[Mapping[str, StoredTensor]], params: Params, embeddings: EmbeddingSplit
) -> dict[str, WholeTensor]:
    """The whole tensors of a checkpoint in Meta's format, by its names, in the order of its files.

    Args:
        shards: Tensors of each, of the right shapes, in the order of the ranks; all of them or
            none have an output.
        params: The model's sizes.
        embeddings: How the embeddings are split.

    Raises:
        LLMError: If a tensor has another type in one shard than in another.
    """
    found = {}
    for name, tensor in layout(params, embeddings).items():
        if name == OUTPUT and not all(name in shard for shard in shards):
            continue
        pieces = [shard[name] for shard in shards]
        types = {piece.dtype for piece in pieces}
        if len(types) > 1:
            what = f"{name} has several types: {', '.join(sorted(map(str, types)))}"
            where = ", ".join(f"{p.extents[0].file.name} {p.dtype}" for p in pieces)
            raise LLMError(what, where, "take all shards from one checkpoint")
        found[name] = _whole(tensor, pieces, params)
    return found


def single(tensor: Layout, piece: StoredTensor) -> WholeTensor:
    """A tensor that lies in one place."""
    return WholeTensor(tensor.name, tensor.shape, piece.dtype, (piece,), heads=tensor.heads)


def same(one: WholeTensor, other: WholeTensor, files: OpenFiles) -> bool:
    """Whether two tensors have the same bits; reads them up to their first difference."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    pairs = zip(one.blocks(files), other.blocks(files), strict=True)
    return all(same_bits(a, b) for a, b in pairs)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one type have the same bits: NaN equals NaN, and 0 not -0."""
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _whole(tensor: Layout, pieces: Sequence[StoredTensor], params: Params) -> WholeTensor:
    copies: tuple[tuple[StoredTensor, ...], ...] = ()
    if tensor.split == "whole":
        pieces = pieces[:1]
    elif tensor.shared_by_kv and len(pieces) > params.kv_heads:
        each = len(pieces) // params.kv_heads  # shards that hold the same head follow each other
        copies = tuple(tuple(pieces[n + 1 : n + each]) for n in range(0, len(pieces), each))
        pieces = pieces[::each]
    dtype, heads = pieces[0].dtype, tensor.heads
    return WholeTensor(tensor.name, tensor.shape, dtype, tuple(pieces), tensor.split, copies, heads)


def _read(files: OpenFiles, piece: StoredTensor, first: int, count: int) -> torch.Tensor:
    columns = math.prod(piece.shape[1:])
    extents = part([piece], first * columns, count * columns)
    wanted = StoredTensor((count, columns), piece.dtype, extents)
    blocks = list(files.blocks(wanted))
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks)).view(count, columns)


def _reordered(rows: torch.Tensor, group: int, order: Order | None) -> torch.Tensor:
    """Rows of whole heads (`group` rows each) in the given rotary order."""
    inner = (group // 2, 2) if order == "halves" else (2, group // 2)
    heads = rows.view(-1, *inner, rows.shape[1])
    return heads.transpose(1, 2).reshape(rows.shape)
