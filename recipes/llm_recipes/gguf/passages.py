"""Cut a text into passages that every model can see as a whole, at the same places for all.

    from llm_recipes.gguf.passages import cut, fit

Passages are what is paired in a comparison: each model is asked how likely each of them is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BYTES = 1000  # of a passage: some paragraphs, a few hundred tokens
BLANK_LINES = re.compile(r"\n[ \t\r]*(?:\n[ \t\r]*)+")
# Where a paragraph that is too long may be cut, the best place first.
BREAKS = (re.compile(r"\n"), re.compile(r"(?<=[.!?:;])\s"), re.compile(r"\s"))


@dataclass(frozen=True)
class Passage:
    """A part of a text. start: its first byte in the text's UTF-8. bytes: its length there."""

    start: int
    content: str

    @property
    def bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.content.encode())


def cut(text: str, most: int = BYTES) -> list[Passage]:
    """Passages of at most `most` bytes: paragraphs that follow each other, or parts of a long one.

    White space between passages belongs to none.
    """
    passages: list[Passage] = []
    for start, end in _paragraphs(text):
        for first, last in _parts(text, start, end, most):
            _append(passages, text, first, last, most)
    return _with_byte_offsets(text, passages)


def fit(passages: Sequence[Passage], fits: Callable[[str], bool]) -> list[Passage]:
    """Halve passages until each fits; what can't be halved any more is left out.

    Args:
        passages: Of a text.
        fits: Whether every model can see a text as a whole.
    """
    found: list[Passage] = []
    waiting = list(reversed(passages))
    while waiting:
        passage = waiting.pop()
        if fits(passage.content):
            found.append(passage)
            continue
        middle = _break_near(passage.content, len(passage.content) // 2)
        halves = [
            part
            for start, end in ((0, middle), (middle, len(passage.content)))
            if (part := _stripped(passage, start, end)) is not None
        ]
        if len(passage.content) > 1:
            waiting += reversed(halves)
    return found


def spread(passages: Sequence[Passage], most: int) -> list[Passage]:
    """At most so many, evenly from the whole text; 0 is all."""
    count = len(passages)
    if not most or count <= most:
        return list(passages)
    return [passages[(2 * n + 1) * count // (2 * most)] for n in range(most)]


def _paragraphs(text: str) -> list[tuple[int, int]]:
    ends = [(m.start(), m.end()) for m in BLANK_LINES.finditer(text)]
    starts = [0, *(end for _, end in ends)]
    return list(zip(starts, [*(start for start, _ in ends), len(text)], strict=True))


def _parts(text: str, start: int, end: int, most: int) -> list[tuple[int, int]]:
    """A paragraph, cut where it is too long."""
    found: list[tuple[int, int]] = []
    while True:
        piece = text[start : min(end, start + most)].encode()[:most].decode("utf-8", "ignore")
        if start + len(piece) >= end:
            return [*found, (start, end)]
        place = start + max(1, _break_before(piece))
        found.append((start, place))
        start = place


def _append(passages: list[Passage], text: str, start: int, end: int, most: int) -> None:
    """Add a part, to the passage before it if there is room; positions are characters here."""
    content = text[start:end]
    start += len(content) - len(content.lstrip())
    content = content.strip()
    if not content:
        return
    if passages:
        joined = text[passages[-1].start : start + len(content)]
        if len(joined) <= most and len(joined.encode()) <= most:
            passages[-1] = Passage(passages[-1].start, joined)
            return
    passages.append(Passage(start, content))


def _with_byte_offsets(text: str, passages: Sequence[Passage]) -> list[Passage]:
    found = []
    characters = size = 0
    for passage in passages:
        size += len(text[characters : passage.start].encode())
        characters = passage.start
        found.append(Passage(size, passage.content))
    return found


def _break_before(text: str) -> int:
    """The last place in the text's second half where it may be cut, or its end."""
    half = len(text) // 2
    for pattern in BREAKS:
        ends = [m.end() for m in pattern.finditer(text) if m.end() > half]
        if ends:
            return ends[-1]
    return len(text)


def _break_near(text: str, middle: int) -> int:
    """White space near a place, or the place."""
    places = [m.start() for m in re.finditer(r"\s", text) if 0 < m.start() < len(text)]
    return min(places, key=lambda place: abs(place - middle), default=max(1, middle))


def _stripped(passage: Passage, start: int, end: int) -> Passage | None:
    part = passage.content[start:end]
    start += len(part) - len(part.lstrip())
    content = part.strip()
    if not content:
        return None
    return Passage(passage.start + len(passage.content[:start].encode()), content)
