"""Rows to train on: examples cut to the longest length, split by context, counted.

    from llm_recipes.training_rows import collect, counts, held_out_rows
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.examples import DataOptions, Example
from llm_recipes.training_examples import NOT_LEARNED, TrainingExample, training_examples

ALWAYS_HELD_OUT_FROM = 20  # contexts; fewer may leave none for a small share
PERCENTILES = (5, 25, 50, 75, 95, 99)
CHUNK = 1024


@dataclass
class Pieces:
    """Rows of kept examples, each with id, context and lengths in tokens.

    batches: Arrow's, with input_ids and labels. lengths: of every example before it was cut.
    """

    ids: list[str]
    contexts: list[str]
    batches: list[Any]
    lengths: list[int]
    kept_lengths: list[int]
    loss_tokens: list[int]
    truncated: int = 0
    dropped: int = 0


def collect(
    examples: Sequence[Example], options: DataOptions, tokenizer: Any
) -> tuple[Pieces, list[LLMError]]:
    """Tokens of every example, cut to max_length, and the faults of those that cannot be had."""
    pieces = Pieces([], [], [], [], [], [])
    faults: list[LLMError] = []
    waiting: list[tuple[list[int], list[int]]] = []
    for found in training_examples(
        examples, tokenizer, options.prompt_style, options.system, options.learn_prompt
    ):
        if isinstance(found, LLMError):
            faults.append(found)
            continue
        pieces.lengths.append(len(found.ids))
        for name, ids, labels in _cut(found, options.max_length, tokenizer, pieces):
            pieces.ids.append(name)
            pieces.contexts.append(found.example.context)
            pieces.kept_lengths.append(len(ids))
            pieces.loss_tokens.append(_learned(labels))
            waiting.append((ids, labels))
        if len(waiting) >= CHUNK:
            pieces.batches.append(_arrays(waiting))
            waiting = []
    if waiting:
        pieces.batches.append(_arrays(waiting))
    return pieces, faults


def _cut(
    found: TrainingExample, most: int, tokenizer: Any, pieces: Pieces
) -> Iterator[tuple[str, list[int], list[int]]]:
    """An example within the limit: a response loses its end, a document becomes several."""
    name, ids, labels = found.example.id, found.ids, found.labels
    if found.example.text is not None and len(ids) > most:
        yield from _blocks(found, most, tokenizer)
        return
    if len(ids) > most:
        ids, labels = ids[:most], labels[:most]
        if not _learned(labels):
            pieces.dropped += 1
            return
        pieces.truncated += 1
    elif not _learned(labels):
        pieces.dropped += 1  # a document of one token
        return
    yield name, ids, labels


def _learned(labels: list[int]) -> int:
    return len(labels) - labels.count(NOT_LEARNED)


def _blocks(
    found: TrainingExample, most: int, tokenizer: Any
) -> Iterator[tuple[str, list[int], list[int]]]:
    """A long document in blocks; each begins with a BOS if the document does."""
    ids = found.ids
    bos = [ids[0]] if ids[0] == tokenizer.bos_token_id else []
    step = most - len(bos)
    for number, start in enumerate(range(len(bos), len(ids), step), start=1):
        block = [*bos, *ids[start : start + step]]
        if len(block) > 1:
            yield f"{found.example.id}#{number}", block, [NOT_LEARNED, *block[1:]]


def _arrays(rows: Sequence[tuple[list[int], list[int]]]) -> Any:
    import pyarrow

    kind = pyarrow.list_(pyarrow.int32())
    columns = [pyarrow.array([row[i] for row in rows], kind) for i in (0, 1)]
    return pyarrow.RecordBatch.from_arrays(columns, ["input_ids", "labels"])


def held_out_rows(contexts: Sequence[str], options: DataOptions) -> list[bool]:
    """Which rows are held out: those of the contexts with the smallest digests.

    The digest is of the seed and the context alone: the order of rows plays no part.
    """

    def digest(context: str) -> bytes:
        return sha256(json.dumps([options.split_seed, context]).encode()).digest()

    ordered = sorted(set(contexts), key=digest)
    count = round(options.held_out * len(ordered))
    if options.held_out > 0 and len(ordered) >= ALWAYS_HELD_OUT_FROM:
        count = max(count, 1)
    chosen = set(ordered[: min(count, len(ordered) - 1)])
    return [context in chosen for context in contexts]


def counts(pieces: Pieces, held_out: Sequence[bool], options: DataOptions) -> dict[str, Any]:
    """The numbers that a user and a training run want to know."""
    import numpy

    lengths = numpy.array(pieces.lengths)
    kept = numpy.array(pieces.kept_lengths)
    learned = numpy.array(pieces.loss_tokens)
    train = ~numpy.array(held_out, dtype=bool)
    return {
        "contexts": len(set(pieces.contexts)),
        "train": int(train.sum()),
        "held_out": int((~train).sum()),
        "tokens": int(kept.sum()),
        "loss_tokens": int(learned.sum()),
        "train_tokens": int(kept[train].sum()),
        "train_loss_tokens": int(learned[train].sum()),
        "longest": int(lengths.max()),
        "longest_kept": int(kept.max()),
        "percentiles": {
            str(p): int(numpy.percentile(lengths, p, method="higher")) for p in PERCENTILES
        },
        "max_length": options.max_length,
        "truncated": pieces.truncated,
        "dropped": pieces.dropped,
    }
