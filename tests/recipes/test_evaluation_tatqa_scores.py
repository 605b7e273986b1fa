"""TAT-QA's scores: the published figures, and cases worked out by hand from the rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_recipes.evaluation.tatqa_scores import (
    Gold,
    Score,
    by_type_and_source,
    gold_of,
    is_empty,
    is_number,
    mean,
    score,
)
from llm_recipes.evaluation.text_scores import TextScore, score_text
from llm_recipes.tatqa import answer_text, read_answer

TATQA = Path(__file__).parents[3] / "shared" / "data" / "tatqa"
SPAN, SPANS, NUMBER, COUNT = "span", "multi-span", "arithmetic", "count"


def questions(name: str) -> list[dict]:
    file = TATQA / name
    if not file.exists():
        pytest.skip(f"TAT-QA's {name} is not here")
    return [
        question for context in json.loads(file.read_text()) for question in context["questions"]
    ]


@pytest.mark.parametrize(
    ("gold", "answer", "scale"),
    [
        # numbers: rounded to 2 decimals, then multiplied by the scale
        (Gold(-12.6, "million", NUMBER), -12.6, "million"),
        (Gold(-12.6, "million", NUMBER), "-12.6", "million"),
        (Gold(-12.6, "million", NUMBER), "-12,600", "thousand"),
        (Gold(22.22, "percent", NUMBER), 22.220000000000002, "percent"),
        (Gold(22.22, "percent", NUMBER), "22.2249", "percent"),
        (Gold(1496.5, "", NUMBER), "$1,496.50", ""),
        (Gold(1234567, "", NUMBER), "1,234,567", ""),
        (Gold(["$1,496.5"], "million", SPAN), ["1496.5"], "million"),
        (Gold(["€ 17"], "", SPAN), "17", ""),
        # parentheses of accounting
        (Gold(-134, "", NUMBER), "(134)", ""),
        (Gold(-1234, "thousand", NUMBER), "(1,234)", "thousand"),
        (Gold(["$(9,982)"], "", SPAN), "-9982", ""),
        (Gold(["(1.9)"], "", SPAN), "-$1.9", ""),
        (Gold(["(265 )"], "", SPAN), ["(265)"], ""),
        # percent signs: a share by themselves
        (Gold(12, "percent", NUMBER), "12%", ""),
        (Gold(12, "percent", NUMBER), "12 %", "percent"),
        (Gold(-66, "percent", NUMBER), "(66)%", ""),
        (Gold(-66, "percent", NUMBER), "(66%)", "percent"),
        (Gold(23.42, "percent", NUMBER), "0.2342", ""),
        # scales in words
        (Gold(9.8, "million", NUMBER), "9.8 million", "million"),
        (Gold(["$9.8 million"], "", SPAN), "9.8", "million"),
        (Gold(2, "thousand", NUMBER), "2000", ""),
        (Gold(3, "billion", NUMBER), "3,000", "million"),
        # minus signs that are not ASCII's
        (Gold(["\u2212298"], "million", SPAN), "-298", "million"),
        (Gold(-298, "million", NUMBER), "\u2212298", "million"),
        (Gold(-5, "percent", NUMBER), "\u20135", "percent"),
        # nothing, and very little
        (Gold(0, "percent", NUMBER), 0, "percent"),
        (Gold(0, "", NUMBER), "0.00", ""),
        (Gold(0, "", NUMBER), -0.001, ""),
        (Gold(0, "", NUMBER), 1e-05, ""),
        (Gold(0.5, "", NUMBER), ".5", ""),
        # counts
        (Gold("3", "", COUNT), 3, ""),
        (Gold("3", "", COUNT), "3.0", ""),
        (Gold(3.0, "", COUNT), ["3"], ""),
        # dates and words
        (Gold(["September 30, 2019"], "", SPAN), "september 30 2019", ""),
        (Gold(["12/31/2018"], "", SPAN), "12/31/2018", ""),
        (Gold(["2018-12-31"], "", SPAN), ["2018-12-31."], ""),
        (Gold(["the Americas"], "", SPAN), ["Americas."], ""),
        (Gold(["a non-GAAP “measure”"], "", SPAN), "The non-GAAP “Measure”", ""),
        # several spans are a set
        (Gold(["2018", "2019"], "", SPANS), ["2019", "2018"], ""),
        (
            Gold(["Sensors", "Automotive", "oil; gas"], "", SPANS),
            ["oil; gas", "Sensors", "Automotive"],
            "",
        ),
        (Gold(["57,768", "73,260"], "thousand", SPANS), ["73260", "57768"], "thousand"),
    ],
)
def test_right(gold: Gold, answer: object, scale: str) -> None:
    found = score(gold, answer, scale)
    assert (found.exact_match, found.f1) == (1.0, 1.0)
    assert found.scale == float(gold.scale == scale)


@pytest.mark.parametrize(
    ("gold", "answer", "scale", "f1"),
    [
        (Gold(-12.6, "million", NUMBER), 12.6, "million", 0),
        (Gold(-12.6, "million", NUMBER), -12.6, "", 0),
        (Gold(-12.6, "million", NUMBER), -12.6, "thousand", 0),
        (Gold(22.22, "percent", NUMBER), "22.226", "percent", 0),
        (Gold(12, "percent", NUMBER), "12", "", 0),
        (Gold(12, "", NUMBER), "12%", "", 0),
        (Gold(-134, "", NUMBER), "134", "", 0),
        (Gold(-5, "", NUMBER), "--5", "", 0),
        (Gold(1.5, "", NUMBER), "1,5", "", 0),  # a separator of thousands: 15
        # what is no single number can't be right where one is asked for, however near
        (Gold(25, "", NUMBER), "about 25", "", 0),
        (Gold(25, "", NUMBER), ["25", "26"], "", 0),
        (Gold("3", "", COUNT), "three", "", 0),
        (Gold(1, "", NUMBER), 0, "", 0),
        (Gold(1, "", NUMBER), None, None, 0),
        (Gold(1, "", NUMBER), [], "", 0),
        (Gold(1, "", NUMBER), "", "", 0),
        (Gold(1, "", NUMBER), float("nan"), "", 0),
        (Gold(1, "", NUMBER), float("inf"), "", 0),
        (Gold(1, "", NUMBER), "9" * 400, "billion", 0),
        (Gold(1, "", NUMBER), "9" * 5000, "", 0),
        (Gold(1, "", NUMBER), {}, "", 0),
        (Gold(["Sensors"], "", SPAN), [None], "", 0),
        (Gold(["Sensors"], "", SPAN), "   ", "", 0),
        # shares of words: 2·(1/3)·1 / (1/3 + 1); 2·(1/2)·(2/3) / (1/2 + 2/3), rounded
        (Gold(["Americas"], "", SPAN), "in Americas only", "", 0.5),
        (Gold(["one two three"], "", SPAN), "one two four five", "", 0.57),
        (Gold(["Sensors", "Automotive"], "", SPANS), ["Sensors"], "", 0.67),
        (Gold(["Sensors", "Automotive"], "", SPANS), ["Sensors", "Automotive", "Oil"], "", 0.8),
        (Gold(["30 June 2019"], "", SPAN), "30 June 2018", "", 0.67),
    ],
)
def test_wrong(gold: Gold, answer: object, scale: str | None, f1: float) -> None:
    found = score(gold, answer, scale)
    assert (found.exact_match, found.f1) == (0.0, f1)


def test_the_scale_counts_only_with_an_answer() -> None:
    gold = Gold(5, "million", NUMBER)
    assert score(gold, 6, "million").scale == 1
    assert score(gold, 5, "thousand").scale == 0
    assert score(gold, None, "million").scale == 0
    assert score(gold, [], "million").scale == 0
    assert score(gold, "5", None).scale == 0


def test_the_published_sample_predictions_score_as_published() -> None:
    asked = questions("tatqa_dataset_dev.json")
    given = json.loads((TATQA / "sample_prediction.json").read_text())
    found = mean(score(gold_of(q), *given[q["uid"]]) for q in asked)
    figures = [f"{100 * value:.2f}" for value in (found.exact_match, found.f1, found.scale)]
    assert figures == ["45.92", "58.88", "90.95"]


@pytest.mark.parametrize("name", ["tatqa_dataset_dev.json", "tatqa_dataset_test_gold.json"])
def test_gold_answers_are_right_as_they_are_and_as_trained(name: str) -> None:
    for question in questions(name):
        gold = gold_of(question)
        assert score(gold, gold.answer, gold.scale) == Score(1, 1, 1), question
        read = read_answer(answer_text(gold.answer, gold.scale))
        assert score(gold, *read) == Score(1, 1, 1), question
        assert is_number(read[0]) or gold.answer_type not in (NUMBER, COUNT)


def test_means_by_type_and_source() -> None:
    golds = [
        Gold(["a b"], "", SPAN, "text"),
        Gold(["x"], "", SPAN, "table"),
        Gold(4, "", NUMBER, "table"),
        Gold(5, "", NUMBER, "table"),
    ]
    scores = [Score(0, 0.5, 1), Score(1, 1, 1), Score(1, 1, 0), Score(0, 0, 0)]
    found = by_type_and_source(golds, scores)
    assert found["", ""] == (4, Score(0.5, 0.625, 0.5))
    assert found[SPAN, ""] == (2, Score(0.5, 0.75, 1))
    assert found[SPAN, "text"] == (1, Score(0, 0.5, 1))
    assert found[NUMBER, "table"] == (2, Score(0.5, 0.5, 0))
    assert found["", "table"] == (3, Score(2 / 3, 2 / 3, 1 / 3))
    assert (NUMBER, "text") not in found
    assert mean([]) == Score(0, 0, 0)


def test_what_can_be_read() -> None:
    assert [is_empty(answer) for answer in (None, [], "", [" "], 0, "no", [None])] == [
        True, True, True, True, False, False, True
    ]  # fmt: skip
    assert all(map(is_number, [0, "-1", "(1,234)", ["$5 million"], "12%", "\u22125"]))
    assert not any(map(is_number, [None, "", "about 5", ["1", "2"], "nan", "inf", "5 apples"]))


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("The Eiffel tower.", ["Eiffel Tower"], 1, 1),
        ("Paris", ["London", "paris"], 1, 1),
        ("in the city of Paris", ["Paris", "city of light"], 0, 4 / 7),
        ("a b b", ["b b b"], 0, 2 * 2 / 5),
        ("1,000", ["1000"], 1, 1),
        ("\u22125", ["-5"], 1, 1),
        ("", [""], 0, 0),
        ("the", ["the"], 1, 1),
        ("the", ["a"], 0, 0),
        ("anything", [], 0, 0),
    ],
)
def test_free_answers(answer: str, golds: list[str], exact: float, f1: float) -> None:
    found = score_text(answer, golds)
    assert found == TextScore(exact, pytest.approx(f1))
