"""What a report consists of: sections of tables, pictures, words, facts and answers.

from llm_recipes.evaluation.report.blocks import Cell, Section, Table
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

# Said by a sign and a word, and by colour only besides.
Tone = Literal["", "good", "bad", "unsure"]
WIDTHS = ((48, "long"), (14, "wide"))  # characters of cells that want room


@dataclass(frozen=True)
class Cell:
    """A table's cell. number: set to the right. link: a relative address."""

    text: str
    number: bool = False
    tone: Tone = ""
    link: str = ""

    @property
    def style(self) -> str:
        """Names for the page's style."""
        width = next((name for least, name in WIDTHS if len(self.text) > least), "")
        return " ".join(filter(None, ["number" if self.number else width, self.tone]))


@dataclass(frozen=True)
class Whiskers:
    """A column of pictures: dots with intervals on one axis, which is below them.

    after: the table's column on its left.
    """

    title: str
    rows: tuple[Markup, ...]
    axis: Markup
    after: int = 0


@dataclass(frozen=True)
class Table:
    """A table. head: the columns' titles; a row's first cell is its title. notes: below it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    whiskers: Whiskers | None = None
    kind: str = "table"

    def is_number(self, column: int) -> bool:
        """Whether the column holds numbers."""
        return any(row[column].number for row in self.rows)


@dataclass(frozen=True)
class Picture:
    """A picture with what it shows in words. legend: what its lines are."""

    caption: str
    drawing: Markup
    legend: Markup
    kind: str = "picture"


@dataclass(frozen=True)
class Line:
    """A sentence of a list; what is in front of its first colon is the main thing of a verdict.

    sign: in front of it, with its tone.
    """

    text: str
    tone: Tone = ""
    sign: str = ""

    @property
    def parts(self) -> tuple[str, str]:
        """The main thing, and the rest."""
        head, colon, rest = self.text.partition(": ")
        return (head, colon + rest) if self.sign and colon else ("", self.text)


@dataclass(frozen=True)
class Words:
    """Sentences, as a list or as a paragraph."""

    lines: tuple[Line, ...]
    is_list: bool = True
    kind: str = "words"


@dataclass(frozen=True)
class Facts:
    """Names and values of a run. code: of them, those that are commands. links: text, address."""

    title: str
    rows: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...] = ()
    code: tuple[str, ...] = ("command",)
    kind: str = "facts"


@dataclass(frozen=True)
class Piece:
    """A part of a text. change: same, other (differs between runs), gone, new."""

    text: str
    change: Literal["same", "other", "gone", "new"] = "same"


@dataclass(frozen=True)
class Answer:
    """What a run answered. against_gold: the gold text's way to it, for wrong ones."""

    run: str
    verdict: str
    tone: Tone
    pieces: tuple[Piece, ...]
    against_gold: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Item:
    """A question with the answers of all runs."""

    title: str
    question: str
    context: str
    gold: str
    answers: tuple[Answer, ...]
    kind: str = "item"


Block = Table | Picture | Words | Facts | Item


@dataclass(frozen=True)
class Section:
    """A part of the report. id: its anchor."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """The whole."""

    title: str
    sections: tuple[Section, ...]
