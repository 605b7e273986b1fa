"""Read the project's Markdown files: code blocks, commands in the text, links, headings, tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
PATTERNS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "sites/README.md"),
    *("containers/*/README.md", "recipes/*/README.md"),
)
RUN_MARK = "<!-- run -->"
COMMANDS_IN_TEXT = ("make ", "bin/llm-run ", "llm-run ")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its opening fence, from 1. run: RUN_MARK stands before it."""

    document: str
    line: int
    language: str
    text: str
    run: bool

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def documents(home: Path = HOME) -> dict[str, str]:
    """Path from the top folder -> text, of every Markdown file that users read."""
    files = sorted(file for pattern in PATTERNS for file in home.glob(pattern))
    return {str(file.relative_to(home)): file.read_text(encoding="utf-8") for file in files}


def blocks(document: str, text: str) -> list[Block]:
    """Every fenced block of a document. Raises ValueError for one that is not closed."""
    found: list[Block] = []
    opened: tuple[int, str, list[str], bool] | None = None
    before = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            if opened is None:
                opened = (number, line[3:].strip(), [], before == RUN_MARK)
            else:
                start, language, lines, run = opened
                found.append(Block(document, start, language, "\n".join(lines) + "\n", run))
                opened = None
        elif opened is not None:
            opened[2].append(line)
        if line.strip():
            before = line.strip()
    if opened is not None:
        raise ValueError(f"{document}:{opened[0]}: the block is not closed")
    return found


def prose(text: str) -> str:
    """The document with its fenced blocks blanked out; lines keep their numbers."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        lines.append("" if inside or fence else line)
        inside = inside != fence
    return "\n".join(lines)


def code_spans(text: str) -> Iterator[tuple[int, str]]:
    """(line, content) of every piece of code in the text between the blocks."""
    for number, line in enumerate(prose(text).splitlines(), start=1):
        for span in re.findall(r"`([^`]+)`", line):
            yield number, span


def commands_in_text(document: str, text: str) -> list[Block]:
    """Commands that stand in the text itself, each as a block of one line."""
    return [
        Block(document, number, "bash", span + "\n", False)
        for number, span in code_spans(text)
        if span.startswith(COMMANDS_IN_TEXT) and "…" not in span
    ]


def indented_commands(document: str, text: str) -> list[Block]:
    """Indented blocks that begin with a command, as blocks of shell."""
    found: list[Block] = []
    lines = prose(text).splitlines()
    for number, line in enumerate(lines, start=1):
        begins = line.startswith("    ") and not (number > 1 and lines[number - 2].strip())
        if not begins or not line.strip().startswith(COMMANDS_IN_TEXT):
            continue
        taken = takewhile(lambda other: other.startswith("    "), lines[number - 1 :])
        content = "\n".join(one[4:] for one in taken)
        found.append(Block(document, number, "bash", content + "\n", False))
    return found


def links(text: str) -> list[tuple[int, str]]:
    """(line, target) of every link."""
    return [
        (number, target)
        for number, line in enumerate(prose(text).splitlines(), start=1)
        for target in re.findall(r"\]\(([^)\s]+)\)", line)
    ]


def anchors(text: str) -> set[str]:
    """Names that a link may end with: those of the headings, as Python-Markdown makes them."""
    found = set()
    for line in prose(text).splitlines():
        heading = re.match(r"#{1,6} +(.*)", line)
        if heading:
            plain = unicodedata.normalize("NFKD", heading.group(1).replace("`", ""))
            word = re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode()).strip()
            found.add(re.sub(r"[-\s]+", "-", word.lower()))
    return found


def first_cells(text: str, header: str) -> list[tuple[int, str]]:
    """(line, first cell) of every row of the tables whose first column has this header."""
    found: list[tuple[int, str]] = []
    wanted = False
    for number, line in enumerate(prose(text).splitlines(), start=1):
        if not line.startswith("|"):
            wanted = False
            continue
        cell = line.split(" | ")[0].lstrip("| ").rstrip("| ")
        if cell == header:
            wanted = True
        elif wanted and not set(cell) <= set("-: "):
            found.append((number, cell))
    return found
