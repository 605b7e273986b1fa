"""Which words of two texts differ.

from llm_recipes.evaluation.report.diff import changed, different
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from llm_recipes.evaluation.report.blocks import Piece

# A number with its points and commas is one word.
WORDS = re.compile(r"\s+|\w+(?:[.,'’-]\w+)*|[^\w\s]")
MOST_WORDS = 1500  # the time grows with the square


def changed(old: str, new: str) -> tuple[Piece, ...]:
    """The way from one text to another: words that are gone, and new ones."""
    pieces: list[Piece] = []
    for tag, gone, came in _steps(old, new):
        if tag == "equal":
            pieces.append(Piece(gone))
        else:
            pieces += [Piece(gone, "gone")] * bool(gone) + [Piece(came, "new")] * bool(came)
    return tuple(pieces)


def different(reference: str, text: str) -> tuple[Piece, ...]:
    """A text whole, with the words marked that are not in the other one."""
    return tuple(
        Piece(came, "same" if tag == "equal" else "other")
        for tag, _, came in _steps(reference, text)
        if came
    )


def _steps(old: str, new: str) -> list[tuple[str, str, str]]:
    before, after = WORDS.findall(old), WORDS.findall(new)
    if max(len(before), len(after)) > MOST_WORDS:
        return [("equal" if old == new else "replace", old, new)]
    steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [(tag, "".join(before[a:b]), "".join(after[c:d])) for tag, a, b, c, d in steps]
