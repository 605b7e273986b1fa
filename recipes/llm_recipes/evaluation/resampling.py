"""Resampling: what a number would have been with other items, and what chance alone makes of it.

    from llm_recipes.evaluation.resampling import bootstrap_sums, sign_flip_test

Whatever is drawn or flipped is independent of the rest: an item that stands alone, or the sums over
a cluster of items that share something. The same numbers give the same result: seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

RESAMPLES, SEED = 10000, 0
BLOCK = 2**22  # numbers that are drawn at once: memory stays below 0.1 GB
FEW = 12  # differences: all 2^12 patterns of signs are tried
SETTLED = 1e-4  # sum d^4 / (sum d^2)^2 below which 10 000 draws know less than the normal law
RARE, MOST = 5, 2 * 10**8  # draws as far as the observed one; numbers that are flipped at most
TIE = 1e-9  # relative: sums that differ by less are the same, added in another order
NEGLIGIBLE = 1e-18  # probability
LARGE, WORK = 10000, 10**9  # whole differences and multiplications above which signs are drawn

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Whole: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


@dataclass(frozen=True)
class Tested:
    """A test's result. p: two-sided. how: what was done, in words."""

    p: float
    how: str


def bootstrap_sums(
    columns: Sequence[Numbers], resamples: int = RESAMPLES, seed: int = SEED
) -> list[Numbers]:
    """Sums of each column over rows that are drawn with repetition, the same rows for all columns.

    Drawing whole clusters keeps what their items have in common (Efron and Tibshirani 1993,
    chapters 6 and 8).

    Args:
        columns: Arrays of one length: a row is an item that stands alone, or a cluster's sums.
        resamples: Drawings.
        seed: Of the drawings.

    Returns:
        One array a column, with a sum a drawing.
    """
    count = len(columns[0])
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // count)
    sums: list[list[Numbers]] = [[] for _ in columns]
    for start in range(0, resamples, block):
        drawn = rng.integers(0, count, (min(block, resamples - start), count))
        for column, found in zip(columns, sums, strict=True):
            found.append(column[drawn].sum(axis=1))
    return [np.concatenate(found) for found in sums]


def sign_flip_test(differences: Numbers, seed: int = SEED) -> Tested:
    """Whether differences of pairs are more than chance: which of the two is which is flipped.

    If two models are as good as each other, each difference could as well have had the other sign;
    p is the share of all patterns of signs whose sum is as far from 0 as the observed one (Fisher
    1935; of clusters: Good 2005, Permutation, Parametric, and Bootstrap Tests of Hypotheses). All
    patterns count where that can be: whole numbers, or few. Otherwise patterns are drawn, and
    p = (b+1)/(m+1) (Phipson and Smyth 2010), or, of many differences none of which dominates, the
    normal law says what drawing would. Of single 0/1 answers this is McNemar's exact test.

    Args:
        differences: One an independent unit: an item's, or the sum of a cluster's.
        seed: Of the drawing.
    """
    found = differences[differences != 0]
    if not len(found):
        return Tested(1.0, "sign-flip test, no difference")
    if np.all(found == np.rint(found)) and np.abs(found).max() <= LARGE:
        p = _exact_whole(found.astype(np.int64))
        if p is not None:
            return Tested(p, "sign-flip test, exact")
    if len(found) <= FEW:
        return Tested(_share_as_far(_all_signs(len(found)) @ found, found), "sign-flip test, exact")
    squares = found**2
    spread = float(squares.sum())
    if float((squares**2).sum()) < SETTLED * spread**2:
        z = abs(float(found.sum())) / math.sqrt(spread)
        return Tested(math.erfc(z / math.sqrt(2)), "sign-flip test, normal law")
    return _drawn(found, seed)


def _drawn(found: Numbers, seed: int) -> Tested:
    """p from drawn patterns; of more of them where only a few are as far as the observed one.

    Otherwise no p could be below 1/10001, which correction for many tests needs.
    """
    rng = np.random.default_rng(seed)
    draws, as_far = RESAMPLES, _as_far(found, RESAMPLES, rng)
    more = min(100 * RESAMPLES, MOST // len(found)) - draws
    if as_far <= RARE and more > 0:
        as_far += _as_far(found, more, rng)
        draws += more
    return Tested((as_far + 1) / (draws + 1), f"sign-flip test, {draws:,} draws")


def _as_far(found: Numbers, draws: int, rng: np.random.Generator) -> int:
    """How many of so many drawn patterns have a sum as far from 0 as the observed one."""
    total = float(found.sum())
    least = abs(total) * (1 - TIE)
    block = max(1, BLOCK // len(found))
    as_far = 0
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        bits = np.frombuffer(rng.bytes(rows * (-(-len(found) // 8))), dtype=np.uint8)
        flipped = np.unpackbits(bits.reshape(rows, -1), axis=1, count=len(found))
        sums = total - 2 * (flipped.astype(np.float64) @ found)
        as_far += int((np.abs(sums) >= least).sum())
    return as_far


def _all_signs(count: int) -> Numbers:
    patterns = np.arange(2**count)[:, None] >> np.arange(count)
    return 1.0 - 2.0 * (patterns & 1)


def _share_as_far(sums: Numbers, found: Numbers) -> float:
    return float(np.mean(np.abs(sums) >= abs(float(found.sum())) * (1 - TIE)))


def _exact_whole(found: Whole) -> float | None:
    """p of whole differences: those of one size make a binomial law; their laws are folded.

    None if that would take longer than drawing.
    """
    laws = [
        _plus_law(int(size), int(count))
        for size, count in zip(*np.unique(np.abs(found), return_counts=True), strict=True)
    ]
    lengths = np.array([len(law) for law, _ in laws])
    if float((lengths * np.cumsum(lengths)).sum()) > WORK:
        return None
    chances, first = np.ones(1), 0
    for law, start in laws:
        chances, first = np.convolve(chances, law), first + start
    every, total = int(np.abs(found).sum()), int(found.sum())
    sums = 2 * (np.arange(len(chances)) + first) - every
    return min(1.0, float(chances[np.abs(sums) >= abs(total)].sum()))


def _plus_law(size: int, count: int) -> tuple[Numbers, int]:
    """How likely each total of those with a plus is, of `count` of this size, and the first total.

    What is too unlikely to matter is cut off on both sides.
    """
    from scipy.special import gammaln  # scipy.stats needs 2 s to be imported

    plus = np.arange(count + 1)
    ways = gammaln(count + 1) - gammaln(plus + 1) - gammaln(count - plus + 1)
    law = np.exp(ways - count * math.log(2))
    kept = np.flatnonzero(law > NEGLIGIBLE)
    first, last = int(kept[0]), int(kept[-1])
    spaced = np.zeros((last - first) * size + 1)
    spaced[::size] = law[first : last + 1]
    return spaced, first * size
