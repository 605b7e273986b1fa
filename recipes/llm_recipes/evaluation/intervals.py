"""Intervals of single results: how sure a share, a mean or a ratio is with so many items.

    from llm_recipes.evaluation.intervals import with_interval

The methods are those whose intervals held what they promise in simulation
(tests/recipes/test_evaluation_statistics.py): Wilson's for shares of 0/1 answers, with the
effective number of items where some share a context; for means and ratios the studentised bootstrap
by cluster, which is right for skewed ones where the percentile and BCa bootstraps are too short, or
Student's t where that is wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.resampling import SEED, Numbers, bootstrap_sums
from llm_recipes.evaluation.run import Item, Metric
from llm_recipes.evaluation.units import Scores, is_share, item_scores, scale_of

CONFIDENCE = 0.95
RESAMPLES = 2000  # of a single result: its ends move by a fiftieth of its width
RARE = 5  # units that differ from all the rest: with fewer, resamples often hold none of them
ROUNDING = 1e-12
MANY = 10000  # units: the bootstrap's and the normal interval are the same to the eye

Interval = tuple[float, float]


def with_interval(name: str, metric: Metric, items: Sequence[Item]) -> Metric:
    """The metric with its interval of 95 %.

    Wilson (1927) for answers that are right or wrong; the studentised bootstrap (Efron and
    Tibshirani 1993, chapter 12) for means and ratios; 1.96 stderr where there is no number an item.
    Items of one cluster are not independent and are taken as one.

    Args:
        name: The metric's name in the items' scores.
        metric: Its value and stderr.
        items: All of the task; those without this score don't count.
    """
    count = sum(name in item.scores for item in items)
    try:
        found = _interval(name, metric, items) if count else _from_stderr(metric)
    except LLMError:  # said where it decides something, in a comparison
        found = None
    low, high = found or (None, None)
    return replace(metric, items=count, low=low, high=high)


def _from_stderr(metric: Metric) -> Interval | None:
    if metric.stderr is None or not math.isfinite(metric.stderr):
        return None
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * metric.stderr
    return metric.value - half, metric.value + half


def _interval(name: str, metric: Metric, items: Sequence[Item]) -> Interval | None:
    if metric.kind == "aggregate":
        return _from_stderr(metric)
    scores = item_scores(name, metric.kind, items)
    scale = scale_of(metric, scores)
    if scale is None:
        return _from_stderr(metric)
    parts, wholes = scores.sums(scores.parts), scores.sums(scores.wholes)
    if metric.kind == "right":
        return share_interval(parts, wholes, scores.are_clustered)
    share = is_share(metric, scores)
    found = ratio_interval(parts, wholes, (0.0, 1.0) if share else extremes(scores))
    if found is None:
        return None
    low, high = found
    if scale == "exp":
        return math.exp(low), math.exp(high)
    return (max(0.0, low), min(1.0, high)) if share else (low, high)


def extremes(scores: Scores) -> Interval:
    """The smallest and largest value of an item."""
    values = scores.parts / scores.wholes
    return float(values.min()), float(values.max())


def wilson(share: float, count: float, quantile: float) -> Interval:
    """The score interval of a share (Wilson 1927).

    Args:
        share: Observed, 0 to 1.
        count: Items; may be an effective number.
        quantile: Of the normal law, or of Student's t.
    """
    square = quantile**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    spread = max(0.0, share * (1 - share)) / count + square / (4 * count**2)
    half = quantile * math.sqrt(spread) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_interval(
    hits: Numbers, counts: Numbers, clustered: bool, confidence: float = CONFIDENCE
) -> Interval:
    """The interval of a share of 0/1 answers.

    With clusters it is Wilson's for the effective number of items and Student's t (Korn and
    Graubard 1998; Franco et al. 2019).

    Args:
        hits: Right answers of each unit.
        counts: Answers of each unit.
        clustered: Whether units have several answers.
        confidence: Such as 0.95.
    """
    share = float(hits.sum() / counts.sum())
    if not clustered:
        return wilson(share, float(counts.sum()), NormalDist().inv_cdf((1 + confidence) / 2))
    size = effective_size(hits - share * counts, counts, share * (1 - share))
    return wilson(share, size, student(confidence, len(hits)))


def effective_size(residuals: Numbers, counts: Numbers, variance: float) -> float:
    """As many independent items would be as sure as these clusters are.

    Args:
        residuals: Sum of the deviations from the mean in each cluster.
        counts: Items in each cluster.
        variance: Of a single item.

    Returns:
        At most the number of items (answers that repel each other in clusters are chance, mostly),
        and at most that of clusters where only a few deviate from the rest: then they can't tell
        how much a cluster has in common.
    """
    clusters, items = len(counts), float(counts.sum())
    spread = float((residuals**2).sum()) / items**2
    if clusters < 2 or variance <= 0 or spread <= 0:
        return float(clusters)
    most = items if _enough_differ(residuals, counts) else float(clusters)
    return min(most, max(1.0, variance / (spread * clusters / (clusters - 1))))


def _enough_differ(parts: Numbers, wholes: Numbers) -> bool:
    """Whether there is no value that all units have but a few."""
    usual = float(np.median(parts / wholes))
    differing = int((np.abs(parts - usual * wholes) > ROUNDING * wholes).sum())
    return differing >= RARE or 2 * differing >= len(parts)


def student(confidence: float, units: int) -> float:
    """The two-sided quantile of Student's t for a mean of this many units."""
    from scipy.special import stdtrit  # scipy.stats needs 2 s to be imported

    return float(stdtrit(max(1, units - 1), (1 + confidence) / 2))


