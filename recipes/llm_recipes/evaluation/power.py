"""Which differences could have been found: from the number of items and how much they vary.

    from llm_recipes.evaluation.power import detectable

Not from the observed difference: "observed power" says p once more in other words and nothing about
what the items can show (Hoenig and Heisey 2001, The American Statistician 55). What is taken from
the data is only how much the differences of single items vary.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from llm_recipes.evaluation.paired import Spread
from llm_recipes.evaluation.resampling import Whole

POWER = 0.8
STEPS = 30  # halvings
POINTS = 400  # numbers of discordant items that are looked at


def detectable(spread: Spread, level: float, power: float = POWER) -> float | None:
    """The smallest true difference that the test finds with this probability.

    Args:
        spread: How much the differences vary.
        level: Of the test, after correction for several: 0.05 / 3 for three.
        power: The probability.

    Returns:
        In the metric's unit; None if not even the largest difference would be found: too few items,
        or if all numbers are the same, which tells nothing of others.
    """
    if spread.variance is not None:
        return detectable_share(spread.variance, round(spread.units), level, power)
    rare = detectable_share(0.0, round(spread.units), level, power)
    if rare is None:
        return None
    return max(rare * spread.typical, _from_error(spread, level, power)) or None


def detectable_from_errors(errors: tuple[float, float], level: float) -> float:
    """The same for the z-test of two values of which only the standard errors are known."""
    law = NormalDist()
    return (law.inv_cdf(1 - level / 2) + law.inv_cdf(POWER)) * math.hypot(*errors)


def _from_error(spread: Spread, level: float, power: float) -> float:
    from scipy.special import stdtrit

    freedom = max(1.0, spread.units - 1)
    quantiles = stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, power)
    return float(quantiles) * spread.error


def detectable_share(
    variance: float, items: int, level: float, power: float = POWER
) -> float | None:
    """The smallest difference of two shares that McNemar's exact test finds.

    The number of items on which the models differ is binomial, and so is that of those which the
    better one has right (Connor 1987, Biometrics 43, without its approximation). With a difference
    d the models differ on a share of variance + d² of the items, and on d at least.

    Args:
        variance: Of an item's difference, which is -1, 0 or 1; 0 if the models never differ.
        items: Their number, or an effective one.
        level: Of the test.
        power: With this probability.
    """
    if items < 1 or _power(1.0, 1.0, items, level) < power:
        return None
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        discordance = min(1.0, max(variance + middle**2, middle))
        if _power(middle, discordance, items, level) >= power:
            high = middle
        else:
            low = middle
    return high


def _power(difference: float, discordance: float, items: int, level: float) -> float:
    """Probability that McNemar's exact test finds this difference with this discordance."""
    from scipy.special import bdtr, bdtrc, gammaln

    expected = items * discordance
    reach = 8 * math.sqrt(expected * (1 - discordance)) + 8
    first, last = max(0, math.floor(expected - reach)), min(items, math.ceil(expected + reach))
    differing = np.unique(np.linspace(first, last, POINTS).round().astype(np.int64))
    if discordance < 1:
        ways = gammaln(items + 1) - gammaln(differing + 1) - gammaln(items - differing + 1)
        odds = differing * math.log(discordance) + (items - differing) * math.log1p(-discordance)
        weights = np.exp(ways + odds)
    else:
        weights = (differing == items).astype(float)
    fewest = _critical(differing, level)
    can = fewest >= 0
    up = (discordance + difference) / (2 * discordance)
    all_of, most = differing[can], fewest[can]
    found = np.zeros(len(differing))
    found[can] = bdtrc(all_of - most - 1, all_of, up) + bdtr(most, all_of, up)
    return float((weights * found).sum() / weights.sum())


def _critical(differing: Whole, level: float) -> Whole:
    """So many of the discordant items may favour the worse model; -1: no number is low enough."""
    from scipy.special import bdtr

    quantile = NormalDist().inv_cdf(1 - level / 2)
    most = np.floor(differing / 2 - quantile * np.sqrt(differing) / 2 + 3).astype(np.int64)
    most = np.minimum(most, differing)
    while True:
        too_many = (most >= 0) & (2 * bdtr(np.maximum(most, 0), differing, 0.5) > level)
        if not too_many.any():
            return np.maximum(most, -1)
        most = most - too_many
