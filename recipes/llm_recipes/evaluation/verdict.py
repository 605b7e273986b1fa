"""Comparisons in words: better, worse, or no detectable difference, and what could be detected.

    print(sentence(comparison, level=0.05))

Never "equal": that no difference was found is no proof that there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Word = Literal["better", "worse", "no detectable difference", "not tested"]
POINTS = 100


@dataclass(frozen=True)
class Comparison:
    """Two runs in a metric of a task. All numbers in the metric's own unit: shares are fractions.

    task, metric: What was compared. is_main: whether it has a test and a verdict. kind: see run.py.
    is_share: shown in percent and points. reference, other: labels of the runs; values: theirs.
    difference: other - reference, with its interval low to high. p: as tested; p_corrected: for all
    tests of the call. how: the test. items, units: that count, and independent ones of them.
    detectable: the smallest difference that would have been found, None if there is none.
    showable: the smallest margin that could have been shown. gained, lost: of 0/1 answers, items
    that only the other, only the reference has right. odds, odds_low, odds_high: gained / lost.
    effect: d_z. note: what restricts the conclusion.
    """

    task: str
    metric: str
    is_main: bool
    kind: str
    higher_is_better: bool
    is_share: bool
    reference: str
    other: str
    values: tuple[float, float]
    difference: float
    low: float | None
    high: float | None
    items: int
    units: int
    p: float | None = None
    p_corrected: float | None = None
    how: str = ""
    detectable: float | None = None
    showable: float | None = None
    gained: int | None = None
    lost: int | None = None
    odds: float | None = None
    odds_low: float | None = None
    odds_high: float | None = None
    effect: float | None = None
    note: str = ""
    verdict: Word | None = None

    @property
    def gain_low(self) -> float | None:
        """The interval's lower end, turned so that worse is below 0."""
        if self.higher_is_better or self.high is None:
            return self.low
        return -self.high

    @property
    def gain_high(self) -> float | None:
        """Its upper end, turned in the same way."""
        if self.higher_is_better or self.low is None:
            return self.high
        return -self.low


@dataclass(frozen=True)
class Margin:
    """Whether a run is not worse than its reference by a margin, or more. words: why (not)."""

    passed: bool
    words: str


def word(comparison: Comparison, level: float) -> Word:
    """The verdict: what the corrected test allows to say."""
    if comparison.p_corrected is None:
        return "not tested"
    if comparison.p_corrected > level or comparison.difference == 0:
        return "no detectable difference"
    gained = comparison.difference > 0
    return "better" if gained == comparison.higher_is_better else "worse"


def sentence(comparison: Comparison, level: float, tests: int | None) -> str:
    """A comparison in words.

    Args:
        comparison: With its verdict.
        level: Of the tests and intervals.
        tests: So many were corrected for; None: a shorter one, for where a table has the rest.
    """
    c, is_short = comparison, tests is None
    heads = {
        "better": f"{c.other} is better than {c.reference} in {c.task}",
        "worse": f"{c.other} is worse than {c.reference} in {c.task}",
        "no detectable difference": (
            f"no detectable difference between {c.other} and {c.reference} in {c.task}"
        ),
        "not tested": f"{c.other} and {c.reference} could not be tested in {c.task}",
    }
    told = f"{c.metric} {value(c, c.values[0])} -> {value(c, c.values[1])}, {change(c)}"
    if c.low is not None:
        told += f" ({POINTS * (1 - level):g} % interval {interval(c)})"
    parts = [told]
    if c.p_corrected is not None and tests is not None:
        correction = f", corrected for {tests} tests" if tests > 1 else ""
        parts.append(f"p {chance(c.p_corrected)} ({c.how}{correction})")
    parts += [] if is_short else [counted(c)]
    told = f"{heads[c.verdict or 'not tested']}: {', '.join(parts)}"
    return told + _afterthought(c, level, is_short)