def ratio_interval(
    parts: Numbers,
    wholes: Numbers,
    extreme: Interval,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval | None:
    """The interval of a sum over a sum: at each end the wider of studentised bootstrap and t.

    Differences of two models have long tails on both sides, of which resamples hold too little: the
    bootstrap alone covers 92 % of them. Of skewed numbers Student's t alone covers too little.

    Where only a few units differ from all the others, resamples without any of them make that
    infinite, and the other bootstraps too short: then two units at the extremes are added and
    Student's t is taken (the idea of Agresti and Coull 1998 for shares). So an interval has a
    width even where nothing varies.

    Args:
        parts, wholes: Of each independent unit.
        extreme: Values that a unit could have.
        confidence: Such as 0.95.
        resamples, seed: Of the drawing.

    Returns:
        None for a single unit, or if nothing is known about other values.
    """
    units = len(parts)
    if units < 2:
        return None
    value, error = ratio_error(_sums(parts, wholes), units)
    if _enough_differ(parts, wholes):
        usual = student(confidence, units)
        if units > MANY:
            return float(value) - usual * float(error), float(value) + usual * float(error)
        low, high = _studentised(parts, wholes, confidence, resamples, seed)
        low, high = min(low, -usual), max(high, usual)
        if math.isfinite(low) and math.isfinite(high):
            return float(value) - high * float(error), float(value) - low * float(error)
    if extreme[0] == extreme[1]:
        return None
    whole = float(wholes.mean())
    more_parts = np.append(parts, [extreme[0] * whole, extreme[1] * whole])
    more_wholes = np.append(wholes, [whole, whole])
    centre, error = ratio_error(_sums(more_parts, more_wholes), units + 2)
    half = student(confidence, units) * float(error)
    return min(float(value), float(centre) - half), max(float(value), float(centre) + half)


def ratio_error(sums: Sequence[Numbers], units: int) -> tuple[Numbers, Numbers]:
    """A sum over a sum and its standard error (linearised: Cochran 1977, chapter 6), from sums.

    Args:
        sums: Over the units, of a, b, a², ab and b²; each one number, or one a resample.
        units: Their number.
    """
    parts, wholes, squares, products, square_wholes = sums
    value = parts / wholes
    spread = squares - 2 * value * products + value**2 * square_wholes
    spread = np.where(spread > 1e-14 * squares, spread, 0.0)  # below only rounding is left
    return value, np.sqrt(spread * (units / (units - 1))) / wholes


def unit_error(parts: Numbers, wholes: Numbers) -> float:
    """The standard error of a sum over a sum, from two units or more."""
    return float(ratio_error(_sums(parts, wholes), len(parts))[1])


def _squares(parts: Numbers, wholes: Numbers) -> list[Numbers]:
    return [parts, wholes, parts**2, parts * wholes, wholes**2]


def _sums(parts: Numbers, wholes: Numbers) -> list[Numbers]:
    return [np.asarray(column.sum()) for column in _squares(parts, wholes)]


def _studentised(
    parts: Numbers, wholes: Numbers, confidence: float, resamples: int, seed: int
) -> Interval:
    """Quantiles of (resampled value - value) / resampled standard error."""
    value = parts.sum() / wholes.sum()
    columns = _squares(parts - value * wholes, wholes)
    more, errors = ratio_error(bootstrap_sums(columns, resamples, seed), len(parts))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(more / errors, nan=0.0, posinf=math.inf, neginf=-math.inf)
    outside = (1 - confidence) / 2
    low, high = np.quantile(ratios, [outside, 1 - outside], method="nearest")
    return float(low), float(high)
