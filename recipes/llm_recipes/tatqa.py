"""TAT-QA: questions on a table and its paragraphs, and answers as text that can be read back.

    from llm_recipes.tatqa import answer_text, read_answer
    answer_text(-12.6, "million")             # -12.6 million
    read_answer("2018; 2019 thousand")        # (["2018", "2019"], "thousand")

Zhu et al. 2021, https://nextplusplus.github.io/TAT-QA: a JSON list of contexts, each with one
table, its paragraphs and its questions; an answer is a list of spans, a number, or a count as text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from llm_recipes.dataset_files import Row
from llm_recipes.errors import LLMError
from llm_recipes.examples import Example

SCALES = ("thousand", "million", "billion", "percent")
INSTRUCTION = (
    "Answer the question from the table and the text. Give the number or the words alone, several "
    "separated by semicolons, and then the scale (thousand, million, billion or percent) if there "
    "is one."
)
SCALE_AT_END = re.compile(rf"\s({'|'.join(SCALES)})$")
LIKE_A_SCALE = re.compile(rf"(^|\s)({'|'.join(SCALES)})$")
KEYS = ("table", "paragraphs", "questions")
Answer = str | int | float | Sequence[str]


def answer_text(answer: Answer, scale: str) -> str:
    """An answer with its scale as one text, from which `read_answer` gets both back.

    Spans are joined by "; ". A span that would be misread (it holds a semicolon, or ends in the
    name of a scale) stands in quotes, as JSON writes it. The scale comes last and holds for all.

    Raises:
        ValueError: If the scale is none of TAT-QA's, or there is no answer.
    """
    if scale and scale not in SCALES:
        raise ValueError(f"the scale {scale!r} is none of {', '.join(SCALES)}")
    spans = answer_spans(answer)
    if not spans:
        raise ValueError("there is no answer")
    joined = "; ".join(_quoted(span) if _is_misread(span) else span for span in spans)
    return f"{joined} {scale}" if scale else joined


def read_answer(text: str) -> tuple[list[str], str]:
    """Spans and scale of an answer's text, as the official scoring takes a prediction.

    Whatever a model writes gives an answer: what no rule fits is a span as it stands.
    """
    rest, scale = text.strip(), ""
    if found := SCALE_AT_END.search(rest):
        rest, scale = rest[: found.start()].rstrip(), found[1]
    return list(_split(rest)), scale


def answer_spans(answer: Answer) -> list[str]:
    """An answer as a list of texts: a number as digits, with no exponent."""
    if isinstance(answer, (int, float)):
        return [_number_text(answer)]
    return [answer] if isinstance(answer, str) else list(answer)


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table of which every line has the same number of cells, whatever is in them."""
    width = max((len(row) for row in rows), default=0)
    lines = []
    for row in rows:
        cells = [_cell(value) for value in row] + [""] * (width - len(row))
        lines.append("| " + " | ".join(cells) + " |")
    lines.insert(1, "|" + " --- |" * width)
    return "\n".join(lines)


def parse_context(row: Row, needs_answer: bool) -> Iterator[Example | LLMError]:
    """The questions of one context, in the file's order; for a bad one what is wrong with it."""
    try:
        uid, passage = _passage(row.values)
        questions = _list_of_objects(row.values, "questions")
    except ValueError as error:
        yield LLMError(f"{row.where}: {error}", "expected TAT-QA's table, paragraphs and questions")
        return
    for number, question in enumerate(questions, start=1):
        where = f"{row.where}, question {number}"
        try:
            yield _example(question, uid, passage, where, needs_answer)
        except ValueError as error:
            yield LLMError(f"{where}: {error}")


def _example(
    question: dict[str, Any], context: str, passage: str, where: str, needs_answer: bool
) -> Example:
    uid = _text(question, "uid")
    task_input = f"{passage}\n\nQuestion: {_text(question, 'question')}"
    response = ""
    if needs_answer or "answer" in question:
        scale = question.get("scale") or ""
        response = answer_text(_answer(question), scale)
    return Example(uid, context, INSTRUCTION, task_input, response, where=where)


def _passage(values: dict[str, Any]) -> tuple[str, str]:
    """Uid and text of a context: the table, then the paragraphs in their order."""
    table = values.get("table")
    if not isinstance(table, dict):
        raise ValueError("table is no object with uid and table")
    cells = table.get("table")
    if not (isinstance(cells, list) and cells and all(isinstance(row, list) for row in cells)):
        raise ValueError("table.table is no list of rows")
    parts = ["Table:\n" + markdown_table(cells)]
    paragraphs = _list_of_objects(values, "paragraphs")
    orders = [paragraph.get("order", 0) for paragraph in paragraphs]
    if not all(isinstance(order, (int, float)) for order in orders):
        raise ValueError("a paragraph's order is no number")
    texts = [_text(paragraph, "text") for paragraph in paragraphs]
    # Python's sort keeps the file's order where numbers are equal.
    in_order = [texts[i] for i in sorted(range(len(texts)), key=lambda i: float(orders[i]))]
    if in_order:
        parts.append("Text:\n" + "\n\n".join(in_order))
    return _text(table, "uid"), "\n\n".join(parts)


def _answer(question: dict[str, Any]) -> Answer:
    answer = question.get("answer")
    if isinstance(answer, bool) or answer is None:
        raise ValueError("answer is missing" if answer is None else "answer is no answer")
    if isinstance(answer, (int, float)):
        if not math.isfinite(answer):
            raise ValueError(f"answer {answer} is no number")
        return answer
    spans = [answer] if isinstance(answer, str) else answer
    if not isinstance(spans, list) or not all(isinstance(span, str) for span in spans):
        raise ValueError("answer is no text, number or list of texts")
    if not spans or not any(span.strip() for span in spans):
        raise ValueError("answer is empty")
    return spans


def _list_of_objects(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = values.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{key} is no list of objects")
    return found


def _text(values: dict[str, Any], key: str) -> str:
    found = values.get(key)
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{key} is missing or no text")
    return found


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return " ".join(text.split()).replace("|", r"\|")


def _number_text(number: int | float) -> str:
    if isinstance(number, float) and number.is_integer():
        return str(int(number))
    return format(Decimal(repr(number)), "f")


def _is_misread(span: str) -> bool:
    return (
        not span
        or span != span.strip()
        or span.startswith('"')
        or ";" in span
        or len(span.splitlines()) > 1
        or LIKE_A_SCALE.search(span) is not None
    )


def _quoted(span: str) -> str:
    return json.dumps(span, ensure_ascii=False)


def _split(text: str) -> Iterator[str]:
    decoder = json.JSONDecoder()
    position = 0
    while position <= len(text):
        if text[position : position + 1] == '"':
            try:
                span, end = decoder.raw_decode(text, position)
            except ValueError:  # a model's own use of quotes
                end = -1
            if end == len(text) or (end > 0 and text[end : end + 1] == ";"):
                yield span
                position = _after_separator(text, end)
                continue
        end = text.find(";", position)
        end = len(text) if end < 0 else end
        if span := text[position:end].strip():
            yield span
        position = _after_separator(text, end)


def _after_separator(text: str, end: int) -> int:
    """Where the next span begins; beyond the text if there is none."""
    if end >= len(text):
        return len(text) + 1
    position = end + 1
    while position < len(text) and text[position].isspace():
        position += 1
    return position
