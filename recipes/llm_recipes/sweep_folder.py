"""A sweep's output folder: can its runs be compared with new ones, and which are done?

    from llm_recipes.sweep_folder import check_fixed, finished
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.sweep_points import Point
from llm_recipes.sweep_runs import Row, fixed_part, read_row, read_rows, row_path


def check_fixed(output: Path, point: Point, processes: int) -> None:
    """See that the runs that are there can be compared with those that are to come.

    Raises:
        LLMError: If other settings differ than those that a sweep varies.
    """
    now = fixed_part(point, processes)
    for row in read_rows(output):
        differs = [
            f"{name} was {row.fixed.get(name)!r}, now {value!r}"
            for name, value in now.items()
            if row.fixed.get(name) != value
        ]
        if differs:
            what = f"{output} is a sweep with other settings"
            fix = "give the same settings, or choose another --output"
            raise LLMError(what, "; ".join(differs), fix)


def finished(output: Path, points: Sequence[Point]) -> dict[str, Row]:
    """Results that needn't be measured again, by name."""
    rows = (read_row(row_path(output, point.name)) for point in points)
    return {row.name: row for row in rows if row is not None and row.is_final}