def _afterthought(c: Comparison, level: float, is_short: bool) -> str:
    told = []
    if c.verdict == "no detectable difference":
        if c.detectable is None and c.p is not None:
            same = c.units > 1 and c.low is None
            told.append(
                "all scores are the same, which tells nothing of what could be detected"
                if same
                else "so few independent items can't show any difference"
            )
        elif c.detectable is not None:
            told.append(
                f"a true difference below {amount(c, c.detectable)} would often go unnoticed here"
            )
        zero_outside = c.low is not None and c.high is not None and (c.low > 0 or c.high < 0)
        if zero_outside and c.p is not None and c.p_corrected is not None:
            alone = "after correction" if c.p <= level else "by its test"
            told.append(
                f"the interval, of this comparison alone, leaves out 0, but {alone} it is"
                " not enough for a claim"
            )
    elif c.verdict != "not tested":
        if c.detectable is not None and not is_short:
            least = amount(c, c.detectable)
            told.append(f"differences of {least} or more are found in 4 of 5 cases")
        if c.low is not None and c.high is not None and c.low <= 0 <= c.high:
            told.append("its interval reaches 0, so it is a close call")
    if c.note:
        told.append(c.note)
    return "".join(f"; {part}" for part in told)


def judge_margin(comparison: Comparison, margin: float) -> Margin:
    """Whether the interval's lower end is above -margin (non-inferiority).

    Args:
        comparison: With its verdict.
        margin: In the metric's own unit, 0 or more.
    """
    c = comparison
    head = f"{c.other} in {c.task}"
    limit = amount(c, margin)
    low, high = c.gain_low, c.gain_high
    if low is None or high is None:
        return Margin(False, f"{head}: not shown to be non-inferior: its interval is unknown")
    end = signed(c, low)
    if low > -margin:
        also = ", although worse" if c.verdict == "worse" else ""
        told = f"{head}: not worse than {c.reference} by {limit} or more{also}"
        return Margin(True, f"{told} (lower end {end})")
    if high < -margin and c.verdict == "worse":
        told = f"{head}: worse than {c.reference} by more than {limit}"
        return Margin(False, f"{told} (interval {end} to {signed(c, high)})")
    told = f"{head}: not shown to be non-inferior to {c.reference}: lower end {end}"
    told += f" is not above {signed(c, -margin)}"
    if c.verdict == "worse":
        told = f"{head}: worse than {c.reference}, and maybe by {limit} or more: lower end {end}"
    if c.showable is not None:
        told += f"; with {counted(c)} a margin of {amount(c, c.showable)} could have been shown"
    return Margin(False, told)


def value(c: Comparison, number: float) -> str:
    """A value with its unit."""
    if c.is_share:
        return f"{number:.2%}".replace("%", " %")
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e9 else f"{number:.4g}"


def change(c: Comparison) -> str:
    """The difference with its sign and unit."""
    return signed(c, c.difference) + (" points" if c.is_share else "")


def interval(c: Comparison) -> str:
    """The interval of the difference."""
    if c.low is None or c.high is None:
        return "unknown"
    return f"{signed(c, c.low)} to {signed(c, c.high)}"


def signed(c: Comparison, number: float) -> str:
    """A difference with its sign and no unit."""
    if c.is_share:
        return f"{number * POINTS:+.2f}"
    return f"{number:+{_format(c)}}"


def amount(c: Comparison, number: float) -> str:
    """A size of a difference with its unit."""
    if c.is_share:
        return f"{number * POINTS:.2f} points"
    return f"{number:{_format(c)}}"


def _format(c: Comparison) -> str:
    """With as many decimals as the values deserve."""
    size = max(abs(v) for v in (*c.values, 1e-6))
    if size >= 1e9:
        return ".4g"
    digits = math.floor(math.log10(size))
    return f",.{max(0, 4 - digits) if size >= 1 else min(9, 3 - digits)}f"


def chance(p: float) -> str:
    """A p value with its sign: < 0.0001, = 0.0312."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"


def counted(c: Comparison) -> str:
    """How many items, and how many of them are independent."""
    items = f"{c.items:,} item{'' if c.items == 1 else 's'}"
    clusters = f"{c.units:,} cluster{'' if c.units == 1 else 's'}"
    return f"{items} in {clusters}" if c.units < c.items else items


def as_record(c: Comparison) -> dict[str, Any]:
    """The comparison for run.json and comparison.json."""
    from dataclasses import asdict

    told = {name: _plain(entry) for name, entry in asdict(c).items()}
    return {**told, "values": list(c.values)}


def _plain(entry: Any) -> Any:
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry
