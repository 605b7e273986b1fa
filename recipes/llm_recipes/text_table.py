"""Tables for a terminal.

from llm_recipes.text_table import aligned
print(aligned([["model", "tokens/s", ""], ["tiny", "31.3", "default"]]))
"""

from __future__ import annotations

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]], names: int = 1) -> str:
    """Columns of equal width: names and words to the left, numbers to the right.

    Args:
        lines: Their cells, as many in each.
        names: So many first columns are names; the last holds words in any case.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1

    def cell(n: int, text: str) -> str:
        return text.ljust(widths[n]) if n < names or n == last else text.rjust(widths[n])

    return "\n".join("  ".join(cell(n, t) for n, t in enumerate(ln)).rstrip() for ln in lines)
