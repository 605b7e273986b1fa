"""Independent units of a task: items that stand alone, or the sums over items that share something.

    scores = item_scores("exact_match", "right", task.items)
    scores.ratio                  # what the metric says: a share, a mean or a ratio

Every metric with a number an item is a sum over a sum: right answers over items, scores over items,
nats over bytes. Perplexity is the exponential of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.resampling import Numbers, Whole
from llm_recipes.evaluation.run import Item, Kind, Metric, cluster_of

CLOSE = 1e-6  # relative: lm-eval adds its numbers up in another order

Scale = Literal["as is", "exp"]


@dataclass(frozen=True)
class Scores:
    """A metric's numbers of a task's items. parts, wholes: each item's (of a mean: score and 1)."""

    parts: Numbers
    wholes: Numbers
    clusters: Whole

    @property
    def units(self) -> int:
        """Items and groups of items that are independent of each other."""
        return int(self.clusters.max()) + 1 if len(self.clusters) else 0

    @property
    def are_clustered(self) -> bool:
        """Whether some items share something."""
        return self.units < len(self.parts)

    @property
    def ratio(self) -> float:
        """Sum over sum."""
        return float(self.parts.sum() / self.wholes.sum())

    def sums(self, values: Numbers) -> Numbers:
        """The sum of an item's values over each unit."""
        if not self.are_clustered:
            return values
        return np.bincount(self.clusters, weights=values, minlength=self.units)


def item_scores(name: str, kind: Kind, items: Sequence[Item], where: str = "") -> Scores:
    """The numbers that items have for a metric; items without it don't count.

    Args:
        name: The metric's name.
        kind: Its kind.
        items: Of the task.
        where: Task and run, for errors.

    Raises:
        LLMError: If one is no finite number, a right answer neither 0 nor 1, or the wholes are not
            positive.
    """
    found = [(item, item.scores[name]) for item in items if name in item.scores]
    parts, wholes = [], []
    for item, score in found:
        part, whole = score if isinstance(score, tuple) else (score, 1.0)
        if (kind == "ratio") != isinstance(score, tuple) or not _is_possible(kind, part, whole):
            what = f"the score {name} of item {item.id} in {where or 'a task'} can't be used"
            why = f"it is {score!r}, and {MEANS[kind]}"
            fix = "evaluate again; if it stays, the model or the task is broken"
            raise LLMError(what, why, fix)
        parts.append(float(part))
        wholes.append(float(whole))
    clusters = codes(cluster_of(item) for item, _ in found)
    return Scores(np.array(parts), np.array(wholes), clusters)


MEANS = {
    "right": "it has to be 0 or 1",
    "mean": "it has to be a finite number",
    "ratio": "it has to be two finite numbers, the second above 0",
    "aggregate": "it has to be a finite number",
}


def _is_possible(kind: Kind, part: object, whole: object) -> bool:
    numbers = isinstance(part, int | float) and isinstance(whole, int | float)
    try:
        if not numbers or not (math.isfinite(part) and math.isfinite(whole)):  # type: ignore[arg-type]
            return False
    except OverflowError:  # a whole number of hundreds of digits
        return False
    return float(whole) > 0 and (kind != "right" or part in (0, 1))  # type: ignore[arg-type]


def codes(names: Iterable[str]) -> Whole:
    """A number for each name, from 0 in the order they come."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)


def scale_of(metric: Metric, scores: Scores) -> Scale | None:
    """How the metric's value comes from its items' numbers; None if it does not."""
    ratio = scores.ratio
    if math.isclose(metric.value, ratio, rel_tol=CLOSE, abs_tol=CLOSE**2):
        return "as is"
    if ratio < 700 and math.isclose(metric.value, math.exp(ratio), rel_tol=CLOSE):
        return "exp"
    return None


def is_share(metric: Metric, *all_scores: Scores) -> bool:
    """Whether it is a fraction of 1, such as F1: counted in points, never below 0 or above 1."""
    if metric.kind == "right":
        return True
    return (
        metric.kind == "mean"
        and metric.higher_is_better
        and all(len(s.parts) and s.parts.min() >= 0 and s.parts.max() <= 1 for s in all_scores)
    )
