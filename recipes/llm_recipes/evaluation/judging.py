"""What answers are worth: scores by the rules that the questions have, and what can't be read.

    judged = judge(question, "1,496.5 million", "stop")
    judged.scores, judged.fault

An answer that no rule reads scores 0, and its fault is named and counted: empty, cut off by the
limit of tokens, no number where one is asked, not asked because the model can't see so long a
prompt, or missing from a file of predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_recipes.evaluation import tatqa_scores, text_scores
from llm_recipes.evaluation.questions import Question
from llm_recipes.tatqa import answer_text, read_answer

Fault = Literal["", "empty", "unfinished", "no number", "too long", "missing"]
FAULTS: Mapping[Fault, str] = {
    "empty": "empty",
    "unfinished": "cut off by --max-new-tokens",
    "no number": "without the one number that is asked for",
    "too long": "not asked, because the prompt is longer than the model can see",
    "missing": "missing from the predictions",
}
Prediction = tuple[Any, str | None]
NOTHING: Prediction = ([], "")


@dataclass(frozen=True)
class Judged:
    """An answer with its worth. text: as it was given. prediction: answer and scale as read."""

    question: Question
    text: str
    prediction: Prediction
    scores: Mapping[str, float]
    fault: Fault


def judge(question: Question, text: str, finish_reason: str) -> Judged:
    """Score what a model wrote.

    TAT-QA's answers are one line, so only the first one counts; what follows it is not held against
    the answer, nor is it unfinished then.

    Args:
        question: What was asked.
        text: The completion.
        finish_reason: stop, or length if the limit of tokens ended it.
    """
    written = text.strip()
    if question.gold is not None:
        line, more, _ = written.partition("\n")
        cut = finish_reason == "length" and not more
        prediction: Prediction = read_answer(line)
    else:
        cut = finish_reason == "length"
        prediction = (written, "")
    if not written:
        return _nothing(question, text, "empty")
    if cut:
        return _nothing(question, text, "unfinished")
    return judge_prediction(question, prediction, text)


def judge_prediction(question: Question, prediction: Prediction, text: str | None = None) -> Judged:
    """Score an answer with its scale, as files of predictions hold them.

    Args:
        question: What was asked.
        prediction: Text, number, list of them or None; and the scale.
        text: As it was given; None: made from the prediction.
    """
    answer, scale = prediction
    shown = _as_text(answer, scale) if text is None else text
    if question.gold is None:
        found = text_scores.score_text(_as_text(answer, ""), question.golds)
        fault: Fault = "empty" if tatqa_scores.is_empty(answer) else ""
        scores = {"exact_match": found.exact_match, "f1": found.f1}
        return Judged(question, shown, prediction, scores, fault)
    one = tatqa_scores.score(question.gold, answer, scale)
    scores = {"exact_match": one.exact_match, "f1": one.f1, "scale": one.scale}
    fault = ""
    if tatqa_scores.is_empty(answer):
        fault = "empty"
    elif question.gold.answer_type in tatqa_scores.NUMERIC and not tatqa_scores.is_number(answer):
        fault = "no number"
    return Judged(question, shown, prediction, scores, fault)


def missing(question: Question, fault: Fault = "missing") -> Judged:
    """A question without an answer: wrong."""
    return _nothing(question, "", fault)


def gold_text(question: Question) -> str:
    """What is right, for people."""
    if question.gold is not None:
        return answer_text(question.gold.answer, question.gold.scale)
    return " / ".join(question.golds)


def count_faults(judged: Sequence[Judged]) -> dict[str, int]:
    """How many answers have which fault, in the order of `FAULTS`."""
    counts = Counter(one.fault for one in judged)
    return {fault: counts[fault] for fault in FAULTS if counts[fault]}


def _nothing(question: Question, text: str, fault: Fault) -> Judged:
    names = ("exact_match", "f1", *(("scale",) if question.gold is not None else ()))
    return Judged(question, text, NOTHING, dict.fromkeys(names, 0.0), fault)


def _as_text(answer: Any, scale: str | None) -> str:
    if answer is None:
        return ""
    parts = answer if isinstance(answer, list) else [answer]
    text = "; ".join("" if part is None else str(part) for part in parts)
    return f"{text} {scale}" if scale else text
