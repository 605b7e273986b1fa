"""A question on the terminal: table, text, what is right, and the answers of several models.

    for line in question_lines(question, [Given("base", "1,496.5", {...})], console): ...

Words of an answer that what is right doesn't have stand in [+ +], those that are missing in [- -]:
differences show without colours, too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_recipes.evaluation.judging import FAULTS, Judged, gold_text
from llm_recipes.evaluation.questions import Question
from llm_recipes.evaluation.run import EvaluatedRun, Item

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MOST_ROWS = 30
CELL_WIDTH = 9  # of a table's column at least, where its cells are as wide
ANSWER_WIDTH = 22  # of a model's column at least: else models stand below each other
LEAST_CONTEXT = 500  # characters of a long context by which a question is known
# Control characters but for tabs and ends of lines, and halves of surrogate pairs.
NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
RIGHT, WRONG, NONE = "right", "wrong", "no answer"


@dataclass(frozen=True)
class Given:
    """An answer to be shown. name: the model's or run's.

    scores: None if there is no answer; empty if nobody knows what is right.
    """

    name: str
    text: str
    scores: Mapping[str, float] | None
    fault: str = ""

    @property
    def verdict(self) -> str:
        """Right or wrong in a word, with F1 where it says more."""
        if self.scores is None:
            return NONE
        if not self.scores:
            return ""
        if self.scores.get("exact_match", 0.0) >= 1:
            return RIGHT if self.scores.get("scale", 1.0) >= 1 else f"{RIGHT}, other scale"
        f1 = self.scores.get("f1", 0.0)
        return f"{WRONG}, F1 {f1:.2f}" if f1 else WRONG


def given_now(name: str, judged: Judged) -> Given:
    """An answer that was just made."""
    if not gold_text(judged.question):
        return Given(name, judged.text, {})
    return Given(name, judged.text, judged.scores, FAULTS.get(judged.fault, ""))


def given_by(run: EvaluatedRun, question: Question, name: str) -> Given:
    """The answer of an earlier run: found by what it asks."""
    item = _item_of(run, question)
    if item is None or item.shown is None:
        return Given(name, "", None, "not in this run")
    scores = {key: value for key, value in item.scores.items() if isinstance(value, (int, float))}
    return Given(name, item.shown.answer, scores)


def names_of(runs: Sequence[EvaluatedRun]) -> list[str]:
    """A name for each run: of its folder, with those above where that is needed to tell them."""
    short = [run.name for run in runs]
    return [
        f"{run.folder.resolve().parent.name}/{run.name}" if short.count(run.name) > 1 else run.name
        for run in runs
    ]


def show_question(question: Question, given: Sequence[Given], console: Console) -> None:
    """Print a question with all of its answers."""
    from rich.text import Text

    title = Text(printable(f"sid {question.number}, uid {question.example.id}"))
    console.rule(title, align="left", characters="=")
    if question.table:
        _print_table(question.table, console)
        for paragraph in question.paragraphs:
            _print(console, paragraph)
            console.print()
    elif question.context.strip():
        _print(console, question.context)
        console.print()
    _print(console, f"Question  {question.text}")
    kinds = ", ".join(f"{name} {value}" for name, value in question.groups.items() if value)
    if kinds:
        _print(console, f"          {kinds}")
    gold = printable(gold_text(question))
    if not given:
        _print(console, f"Gold      {gold or '(the file has none)'}")
    else:
        console.print(_answers(gold, given, console.width))
    console.print()


def printable(text: str) -> str:
    """The text without what would move a terminal's cursor, change its colours or break UTF-8."""
    return NOT_PRINTABLE.sub("\ufffd", text)


def marked(answer: str, gold: str) -> Text:
    """The answer with what is too much in [+ +] and what is missing in [- -]."""
    from rich.text import Text

    one, other = gold.split(), answer.split()
    text = Text()
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    for kind, start, end, first, last in matcher.get_opcodes():
        missing, added = " ".join(one[start:end]), " ".join(other[first:last])
        pieces = [(added, "")] if kind == "equal" else []
        if kind != "equal":
            pieces += [(f"[-{missing}-]", "yellow")] if missing else []
            pieces += [(f"[+{added}+]", "red")] if added else []
        for piece, style in pieces:
            text.append(" " if text else "")
            text.append(piece, style)
    return text


