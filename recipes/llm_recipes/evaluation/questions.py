"""Questions with what is right: TAT-QA's, or rows of any file that the recipes read.

    found = read_questions(DataOptions("tatqa_dataset_dev.json"), group_by=(), golds_column=None)
    found.questions[100].example.prompt

Numbers count from 0 over the questions in the file's order.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_recipes.dataset_files import Row
from llm_recipes.dataset_formats import open_source, read_examples
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.evaluation.tatqa_scores import Gold, gold_of
from llm_recipes.examples import DataOptions, Example
from llm_recipes.prompts import raise_some

TATQA = "tatqa"
BEFORE_QUESTION = "\n\nQuestion: "  # in the input of TAT-QA's examples
NUMBERS = re.compile(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", re.ASCII)
MOST_GROUPS = 50
Groups = Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """A question. number: from 0. gold: TAT-QA's; golds: texts of which each is right elsewhere.

    text: the question itself; context: what it is about. groups: by which results are broken down.
    table, paragraphs: TAT-QA's, as the file has them.
    """

    number: int
    example: Example
    text: str
    context: str
    groups: Groups
    gold: Gold | None = None
    golds: tuple[str, ...] = ()
    table: Sequence[Sequence[object]] = ()
    paragraphs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """All questions of a file. name: of the task; digest: of the files; bad: rows left out."""

    name: str
    path: str
    digest: str
    questions: tuple[Question, ...]
    bad: int = 0

    @property
    def are_tatqa(self) -> bool:
        """Whether the official rules of TAT-QA hold."""
        return self.name == TATQA


def read_questions(
    options: DataOptions,
    group_by: Sequence[str],
    golds_column: str | None,
    say: Callable[[str], object],
    needs_answer: bool = True,
) -> Questions:
    """Read a file, a folder or a hub's dataset.

    Args:
        options: Its path and how it is read.
        group_by: Columns (in TAT-QA's files: keys of a question) by which results are broken down.
        golds_column: Column of further right answers: a text, or a list of texts.
        say: Gets a line for the user.
        needs_answer: A question without an answer is a fault.

    Raises:
        LLMError, ExceptionGroup: If it can't be read, holds no questions, or lacks a column.
    """
    source = open_source(options.path)
    found = read_examples(source, options, say, needs_answer)
    if found.format == "text":
        why = "its rows are documents without questions"
        fix = "a perplexity of texts is what harness.py and quantized/compare.py measure"
        raise LLMError(f"{options.path} holds no questions", why, fix)
    if found.bad:
        say(f"warning: {len(found.bad)} bad rows are left out, such as: {found.bad[0].what}")
    rows = source.rows()
    if found.format == "tatqa":
        made = _tatqa(found.examples, rows, group_by, options.path)
        name = TATQA
    else:
        made = _others(found.examples, rows, group_by, golds_column, options.path)
        name = Path(options.path.rstrip("/")).stem or "questions"
    questions = tuple(replace(question, number=n) for n, question in enumerate(made))
    _check_groups(questions, group_by)
    return Questions(name, options.path, source.digest(), questions, len(found.bad))


def chosen_numbers(texts: Sequence[str], found: Questions) -> list[int]:
    """Numbers that `100`, `3,7,12`, `10-20` and ids name, in the order of the command line.

    Raises:
        LLMError, ExceptionGroup: What names no question, all at once.
    """
    ids = {question.example.id: question.number for question in found.questions}
    count = len(found.questions)
    numbers: dict[int, None] = {}
    faults = []
    for text in (part.strip() for given in texts for part in given.split(",")):
        written = NUMBERS.fullmatch(text)
        if written is None or (text in ids and not text.isdigit()):
            if text in ids:
                numbers[ids[text]] = None
                continue
            near = difflib.get_close_matches(text, ids, n=1)
            fix = f"did you mean {near[0]}?" if near else "a number from 0, 3,7,12, 10-20, or an id"
            faults.append(LLMError(f"--sid {text} names no question", f"of {found.path}", fix))
            continue
        first = int(written[1])
        last = int(written[2] or first)
        if last < first:
            faults.append(
                LLMError(f"--sid {text} names no question", "its end is before its start")
            )
        elif last >= count:
            why = f"{found.path} has {count:,} questions: 0 to {count - 1}"
            faults.append(LLMError(f"--sid {text} is out of range", why))
        else:
            numbers.update(dict.fromkeys(range(first, last + 1)))
    raise_some(faults)
    return list(numbers)


def _tatqa(
    examples: Sequence[Example], rows: Iterator[Row | LLMError], group_by: Sequence[str], path: str
) -> Iterator[Question]:
    contexts: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for row in rows:
        if not isinstance(row, LLMError) and isinstance(row.values.get("questions"), list):
            for number, asked in enumerate(row.values["questions"], start=1):
                if isinstance(asked, dict):
                    contexts[f"{row.where}, question {number}"] = (row.values, asked)
    _check_columns(group_by, {key: None for _, asked in contexts.values() for key in asked}, path)
    for example in examples:
        values, asked = contexts[example.where]
        gold = gold_of(asked) if "answer" in asked else None
        groups = {"answer_type": "", "answer_from": ""} if gold is None else {
            "answer_type": gold.answer_type,
            "answer_from": gold.answer_from,
        }  # fmt: skip
        groups |= {name: _group(asked.get(name)) for name in group_by}
        context, _, text = example.input.rpartition(BEFORE_QUESTION)
        paragraphs = sorted(values["paragraphs"], key=lambda one: float(one.get("order", 0)))
        yield Question(
            0,
            example,
            text,
            context,
            groups,
            gold,
            table=values["table"]["table"],
            paragraphs=tuple(str(one["text"]) for one in paragraphs),
        )


def _others(
    examples: Sequence[Example],
    rows: Iterator[Row | LLMError],
    group_by: Sequence[str],
    golds_column: str | None,
    path: str,
) -> Iterator[Question]:
    by_place = {row.where: row.values for row in rows if not isinstance(row, LLMError)}
    wanted = [*group_by, *([golds_column] if golds_column else [])]
    _check_columns(wanted, {key: None for values in by_place.values() for key in values}, path)
    for example in examples:
        values = by_place[example.where]
        further = _further_golds(values.get(golds_column), example) if golds_column else ()
        groups = {name: _group(values.get(name)) for name in group_by}
        text, context = example.instruction, example.input
        if example.messages is not None:
            text = example.messages[-2]["content"]
            context = "\n\n".join(m["content"] for m in example.messages[:-2])
        golds = tuple(gold for gold in (example.answer, *further) if gold.strip())
        yield Question(0, example, text, context, groups, golds=golds)


def _further_golds(value: Any, example: Example) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        why = "expected a text or a list of texts"
        raise LLMError(f"{example.where}: the further answers can't be read", why)
    return tuple(texts)


def _group(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _check_columns(names: Sequence[str], there: Mapping[str, Any], path: str) -> None:
    faults = []
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]}?" if near else ""
            why = f"it has {', '.join(list(there)[:12])}"
            faults.append(
                LLMError(f"{path} has no column {name} to group by or score with", why, fix)
            )
    raise_all(faults)


def _check_groups(questions: Sequence[Question], group_by: Sequence[str]) -> None:
    faults = []
    for name in group_by:
        count = len({question.groups[name] for question in questions})
        if count > MOST_GROUPS:
            why = f"it has {count:,} different values, at most {MOST_GROUPS} make groups"
            faults.append(LLMError(f"--group-by {name} does not group the questions", why))
    raise_all(faults)
