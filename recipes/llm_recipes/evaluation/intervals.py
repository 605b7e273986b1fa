"""Intervals of single results: how sure a share, a mean or a ratio is with so many items.

from llm_recipes.evaluation.intervals import with_interval
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llm_recipes.evaluation.run import Item, Metric


def with_interval(name: str, metric: Metric, items: Sequence[Item]) -> Metric:
    """The metric with its interval of 95 %.

    Args:
        name: The metric's name in the items' scores.
        metric: Its value and stderr.
        items: All of the task; those without this score don't count.
    """
    count = sum(name in item.scores for item in items)
    if metric.stderr is None:
        return replace(metric, items=count)
    half = 1.96 * metric.stderr
    return replace(metric, items=count, low=metric.value - half, high=metric.value + half)
