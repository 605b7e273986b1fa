"""TAT-QA: every answer survives being a text; tables and paragraphs keep their form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_recipes.dataset_files import Row
from llm_recipes.errors import LLMError
from llm_recipes.examples import Example
from llm_recipes.tatqa import (
    answer_spans,
    answer_text,
    markdown_table,
    parse_context,
    read_answer,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "tatqa"
SETS = ("tatqa_dataset_dev.json", "tatqa_dataset_test_gold.json")


def context(**changes: Any) -> dict[str, Any]:
    question = {"uid": "q1", "question": "How much?", "answer": ["$5"], "scale": "million"}
    return {
        "table": {"uid": "t1", "table": [["", "2019"], ["a|b", "1\n2"]]},
        "paragraphs": [
            {"uid": "p2", "order": 2, "text": "second"},
            {"uid": "p1", "order": 1, "text": "first"},
        ],
        "questions": [question],
        **changes,
    }


def parse(values: dict[str, Any], needs_answer: bool = True) -> list[Example | LLMError]:
    return list(parse_context(Row("f.json, item 1", values), needs_answer))


@pytest.mark.parametrize(
    ("answer", "scale", "text"),
    [
        (-12.6, "million", "-12.6 million"),
        (12.0, "", "12"),
        (1e-7, "percent", "0.0000001 percent"),
        (10**20, "", "100000000000000000000"),
        ("3", "", "3"),
        (["$1,496.5"], "million", "$1,496.5 million"),
        (["a", "b c"], "thousand", "a; b c thousand"),
        (["$5 million"], "", '"$5 million"'),
        (["$5 million"], "million", '"$5 million" million'),
        (["a; b", "c"], "", '"a; b"; c'),
        (["million"], "", '"million"'),
        (['"quoted"', 'not "at" first'], "", '"\\"quoted\\""; not "at" first'),
        (["", " spaces "], "", '""; " spaces "'),
        (["two\nlines", "tab\there"], "", '"two\\nlines"; tab\there'),
        (["back\\slash", "ü€", "percent more"], "percent", "back\\slash; ü€; percent more percent"),
    ],
)
def test_an_answer_as_text(answer: Any, scale: str, text: str) -> None:
    assert answer_text(answer, scale) == text
    assert read_answer(text) == (answer_spans(answer), scale)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ([], "")),
        (" 12 million \n", (["12"], "million")),
        ("million", (["million"], "")),
        ('"unfinished; b', (['"unfinished', "b"], "")),
        ('"a" b; c', (['"a" b', "c"], "")),
        ("a;b;", (["a", "b"], "")),
        ('"\\ud800"', (["\ud800"], "")),
    ],
)
def test_whatever_a_model_writes_is_read(text: str, answer: tuple[list[str], str]) -> None:
    assert read_answer(text) == answer


def test_no_answer_has_no_text() -> None:
    with pytest.raises(ValueError, match="scale"):
        answer_text("1", "trillion")
    with pytest.raises(ValueError, match="no answer"):
        answer_text([], "")


def test_a_table_keeps_its_columns() -> None:
    table = markdown_table([["", "a|b"], ["1\n 2"], [None, 3, "x"]])
    assert table.split("\n") == [
        "|  | a\\|b |  |",
        "| --- | --- | --- |",
        "| 1 2 |  |  |",
        "|  | 3 | x |",
    ]


def test_a_context_becomes_questions() -> None:
    (example,) = parse(context())
    assert isinstance(example, Example)
    assert (example.id, example.context, example.response) == ("q1", "t1", "$5 million")
    assert example.input == (
        "Table:\n|  | 2019 |\n| --- | --- |\n| a\\|b | 1 2 |\n\n"
        "Text:\nfirst\n\nsecond\n\nQuestion: How much?"
    )
    assert example.where == "f.json, item 1, question 1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, "answer is missing"),
        ({"answer": True}, "answer is no answer"),
        ({"answer": float("nan")}, "is no number"),
        ({"answer": [1]}, "no text, number or list of texts"),
        ({"answer": [" "]}, "answer is empty"),
        ({"scale": "dozen"}, "'dozen' is none of"),
        ({"scale": 3}, "3 is none of"),
        ({"question": ""}, "question is missing"),
        ({"uid": 5}, "uid is missing or no text"),
    ],
)
def test_a_bad_question_is_named(changes: dict[str, Any], message: str) -> None:
    good = context()["questions"][0]
    found = parse(context(questions=[good, {**good, **changes}, {**good, "uid": "q3"}]))
    assert [isinstance(f, LLMError) for f in found] == [False, True, False]
    assert "f.json, item 1, question 2" in str(found[1])
    assert message in str(found[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"table": []},
        {"table": {"uid": "t", "table": []}},
        {"table": {"uid": "t", "table": [1]}},
        {"table": {"table": [["a"]]}},
        {"paragraphs": None},
        {"paragraphs": [{"text": "a", "order": "x"}]},
        {"paragraphs": [{"order": 1}]},
        {"questions": [1]},
    ],
)
def test_a_bad_context_is_named(changes: dict[str, Any]) -> None:
    (fault,) = parse(context(**changes))
    assert isinstance(fault, LLMError)
    assert "f.json, item 1" in str(fault)


def test_questions_without_answers_can_be_shown() -> None:
    question = {"uid": "q", "question": "How?"}
    (example,) = parse(context(questions=[question]), needs_answer=False)
    assert isinstance(example, Example)
    assert example.response == ""


@pytest.mark.parametrize("name", SETS)
def test_every_answer_of_the_data_survives(name: str) -> None:
    if not (DATA / name).is_file():
        pytest.skip(f"TAT-QA's {name} is not here")
    contexts = json.loads((DATA / name).read_bytes())
    questions = [q for c in contexts for q in c["questions"]]
    texts = [answer_text(q["answer"], q["scale"]) for q in questions]
    assert len(texts) == {SETS[0]: 1668, SETS[1]: 1663}[name]
    for question, text in zip(questions, texts, strict=True):
        assert read_answer(text) == (answer_spans(question["answer"]), question["scale"])
    parsed = [e for c in contexts for e in parse(c)]
    assert all(isinstance(e, Example) for e in parsed)
    assert [e.response for e in parsed if isinstance(e, Example)] == texts
