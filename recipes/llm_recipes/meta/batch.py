"""Which token of a batch is where: prompts packed for the prefill, rows of the running batch.

All rows end in the same column of the cache; a row that is shorter begins later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 16  # numbers: GPUs' attention kernels load masks in aligned pieces


@dataclass(frozen=True)
class Group:
    """Prompts of one length, one behind the other among the packed tokens.

    rows: of the batch. length: tokens of each prompt. tokens: all of theirs.
    """

    rows: slice | Tensor
    length: int
    tokens: slice


class Prompts:
    """The prompts of a batch without padding, shortest first.

    width: column behind all prompts. rows, columns, positions: of each packed token, its place in
    the batch and in its prompt, int64 [tokens]. last: where each row's last token is among the
    packed ones, int64 [rows].
    """

    def __init__(self, lengths: Sequence[int], width: int, device: torch.device) -> None:
        """Pack prompts of these lengths, which end at column `width` of the batch."""
        self.lengths = tuple(lengths)
        self.width = width
        self.device = device
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        ordered = [lengths[row] for row in order]
        self.groups = tuple(self._groups(order))
        self.rows = self._tensor(order).repeat_interleave(self._tensor(ordered))
        self.positions = torch.cat([torch.arange(length) for length in ordered]).to(device)
        self.columns = self.positions + (width - self._tensor(lengths))[self.rows]
        self.last = torch.empty(len(order), dtype=torch.int64, device=device)
        self.last[self._tensor(order)] = self._tensor(ordered).cumsum(0) - 1

    def _groups(self, order: Sequence[int]) -> list[Group]:
        groups, start = [], 0
        for length in sorted(set(self.lengths)):
            rows = [row for row in order if self.lengths[row] == length]
            tokens = slice(start, start + len(rows) * length)
            start = tokens.stop
            adjacent = rows == list(range(rows[0], rows[0] + len(rows)))
            where = slice(rows[0], rows[0] + len(rows)) if adjacent else self._tensor(rows)
            groups.append(Group(where, length, tokens))
        return groups

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)


class Running:
    """The rows that go on. Columns begin to end of the cache hold their tokens."""

    def __init__(self, prompts: Prompts, capacity: int, dtype: torch.dtype) -> None:
        """Begin behind the prompts. capacity: columns of the cache; dtype: of the mask."""
        device = prompts.device
        self.end = prompts.width
        self._let_in([prompts.width - length for length in prompts.lengths])
        self.positions = torch.tensor(prompts.lengths, device=device)
        # Rows of the mask that begin at aligned places are not copied in each layer.
        columns = torch.arange(math.ceil(capacity / ALIGNMENT) * ALIGNMENT, device=device)
        padding = columns < torch.tensor(self._starts, device=device)[:, None]
        hidden = torch.zeros(padding.shape, dtype=dtype, device=device)
        self._mask = hidden.masked_fill_(padding, -torch.inf)[:, None, None, :]

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._starts)

    def append(self) -> None:
        """Count a token more in each row."""
        self.end += 1
        self.positions = self.positions + 1

    def mask(self) -> Tensor | None:
        """What is added to scores, [rows, 1, 1, columns]; None: no row is padded.

        Without a mask the fastest kernel runs.
        """
        return self._mask[..., self.begin : self.end] if self._padded else None

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these rows only; columns that none of them uses are left out."""
        self._let_in([self._starts[index] for index in indices])
        kept = torch.tensor(indices, device=self.positions.device)
        self.positions, self._mask = self.positions[kept], self._mask[kept]

    def _let_in(self, starts: list[int]) -> None:
        """Take rows that start at these columns."""
        self._starts = starts
        self._padded = len(set(starts)) > 1
        first = min(starts)
        self.begin = first // ALIGNMENT * ALIGNMENT if self._padded else first
