"""Log-probabilities of token sequences: the order of computing, and a real model's numbers."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm_recipes.errors import LLMError
from llm_recipes.gguf import scoring
from llm_recipes.gguf.scoring import Scores, score, score_all
from llm_recipes.gguf.shared_prefixes import plan

VOCABULARY = 50


class PretendContext:
    """A context whose logits are a function of all tokens before: wrong cells give wrong logits.

    rewinds: whether a part of a sequence can be removed. computed: tokens of all calls.
    """

    def __init__(
        self, tokens: int = 64, sequences: int = 4, batch: int = 16, rewinds: bool = True
    ) -> None:
        self.settings = SimpleNamespace(sequences=sequences)
        self.batch = batch
        self.model = SimpleNamespace(vocabulary=VOCABULARY)
        self.tokens = tokens
        self.rewinds = rewinds
        self.cells: list[list[int]] = [[] for _ in range(sequences)]
        self.computed = 0
        self.calls: list[tuple[int, int]] = []

    def decode(self, token_ids: Any, positions: Any, sequences: Any, wanted: Any) -> Any:
        assert 0 < len(token_ids) <= self.batch
        assert len(token_ids) == len(positions) == len(sequences) == len(wanted)
        assert list(sequences) == sorted(sequences)
        rows = []
        for token, position, sequence, asked in zip(
            token_ids, positions, sequences, wanted, strict=True
        ):
            cells = self.cells[sequence]
            assert position == len(cells) < self.tokens
            cells.append(int(token))
            if asked:
                rows.append(pretend_logits(cells))
        self.computed += len(token_ids)
        self.calls.append((len(token_ids), len(rows)))
        return np.array(rows, np.float32).reshape(len(rows), VOCABULARY)

    def forget(self, sequence: int, start: int = 0) -> bool:
        if start and not self.rewinds:
            return False
        for cells in self.cells if sequence == -1 else [self.cells[sequence]]:
            del cells[start:]
        return True

    def copy(self, source: int, target: int) -> None:
        self.cells[target] = list(self.cells[source])


def pretend_logits(tokens: list[int]) -> Any:
    return np.random.default_rng(tokens).normal(0, 3, VOCABULARY).astype(np.float32)


def expected(ids: list[int], first: int) -> tuple[Any, Any]:
    rows = np.array([pretend_logits(ids[:end]) for end in range(first, len(ids))], np.float64)
    rows = rows.reshape(-1, VOCABULARY)
    probabilities = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    return np.log(probabilities[range(len(rows)), ids[first:]]), rows.argmax(axis=1)


def all_scores(context: Any, requests: list[tuple[list[int], int]]) -> list[Scores]:
    found = dict(score_all(context, requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


def check(context: Any, requests: list[tuple[list[int], int]]) -> None:
    for (ids, first), scores in zip(requests, all_scores(context, requests), strict=True):
        logprobs, best = expected(ids, first)
        np.testing.assert_allclose(scores.logprobs, logprobs, atol=1e-5)
        np.testing.assert_array_equal(scores.best, best)
    assert not any(context.cells)


def some_requests(seed: int) -> list[tuple[list[int], int]]:
    """Sequences that begin alike at random lengths; some twice, some the beginning of others."""
    chance = random.Random(seed)
    requests: list[tuple[list[int], int]] = []
    for _ in range(chance.randint(1, 30)):
        other = chance.choice(requests)[0] if requests else []
        kept = other[: chance.randint(0, len(other))]
        ids = kept + chance.choices(range(VOCABULARY), k=chance.randint(1, 20))
        ids = ids[:60]
        requests.append((ids, chance.randint(1, len(ids))))
    return requests


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rewinds", [True, False])
def test_what_is_computed_and_kept_makes_no_difference(
    seed: int, rewinds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "WORTH_COPYING", 5)
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * VOCABULARY * 3)
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 4 * VOCABULARY * 2)
    context = PretendContext(sequences=1 + seed % 4, rewinds=rewinds)
    check(context, some_requests(seed))
    assert max(rows for _, rows in context.calls) <= 3
    check(context, some_requests(seed + 100))  # nothing of the first run is left


def test_the_choices_of_a_question_compute_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WORTH_COPYING", 1)
    question = list(range(40))
    requests = [([*question, 41, choice, 43], 41) for choice in range(8)]
    context = PretendContext(sequences=4)
    check(context, requests)
    # The token before the choice again for each run: its logits are asked for there too.
    assert context.computed <= 40 + 8 * 2 + 4


def test_choices_of_a_token_are_read_from_the_same_logits() -> None:
    question = list(range(40))
    context = PretendContext(sequences=4)
    check(context, [([*question, choice], 40) for choice in range(8)])
    assert context.computed == 40
    assert sum(rows for _, rows in context.calls) == 1


def test_examples_that_all_questions_share_are_computed_once() -> None:
    chance = random.Random(1)
    examples = chance.choices(range(VOCABULARY), k=150)
    requests = [(examples + chance.choices(range(VOCABULARY), k=10), 155) for _ in range(40)]
    context = PretendContext(tokens=200, sequences=4, batch=64)
    check(context, requests)
    assert context.computed <= 150 + 40 * 10 + 3 * scoring.WORTH_COPYING


def test_sequences_side_by_side() -> None:
    requests = [([number, *range(15)], 1) for number in range(8)]
    context = PretendContext(sequences=4, batch=64)
    check(context, requests)
    assert len(context.calls) <= 3  # 8 x 15 tokens


def test_an_answer_comes_before_the_last_is_computed() -> None:
    requests = [([number, *range(15)], 1) for number in range(20)]
    context = PretendContext(sequences=2, batch=16)
    results = score_all(context, requests)
    next(results)
    assert context.computed < 100
    results.close()  # type: ignore[attr-defined]
    assert not any(context.cells)


def test_nothing_to_score() -> None:
    context = PretendContext()
    assert list(score_all(context, [])) == []
    check(context, [([3], 1), ([3, 4], 2)])
    assert context.computed == 0


def test_too_long_sequences() -> None:
    context = PretendContext(tokens=8)
    check(context, [(list(range(9)), 1)])
    with pytest.raises(LLMError, match="10 tokens is too long"):
        score(context, list(range(10)))
    assert context.computed == 8


@pytest.mark.parametrize(("ids", "first"), [([1, 2], 0), ([1, 2], 3), ([], 1)])
def test_a_first_position_that_cannot_be(ids: list[int], first: int) -> None:
    with pytest.raises(ValueError, match="nothing to be scored"):
        score(PretendContext(), ids, first)


def test_neighbours_of_the_order_begin_alike() -> None:
    requests = [([5, 300, 2, 9], 1), ([5, 2, 9], 1), ([5, 300, 1, 9], 1), ([4, 9], 1)]
    [branches] = plan(requests, slots=1)[:1]
    runs = plan(requests, slots=1)
    tokens = [list(branch.tokens) for run in runs for branch in run]
    assert tokens == [[4], [5, 2], [5, 300, 1], [5, 300, 2]]
    assert branches[0].start == 0


def test_a_real_model_scores_together_what_it_scores_alone(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beginnings shared, copied and rewound over three sequences: the cells are the right ones."""
    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.model import ContextSettings, GgufModel

    monkeypatch.setattr(scoring, "WORTH_COPYING", 5)
    chance = random.Random(3)
    tokens = lambda count: chance.choices(range(3, 500), k=count)  # noqa: E731
    examples, question = tokens(50), tokens(12)
    requests = [([*examples, *tokens(5 + number)], 52) for number in range(4)]
    requests += [([*examples, *question, *tokens(3)], 60) for _ in range(5)]
    requests += [(tokens(70), 1), ([*examples, *question], 61), (list(examples), 2)]
    room = {"tokens": 128, "batch": 64, "micro_batch": 32}
    room |= {"key_type": "f32", "value_type": "f32", "flash_attention": "off"}
    with GgufModel.load(read_gguf(tiny_gguf)) as model:
        with model.context(ContextSettings(sequences=3, **room)) as context:  # type: ignore[arg-type]
            together = all_scores(context, requests)
        with model.context(ContextSettings(**room)) as context:  # type: ignore[arg-type]
            alone = [score(context, ids, first) for ids, first in requests]
    for one, other in zip(together, alone, strict=True):
        assert len(one.logprobs) == len(other.logprobs) > 0
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)
        np.testing.assert_array_equal(one.best, other.best)
    assert len({round(float(one.logprobs[-1]), 3) for one in together}) > len(requests) // 2
