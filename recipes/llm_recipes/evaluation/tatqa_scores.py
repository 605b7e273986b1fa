"""TAT-QA's scores: exact match, F1 and scale of an answer, by the published rules.

    from llm_recipes.evaluation.tatqa_scores import Gold, score
    score(Gold(["$1,496.5"], "million", "span"), "1496.5", "million")   # Score(1.0, 1.0, 1.0)

Zhu et al. 2021, https://nextplusplus.github.io/TAT-QA, whose tatqa_eval.py scores prediction files:
a number is rounded to 2 decimals and multiplied by its scale; a text loses case, punctuation and
articles; several spans are one set; a question that asks for a number has F1 = exact match.

Whatever that program counts as right is right here. It takes "(1,234)" for 1234, U+2212 for a
letter, the number 0 for no answer and 1e-05 for 1: an answer that is right when these are read as
they are meant is right, too.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_recipes.evaluation import tatqa_numbers
from llm_recipes.evaluation.tatqa_numbers import Amount, factor
from llm_recipes.tatqa import Answer

VERSION = "tatqa 1"
NUMERIC = ("arithmetic", "count")
ANSWER_TYPES = ("span", "multi-span", "arithmetic", "count")
SOURCES = ("table", "text", "table-text")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
Read = Callable[[str], Amount | None]


@dataclass(frozen=True)
class Gold:
    """What is right.

    answer_type: span, multi-span, arithmetic or count. answer_from: table, text or table-text.
    """

    answer: Answer
    scale: str
    answer_type: str
    answer_from: str = ""


@dataclass(frozen=True)
class Score:
    """Of one answer, or the means of many: shares from 0 to 1."""

    exact_match: float
    f1: float
    scale: float


WRONG = Score(0.0, 0.0, 0.0)


def gold_of(question: Mapping[str, Any]) -> Gold:
    """The gold answer of a question as TAT-QA's files hold it."""
    kind, source = question.get("answer_type") or "span", question.get("answer_from") or ""
    return Gold(question["answer"], question.get("scale") or "", str(kind), str(source))


def score(gold: Gold, answer: object, scale: str | None) -> Score:
    """Score an answer.

    Args:
        gold: What is right.
        answer: A text, a number, a list of them, or None: as prediction files hold them, and as
            `tatqa.read_answer` gives them.
        scale: "", thousand, million, billion or percent; None for no answer.
    """
    given, wanted = _spans(answer), _gold_spans(gold)
    if given and _is_meant(given, scale or "", wanted, gold.scale):
        return Score(1.0, 1.0, float(gold.scale == scale))
    if not answer or not wanted:
        return WRONG
    target = _joined(wanted, gold.scale)
    exact, f1 = max(_compare(one, target) for one in _readings(given, scale or ""))
    return Score(exact, exact if gold.answer_type in NUMERIC else f1, float(gold.scale == scale))


def mean(scores: Iterable[Score]) -> Score:
    """The means; of no scores zeros."""
    found = list(scores)
    count = max(len(found), 1)
    return Score(
        math.fsum(s.exact_match for s in found) / count,
        math.fsum(s.f1 for s in found) / count,
        math.fsum(s.scale for s in found) / count,
    )


def by_type_and_source(
    golds: Sequence[Gold], scores: Sequence[Score]
) -> dict[tuple[str, str], tuple[int, Score]]:
    """Number and mean scores of the answers of each type and source that occurs; "" is any."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for gold, one in zip(golds, scores, strict=True):
        kind, source = gold.answer_type, gold.answer_from
        for key in ((kind, source), (kind, ""), ("", source), ("", "")):
            groups.setdefault(key, []).append(one)
    return {key: (len(group), mean(group)) for key, group in groups.items()}


def is_empty(answer: object) -> bool:
    """Whether an answer has no word and no number."""
    return not any(span.strip() for span in _spans(answer))


def is_number(answer: object) -> bool:
    """Whether an answer is one number, however it is written."""
    spans = _spans(answer)
    return len(spans) == 1 and tatqa_numbers.meant(spans[0]) is not None


def normalised(text: str, read: Read = tatqa_numbers.published) -> str:
    """A text without case, punctuation, articles and further spaces; numbers as plain digits."""
    words = (_plain_word(word, read) for word in text.lower().split())
    return " ".join(word for word in words if word)


def bag_f1(answer: str, gold: str) -> float:
    """F1 of two normalised texts as sets of words, rounded to 2 decimals as published."""
    given, wanted = set(answer.split()), set(gold.split())
    if not given or not wanted:
        return float(given == wanted)
    shared = len(given & wanted)
    # Via precision and recall: another order of operations rounds another way.
    precision, recall = shared / len(given), shared / len(wanted)
    return round(2 * precision * recall / (precision + recall), 2) if shared else 0.0


def _spans(answer: object) -> list[str]:
    parts = answer if isinstance(answer, (list, tuple)) else [answer]
    return [str(part) for part in parts if part is not None]


def _gold_spans(gold: Gold) -> list[str]:
    if gold.answer_type == "count" and isinstance(gold.answer, (int, float)):
        return [str(int(gold.answer))]
    return _spans(gold.answer)


def _readings(spans: Sequence[str], scale: str) -> list[str]:
    """The texts that an answer may stand for; two for a number without a scale."""
    found = [_joined(spans, scale)]
    amount = tatqa_numbers.published(spans[0]) if len(spans) == 1 and not scale else None
    if amount is not None and not amount.is_share:  # 0.2342 for 23.42 percent
        found.append(f"{amount.value:.4f}")
    return found


def _joined(spans: Sequence[str], scale: str) -> str:
    """Sorted by their characters as they are, as published: "a" comes after "B"."""
    return " ".join(_with_scale(span, scale) for span in sorted(spans))


def _with_scale(span: str, scale: str) -> str:
    amount = tatqa_numbers.published(span)
    if amount is None:
        return f"{span} {scale}" if scale else span
    if amount.is_share:
        return f"{amount.value:.4f}"
    return f"{round(amount.value, 2) * factor(scale):.4f}"


def _compare(answer: str, gold: str) -> tuple[float, float]:
    one, other = normalised(answer), normalised(gold)
    return float(one == other), bag_f1(one, other)


def _is_meant(given: Sequence[str], scale: str, wanted: Sequence[str], gold_scale: str) -> bool:
    """Whether an answer says what is right when its numbers are read as they are meant."""
    targets = [_meant(span, gold_scale) for span in sorted(wanted)]
    if [_meant(span, scale) for span in sorted(given)] == targets:
        return True
    amount = tatqa_numbers.meant(given[0]) if len(given) == 1 and not scale else None
    return amount is not None and not amount.is_share and [_digits(amount.value)] == targets


def _meant(span: str, scale: str) -> str:
    amount = tatqa_numbers.meant(span)
    if amount is None:
        return normalised(f"{span} {scale}", tatqa_numbers.meant)
    if amount.is_share:
        return _digits(amount.value)
    return _digits(round(amount.value, 2) * (1 if amount.own_scale == scale else factor(scale)))


def _digits(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"  # + 0.0: there is no negative zero


def _plain_word(word: str, read: Read) -> str:
    amount = read(word)
    if amount is None:
        word = word.translate(PUNCTUATION)
        amount = read(word)
    plain = word if amount is None else str(amount.value)
    return " ".join(ARTICLES.sub(" ", plain).split())
