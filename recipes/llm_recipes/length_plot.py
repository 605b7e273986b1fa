"""How long the examples of a dataset are: as text for a terminal, and as a picture.

from llm_recipes.length_plot import draw_lengths, length_lines
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

ROWS, BAR = 10, 40


def length_lines(lengths: Sequence[int], max_length: int) -> list[str]:
    """A histogram of at most ten lines: tokens, a bar, examples; a mark where they are cut off.

    It begins at the shortest.
    """
    longest = max(lengths)
    step = _round_up(longest / ROWS)
    counts = [0] * ((longest - 1) // step + 1)
    for length in lengths:
        counts[(length - 1) // step] += 1
    width = len(f"{len(counts) * step:,}")
    lines: list[str] = []
    for number, count in enumerate(counts):
        if not lines and not count:
            continue
        low, high = number * step + 1, (number + 1) * step
        bar = "█" * max(round(BAR * count / max(counts)), 1 if count else 0)
        mark = "  <- max length" if low <= max_length < min(high, longest) else ""
        lines.append(f"{low:>{width},}-{high:<{width},} {bar:<{BAR}} {count:,}{mark}")
    return lines


def draw_lengths(path: Path, lengths: Sequence[int], max_length: int, title: str) -> None:
    """Draw the histogram with the limit as a PNG file (any figure format that its name ends in).

    Raises:
        LLMError: If it cannot be written.
    """
    from llm_recipes.files import write_fault

    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(lengths, bins=50)
    if max_length <= max(lengths):
        axes.axvline(max_length, color="tab:red", linestyle="--", label=f"limit {max_length:,}")
        axes.legend()
    axes.set_xlabel("tokens of an example, prompt and response")
    axes.set_ylabel("examples")
    axes.set_title(title.replace("$", r"\$"))  # it would begin a formula
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        figure.savefig(temporary, dpi=120)
        os.replace(temporary, path)
    except OSError as error:
        raise write_fault(path, error) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if factor * size >= value:
                return factor * size
        size *= 10
