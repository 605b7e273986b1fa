"""A report in Markdown: what the HTML file says, without its pictures.

from llm_recipes.evaluation.report.markdown import markdown
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm_recipes.evaluation.report.blocks import (
    Block,
    Cell,
    Facts,
    Item,
    Piece,
    Report,
    Table,
    Words,
)
from llm_recipes.evaluation.report.values import clean

SPECIAL = re.compile(r"([\\`*_{}\[\]<|~&$])")
AT_START = re.compile(
    r"^(\d*)([-+=#.)]|>)(?=[\s=#>-]|$)"
)  # a list, a heading, a line below a heading
MARKS = {"same": ("", ""), "other": ("⟦", "⟧"), "gone": ("[-", "-]"), "new": ("{+", "+}")}


def markdown(report: Report) -> str:
    """The text."""
    lines = [f"# {plain(report.title)}", ""]
    for section in report.sections:
        lines += [f"## {plain(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def plain(text: str) -> str:
    """A text in one line, in which nothing means anything to Markdown or HTML."""
    line = SPECIAL.sub(r"\\\1", clean(text).replace("\n", " ").strip())
    return AT_START.sub(r"\1\\\2", line)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Words):
        yield from _words(block)
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Facts):
        yield from _facts(block)
    elif isinstance(block, Item):
        yield from _item(block)
    else:
        yield f"*{plain(block.caption)}: see the picture in report.html.*"


def _words(block: Words) -> Iterator[str]:
    for line in block.lines:
        sign = f"{line.sign} " if line.sign else ""
        yield f"{'- ' if block.is_list else ''}{sign}{plain(line.text)}"


def _table(table: Table) -> Iterator[str]:
    yield f"**{plain(table.caption)}**"
    yield ""
    yield "| " + " | ".join(map(plain, table.head)) + " |"
    ends = ("---:" if table.is_number(n) else "---" for n in range(len(table.head)))
    yield "|" + "|".join(ends) + "|"
    for row in table.rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"
    if table.notes:
        yield ""
        yield from (f"- {plain(note)}" for note in table.notes)


def _cell(cell: Cell) -> str:
    return plain(cell.text) or " "


def _facts(block: Facts) -> Iterator[str]:
    yield f"### {plain(block.title)}"
    yield ""
    for name, text in block.rows:
        yield f"- {plain(name)}: {plain(text)}"
    for text, address in block.links:
        yield f"- [{plain(text)}]({address.replace('(', '%28').replace(')', '%29')})"


def _item(item: Item) -> Iterator[str]:
    yield f"### {plain(item.title)}"
    yield ""
    for title, text in (
        ("Context", item.context),
        ("Question", item.question),
        ("Gold", item.gold),
    ):
        if text:
            yield from _quoted(title, text)
    for answer in item.answers:
        verdict = f": {answer.verdict}" if answer.verdict else ""
        yield from _quoted(f"{answer.run}{verdict}", _joined(answer.pieces))
        if answer.against_gold:
            yield from _quoted("against gold", _joined(answer.against_gold))


def _quoted(title: str, text: str) -> Iterator[str]:
    """A text as it is, in a fence that nothing in it closes."""
    text = clean(text).rstrip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    yield f"{plain(title)}:"
    yield ""
    yield f"{fence}text"
    yield text
    yield fence
    yield ""


def _joined(pieces: tuple[Piece, ...]) -> str:
    return "".join(MARKS[p.change][0] + p.text + MARKS[p.change][1] for p in pieces)
