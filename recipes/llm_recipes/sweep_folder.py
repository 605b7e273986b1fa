"""A sweep's output folder: is it one, can its runs be compared with new ones, which are done?

    from llm_recipes.sweep_folder import check_fixed, check_folder, finished
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.record import read_record
from llm_recipes.sweep_points import Point
from llm_recipes.sweep_report import RECIPE, TITLE
from llm_recipes.sweep_runs import Row, fixed_part, read_row, read_rows, row_path


def check_folder(output: Path) -> None:
    """See that the folder is new, or an earlier sweep's.

    Raises:
        LLMError: If it holds something else.
    """
    if output.exists() and not output.is_dir():
        raise LLMError(f"{output} is a file", "the output is a folder", "choose another --output")
    if not output.is_dir():
        return
    present = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    record = read_record(output / TITLE) or {}
    if present and record.get("recipe") != RECIPE:
        why = f"it holds {', '.join(present[:5])}, and no record of a sweep"
        raise LLMError(f"{output} is not the folder of a sweep", why, "choose another --output")


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
