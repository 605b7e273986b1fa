"""Batches of a training step: sequences side by side without padding, or padded where that leaks.

    from llm_recipes.training_batches import Batches

Each batch carries what it counts as whole numbers, so that nobody has to ask a GPU for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from llm_recipes.errors import LLMError

NOT_LEARNED = -100  # label of tokens without loss, as everywhere in transformers
COUNTS = "counts"  # key of a batch


@dataclass(frozen=True)
class Counts:
    """Tokens of a batch, padding left out. squares: sum of the sequences' squared lengths."""

    tokens: int
    loss_tokens: int
    squares: int


def counts_of(rows: Sequence[Mapping[str, Any]]) -> Counts:
    """Count rows of a prepared dataset, packed or not."""
    lengths = [length for row in rows for length in segment_lengths(row)]
    learned = 0
    for row in rows:
        labels = numpy.asarray(row["labels"])
        # The first token of a sequence is predicted by nothing.
        learned += int((labels != NOT_LEARNED).sum() - (labels[_starts(row)] != NOT_LEARNED).sum())
    return Counts(sum(lengths), learned, sum(length * length for length in lengths))


def segment_lengths(row: Mapping[str, Any]) -> list[int]:
    """Lengths of the sequences in a row."""
    lengths = row.get("seq_lengths")
    return [len(row["input_ids"])] if lengths is None else [int(length) for length in lengths]


def _starts(row: Mapping[str, Any]) -> list[int]:
    starts, start = [], 0
    for length in segment_lengths(row):
        starts.append(start)
        start += length
    return starts


class Batches:
    """Makes a batch of rows. padding_free: all sequences in one row, for `varlen` attention and for
    masks that transformers makes of position_ids.
    """

    def __init__(self, padding_free: bool, pad_token_id: int) -> None:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        self.padding_free = padding_free
        self._collate = DataCollatorForLanguageModeling(
            pad_token_id=pad_token_id, padding_free=padding_free
        )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch: tensors for the model, `counts`, and without padding `segment_lengths`."""
        batch: dict[str, Any] = self._collate(list(rows))
        for name in ("input_ids", "labels"):
            batch[name] = batch[name].long()
        if self.padding_free:
            batch["segment_lengths"] = [n for row in rows for n in segment_lengths(row)]
            for name in ("seq_idx", "cu_seq_lens_k", "max_length_q", "max_length_k"):
                batch.pop(name, None)
        batch[COUNTS] = counts_of(rows)
        return batch


def pack_rows(rows: Any, max_length: int) -> Any:
    """Fill rows of up to `max_length` tokens with whole sequences, longest first, best fit.

    Args:
        rows: A dataset with the columns input_ids and labels.
        max_length: Tokens a row; no sequence is longer.

    Returns:
        A dataset with the columns input_ids, labels and seq_lengths.

    Raises:
        LLMError: If a sequence is longer than a row.
    """
    from trl.data_utils import pack_dataset

    longest = max(map(len, rows["input_ids"]), default=0)
    if longest > max_length:  # TRL would cut it
        raise LLMError(f"a sequence of {longest} tokens does not fit a row of {max_length}")
    columns = [name for name in rows.column_names if name not in ("input_ids", "labels")]
    return pack_dataset(rows.remove_columns(columns), max_length, "bfd")
