"""Exact match and F1 of free answers: the same words after TAT-QA's normalisation of texts.

    score_text("The Eiffel tower.", ["Eiffel Tower"])     # TextScore(1.0, 1.0)

F1 counts every occurrence of a word, as SQuAD's does (Rajpurkar et al. 2016, arXiv:1606.05250);
with several acceptable answers the best one counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llm_recipes.evaluation.tatqa_numbers import meant
from llm_recipes.evaluation.tatqa_scores import normalised

VERSION = "text 1"


@dataclass(frozen=True)
class TextScore:
    """Of one answer: exact_match 0 or 1, f1 from 0 to 1."""

    exact_match: float
    f1: float


def score_text(answer: str, golds: Sequence[str]) -> TextScore:
    """Score an answer against the best of all that would be right."""
    found = [_score(answer, gold) for gold in golds]
    return max(found, key=lambda one: (one.exact_match, one.f1), default=TextScore(0.0, 0.0))


def _score(answer: str, gold: str) -> TextScore:
    if not answer.strip():
        return TextScore(0.0, 0.0)
    given, wanted = normalised(answer, meant).split(), normalised(gold, meant).split()
    if not given or not wanted:  # nothing but articles and punctuation
        same = float(answer.split() == gold.split())
        return TextScore(same, same)
    shared = (Counter(given) & Counter(wanted)).total()
    return TextScore(float(given == wanted), 2 * shared / (len(given) + len(wanted)))
