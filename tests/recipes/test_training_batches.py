"""What a batch counts, packed and padded."""

from __future__ import annotations

from typing import Any

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.training_batches import Batches, Counts, counts_of, pack_rows

SHORT: dict[str, Any] = {"input_ids": [1, 5, 6], "labels": [-100, -100, 6]}
LONG: dict[str, Any] = {"input_ids": [1, 7, 8, 9, 2], "labels": [-100, 7, 8, 9, 2]}


def test_counts() -> None:
    assert counts_of([SHORT, LONG]) == Counts(tokens=8, loss_tokens=5, squares=9 + 25)


def test_the_first_token_of_a_sequence_is_learned_by_nobody() -> None:
    everything = {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}
    assert counts_of([everything]).loss_tokens == 3
    packed = {**everything, "seq_lengths": [2, 2]}
    assert counts_of([packed]) == Counts(tokens=4, loss_tokens=2, squares=8)


@pytest.mark.parametrize("padding_free", [True, False])
def test_a_batch_has_as_many_labels_as_it_counts(padding_free: bool) -> None:
    batch = Batches(padding_free, 0)([SHORT, LONG])
    assert batch["counts"] == counts_of([SHORT, LONG])
    assert int((batch["labels"][:, 1:] != -100).sum()) == 5
    if padding_free:
        assert batch["input_ids"].tolist() == [[1, 5, 6, 1, 7, 8, 9, 2]]
        assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
        assert batch["segment_lengths"] == [3, 5] and "attention_mask" not in batch
    else:
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_packing_keeps_every_sequence_whole() -> None:
    import datasets

    named = [{**row, "id": name} for row, name in ((SHORT, "a"), (LONG, "b"), (SHORT, "c"))]
    rows = datasets.Dataset.from_list(named)
    packed = pack_rows(rows, 8)
    assert sorted(sorted(row["seq_lengths"]) for row in packed) == [[3], [3, 5]]
    before, after = counts_of([SHORT, LONG, SHORT]), counts_of(list(packed))
    assert before == after
    with pytest.raises(LLMError, match="5 tokens does not fit"):
        pack_rows(rows, 4)