def _answers(gold: str, given: Sequence[Given], width: int) -> Table:
    """One column a model if they fit beside each other, else one row."""
    from rich.table import Table
    from rich.text import Text

    right = Text(gold or "(the file has none)")
    bodies = [_body(one, gold) for one in given]
    table = Table(show_lines=True, width=width)
    if width // (len(given) + 1) >= ANSWER_WIDTH:
        heads = [Text("gold"), *(_head(one) for one in given)]
        for head in heads:
            table.add_column(head, overflow="fold", ratio=1)
        table.add_row(right, *bodies)
        return table
    for head, ratio in (("model", 1), ("answer", 3)):
        table.add_column(head, overflow="fold", ratio=ratio)
    table.add_row("gold", right)
    for one, body in zip(given, bodies, strict=True):
        table.add_row(_head(one), body)
    return table


def _head(one: Given) -> Text:
    from rich.text import Text

    return Text(f"{printable(one.name)}\n{one.verdict}".rstrip(), _style(one))


def _body(one: Given, gold: str) -> Text:
    from rich.text import Text

    if one.scores is None:
        return Text(f"({one.fault})", "dim")
    answer = printable(one.text).strip()
    text = Text(answer) if one.verdict == RIGHT or not gold else marked(answer, gold)
    if one.fault:
        text.append(f"\n({one.fault})", "dim")
    return text


def _style(one: Given) -> str:
    if not one.scores:
        return "dim"
    return "green" if one.scores.get("exact_match", 0.0) >= 1 else "red"


def _print_table(rows: Sequence[Sequence[object]], console: Console) -> None:
    """The first rows and columns that there is room for, and how many are left out."""
    from rich.table import Table
    from rich.text import Text

    columns = max((len(row) for row in rows), default=0)
    shown = _columns_that_fit(rows, columns, console.width)
    table = Table(show_header=False, show_lines=False)
    for number in range(shown):
        table.add_column(overflow="fold", justify="left" if number == 0 else "right")
    for row in rows[:MOST_ROWS]:
        cells = ["" if cell is None else " ".join(printable(str(cell)).split()) for cell in row]
        cells += [""] * (columns - len(cells))
        table.add_row(*(Text(cell) for cell in cells[:shown]))
    console.print(table)
    left_out = []
    if len(rows) > MOST_ROWS:
        left_out.append(f"{len(rows) - MOST_ROWS} more rows")
    if shown < columns:
        left_out.append(f"{columns - shown} more columns")
    if left_out:
        _print(console, f"(the table has {' and '.join(left_out)} than are shown)")
    console.print()


def _columns_that_fit(rows: Sequence[Sequence[object]], columns: int, width: int) -> int:
    used = 1
    for number in range(columns):
        cells = (str(row[number]) for row in rows if number < len(row))
        used += min(CELL_WIDTH, max((len(cell) for cell in cells), default=0)) + 3
        if used > width:
            return max(1, number)
    return columns


def _print(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=False, overflow="fold")


def _item_of(run: EvaluatedRun, question: Question) -> Item | None:
    """The run's item with this very question: its id if two have it, else the first.

    Ids alone tell little: harness.py's are numbers, as those of many files.
    """
    found = [item for task in run.tasks.values() for item in task.items if _asks(item, question)]
    by_id = [item for item in found if item.id == question.example.id]
    return next(iter(by_id or found), None)


def _asks(item: Item, question: Question) -> bool:
    """Whether an item is this question; its context, or the end of it, may stand in front of it."""
    if item.shown is None:
        return False
    asked, text = _one_line(item.shown.question), _one_line(question.text)
    if not asked.endswith(text):
        return False
    if _one_line(question.context) in f"{_one_line(item.shown.context)} {asked}":
        return True
    # Of harness.py's long prompts only the end is kept.
    is_end = len(asked) > len(text) + LEAST_CONTEXT
    return is_end and _one_line(question.example.prompt.whole_text).endswith(asked)


def _one_line(text: str) -> str:
    return " ".join(text.split())
