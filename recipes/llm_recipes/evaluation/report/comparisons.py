"""Comparisons of runs: differences with intervals, and what they mean.

from llm_recipes.evaluation.report.comparisons import comparisons, verdicts
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_recipes.evaluation.report.blocks import Line, Section
from llm_recipes.evaluation.report.collect import Run


def comparisons(runs: Sequence[Run]) -> Section | None:
    """Tables of all comparisons; None without any."""
    return None


def verdicts(runs: Sequence[Run]) -> list[Line]:
    """What all comparisons say."""
    return []
