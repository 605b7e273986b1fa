"""Two models on the same items: how far apart they are, how sure that is, and is it chance?

    from llm_recipes.evaluation.paired import Pair, difference, difference_test

Items differ far more from each other than models do; item by item that falls away. Items of one
cluster (questions about one table) are not independent: sums over clusters take their place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from llm_recipes.evaluation.intervals import (
    Interval,
    effective_size,
    ratio_interval,
    share_interval,
    student,
    unit_error,
)
from llm_recipes.evaluation.resampling import Numbers, Tested, sign_flip_test
from llm_recipes.evaluation.run import Kind
from llm_recipes.evaluation.units import Scale, Scores

RESAMPLES = 4000
STEPS = 60  # halvings: to the last digit


@dataclass(frozen=True)
class Pair:
    """The scores of two models on the same items, in the same order."""

    kind: Kind
    scale: Scale
    first: Scores
    other: Scores

    @property
    def are_clustered(self) -> bool:
        """Whether some items share something."""
        return self.first.are_clustered

    def discordant(self) -> tuple[int, int]:
        """Of 0/1 answers: only the other model is right, only the first is."""
        more = self.other.parts - self.first.parts
        return int((more > 0).sum()), int((more < 0).sum())


@dataclass(frozen=True)
class Spread:
    """What is needed to say which differences could have been found.

    error: Standard error of the difference. units: that are independent. variance: of 0/1 answers,
    that of an item's difference. typical: size of a unit's difference that is not
    0, or the largest that an item could have if all are 0.
    """

    error: float
    units: float
    variance: float | None
    typical: float


def difference(pair: Pair) -> float:
    """The other model's value minus the first one's."""
    if pair.scale == "exp":
        return math.exp(pair.other.ratio) - math.exp(pair.first.ratio)
    if np.array_equal(pair.first.wholes, pair.other.wholes):  # exactly 0 where nothing differs
        return float((pair.other.parts - pair.first.parts).sum() / pair.first.wholes.sum())
    return pair.other.ratio - pair.first.ratio


def difference_test(pair: Pair) -> Tested:
    """Whether the difference is more than chance.

    Single 0/1 answers: McNemar's test (1947), exact: of the items on which the models differ, would
    a fair coin favour one of them as much? Clusters of answers, means and ratios: the sign-flip
    test of the units' sums. Of a sum over a sum, each unit counts by how far it is from the common
    ratio, which swapping the two models' numbers leaves as it is.
    """
    if pair.kind == "right" and not pair.are_clustered:
        from scipy.special import bdtr

        gained, lost = pair.discordant()
        p = float(bdtr(min(gained, lost), gained + lost, 0.5))
        return Tested(min(1.0, 2 * p), "McNemar's test, exact")
    first, other = pair.first, pair.other
    common = (first.parts.sum() + other.parts.sum()) / (first.wholes.sum() + other.wholes.sum())
    more = other.parts - first.parts
    if pair.kind == "ratio":
        more = more - common * (other.wholes - first.wholes)
    tested = sign_flip_test(first.sums(more))
    return Tested(tested.p, f"{tested.how}, by cluster" if pair.are_clustered else tested.how)


def difference_interval(pair: Pair, confidence: float) -> Interval | None:
    """The interval of the difference; it has a width even if no answer differs.

    0/1 answers: Tango's score interval (1998), with the effective number of items where they are
    in clusters. Means and ratios: the studentised paired bootstrap by cluster, or t.
    """
    if pair.kind == "right":
        gained, lost = pair.discordant()
        items, quantile = float(len(pair.first.parts)), NormalDist().inv_cdf((1 + confidence) / 2)
        if pair.are_clustered:
            size = _effective_items(pair)
            quantile = student(confidence, pair.first.units)
            return tango(gained * size / items, lost * size / items, size, quantile)
        return tango(gained, lost, items, quantile)
    parts, wholes = _influences(pair)
    reach = _reach(pair)
    return ratio_interval(parts, wholes, (-reach, reach), confidence, RESAMPLES)


def spread_of(pair: Pair) -> Spread:
    """How much the differences vary from unit to unit."""
    units = pair.first.units
    parts, wholes = _influences(pair)
    error = unit_error(parts, wholes) if units > 1 else 0.0
    if pair.kind != "right":
        sizes = np.abs(parts / wholes.mean())
        some = sizes[sizes > 0]
        typical = float(np.sqrt((some**2).mean())) if len(some) else _reach(pair)
        return Spread(error, units, None, typical)
    items = len(pair.first.parts)
    size = _effective_items(pair) if pair.are_clustered else float(items)
    variance = sum(pair.discordant()) / items - difference(pair) ** 2
    return Spread(error, size, max(0.0, variance), 1.0)


def tango(gained: float, lost: float, items: float, quantile: float) -> Interval:
    """The score interval of a difference of paired shares (Tango 1998, Statistics in Medicine 17).

    Args:
        gained, lost: Items that only the one, only the other has right; may be effective numbers.
        items: All.
        quantile: Of the normal law, or of Student's t.

    Returns:
        Of (gained - lost) / items.
    """
    observed = (gained - lost) / items

    def bound(side: int) -> float:
        inside, outside = observed, float(side)
        for _ in range(STEPS):
            middle = (inside + outside) / 2
            if abs(_score(gained, lost, items, middle)) <= quantile:
                inside = middle
            else:
                outside = middle
        return inside

    return bound(-1), bound(1)


def _score(gained: float, lost: float, items: float, delta: float) -> float:
    """The score statistic of the hypothesis that the difference is `delta`."""
    b = -gained - lost + (2 * items - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    nuisance = (math.sqrt(max(0.0, b * b - 8 * items * c)) - b) / (4 * items)
    variance = items * (2 * nuisance + delta * (1 - delta))
    gap = gained - lost - items * delta
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


@dataclass(frozen=True)
class OddsRatio:
    """Items that only the other model has right, over those that only the first has."""

    ratio: float | None
    low: float
    high: float | None


def odds_ratio(pair: Pair, confidence: float) -> OddsRatio | None:
    """The odds ratio of the discordant items with its interval; None (infinite) where lost is 0.

    From the interval of the share of gained ones among them: exact (Clopper and Pearson 1934), as
    McNemar's test is; Wilson's for an effective number where items are in clusters. None if no
    item differs.
    """
    gained, lost = pair.discordant()
    if not gained + lost:
        return None
    if pair.are_clustered:
        more = pair.other.parts - pair.first.parts
        hits, counts = pair.first.sums(np.maximum(more, 0.0)), pair.first.sums(np.abs(more))
        low, high = share_interval(hits[counts > 0], counts[counts > 0], True, confidence)
    else:
        low, high = _exact_share(gained, gained + lost, confidence)
    return OddsRatio(
        gained / lost if lost else None,
        low / (1 - low) if low < 1 else math.inf,
        high / (1 - high) if high < 1 and lost else None,
    )


def effect_size(pair: Pair) -> float | None:
    """Cohen's d_z: the mean difference over the standard deviation of the units' differences."""
    spread, units = spread_of(pair), pair.first.units
    if spread.error <= 0 or pair.kind == "right":
        return None
    return difference(pair) / (spread.error * math.sqrt(units))


def aggregate_test(first: float, other: float, errors: tuple[float, float]) -> Tested:
    """The z-test of two values of which only standard errors are known, as if unpaired.

    On the same items the true error of the difference is smaller, mostly: a difference that this
    test finds is one, and one that it does not find may still be.
    """
    z = abs(other - first) / math.hypot(*errors)
    return Tested(math.erfc(z / math.sqrt(2)), "z-test from the standard errors, unpaired")


def _exact_share(hits: int, count: int, confidence: float) -> Interval:
    from scipy.special import betaincinv

    outside = (1 - confidence) / 2
    low = float(betaincinv(hits, count - hits + 1, outside)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - outside)) if hits < count else 1.0
    return low, high


def _effective_items(pair: Pair) -> float:
    first = pair.first
    more = pair.other.parts - first.parts
    counts = first.sums(np.ones(len(more)))
    mean = float(more.mean())
    variance = float(np.abs(more).mean()) - mean**2
    return effective_size(first.sums(more) - mean * counts, counts, variance)


def _influences(pair: Pair) -> tuple[Numbers, Numbers]:
    """Sums over units whose ratio is the difference.

    Exactly where both models' numbers are over the same wholes; linearised (delta method) otherwise
    and for exponentials.
    """
    first, other = pair.first, pair.other
    same = np.array_equal(first.wholes, other.wholes)
    if same and pair.scale == "as is":
        return first.sums(other.parts - first.parts), first.sums(first.wholes)
    total = 0.0
    for sign, scores in ((1, other), (-1, first)):
        slope = math.exp(scores.ratio) if pair.scale == "exp" else 1.0
        residuals = scores.parts - scores.ratio * scores.wholes
        total = total + sign * slope * residuals / scores.wholes.sum()
    units = first.units
    return first.sums(np.asarray(total)) * units + difference(pair), np.ones(units)


def _reach(pair: Pair) -> float:
    """The largest difference that an item of such scores could have."""
    values = np.concatenate([s.parts / s.wholes for s in (pair.first, pair.other)])
    reach = float(values.max() - values.min())
    return reach * math.exp(pair.first.ratio) if pair.scale == "exp" else reach
