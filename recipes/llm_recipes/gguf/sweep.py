"""Measure numbers of threads against llama.cpp's default, on a machine that is never quite still.

    from llm_recipes.gguf.sweep import sweep
    found = sweep(plan_for(cores, "prompt"), lambda setting, tokens: rate, tokens=256, repeats=3)

First a look with few tokens at the default and the granted cores, then at fewer threads, and at
more, each way until it gets worse. What came close is measured in rounds, each of them once a
round and every other round backwards, so that a machine that slows down decides nothing. Another
setting than the default must win every round, and on the median by two percent, or by half of what
the default's own rounds differ. Where none does, it is the granted cores if they were no slower on
the median, as without any measurement, else the default.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from llm_recipes.gguf.threads import Cores, Numa, counted

SHARES = (3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8)  # of the granted cores
LOOK = 4  # a first look has this part of the tokens
WORSE = 0.9  # of the best so far: looking further that way is of no use
CLOSE = 0.8  # of the best: measured in rounds
HOPELESS = 0.5  # of the best: then not even the default is measured in rounds
FINALISTS = 4
GAIN = 1.02

Work = Literal["generate", "prompt"]
Measure = Callable[["Setting", int], float]


@dataclass(frozen=True)
class Setting:
    """Threads; pinned: to the first hyper-threads of so many cores; numa: llama.cpp's strategy."""

    threads: int
    pinned: bool = False
    numa: Numa = "none"

    def __str__(self) -> str:
        words = counted(self.threads) + (", pinned" if self.pinned else "")
        return words if self.numa == "none" else f"{words}, NUMA {self.numa}"


@dataclass(frozen=True)
class Plan:
    """Settings to measure. first: always; fewer, more: in this order, until it gets worse."""

    default: Setting
    granted: Setting
    first: tuple[Setting, ...]
    fewer: tuple[Setting, ...]
    more: tuple[Setting, ...]


@dataclass
class Tried:
    """What was measured of a setting, tokens a second: at first sight, then in each round."""

    setting: Setting
    look: float
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The median of the rounds, or the first look where there were none."""
        return statistics.median(self.rates) if self.rates else self.look


@dataclass(frozen=True)
class Found:
    """All that was tried; best: what to use; why: in words."""

    tried: tuple[Tried, ...]
    best: Setting
    why: str


def against(one: Tried, reference: Tried) -> float:
    """How many times as fast: of the rounds, each with its own reference, else at first sight."""
    if one.rates and reference.rates:
        return statistics.median(_ratios(one, reference))
    return one.look / reference.look


def plan_for(cores: Cores, work: Work, numa: Numa | None = None) -> Plan:
    """What is worth measuring on these cores.

    Args:
        work: `generate`, a token a step, or `prompt`, many.
        numa: The strategy that is already decided; None: the one that fits, and none beside it.
    """
    strategy = cores.numa if numa is None else numa
    count = cores.generate if work == "generate" else cores.prompt
    granted = Setting(count, _pins(cores, count), strategy)
    default = Setting(cores.default)
    fast = sum(cpu.fast and cpu.thread == 0 for cpu in cores.cpus)
    # A quota may be no whole number, fast cores may have slow ones beside them.
    fewer = {max(1, round(count * share)) for share in SHARES} | {fast, cores.granted.count}
    # A hyper-thread for each CPU.
    more = min(math.ceil(cores.granted.limit), len(cores.cpus))
    known = {default.threads, count}
    first = [default, granted]
    if numa is None and strategy != "none":
        first.append(replace(granted, numa="none"))
    return Plan(
        default,
        granted,
        tuple(dict.fromkeys(first)),
        _settings(sorted((n for n in fewer - known if n < count), reverse=True), cores, strategy),
        _settings((n for n in {more} - known if n > count), cores, strategy),
    )


def sweep(plan: Plan, measure: Measure, tokens: int, repeats: int) -> Found:
    """Find the best setting; the default or the granted cores where none is better beyond doubt.

    Args:
        measure: Gives the tokens a second of a setting over a number of tokens.
        tokens: Of a measurement in a round.
        repeats: Rounds.
    """
    look = max(4, tokens // LOOK)
    tried = [Tried(setting, measure(setting, look)) for setting in plan.first]
    for side in (plan.fewer, plan.more):
        for setting in side:
            best = max(one.look for one in tried)
            tried.append(Tried(setting, measure(setting, look)))
            if tried[-1].look < WORSE * best:
                break
    finalists = _finalists(tried, plan)
    for number in range(repeats):
        for one in finalists if number % 2 == 0 else reversed(finalists):
            one.rates.append(measure(one.setting, tokens))
    best_setting, why = decide(finalists, plan)
    return Found(tuple(tried), best_setting, why)


def decide(finalists: list[Tried], plan: Plan) -> tuple[Setting, str]:
    """The fastest that is better than the default beyond doubt, else granted cores or default."""
    by_setting = {one.setting: one for one in finalists}
    reference = by_setting.get(plan.default) or by_setting.get(plan.granted) or finalists[0]
    winners = [one for one in finalists if one is not reference and _beats(one, reference)]
    best = max(winners, key=lambda one: one.rate, default=reference)
    if plan.default not in by_setting:
        return best.setting, "llama.cpp's default is less than half as fast"
    if best is reference:
        granted = by_setting.get(plan.granted, reference)
        ratio = against(granted, reference)
        if granted is not reference and ratio >= 1:
            return plan.granted, f"the granted cores: {ratio:.2f} times the default, within noise"
        others = "nothing else came close" if len(finalists) == 1 else "nothing is surely better"
        return best.setting, f"llama.cpp's default: {others}"
    return best.setting, f"{against(best, reference):.2f} times llama.cpp's default"


def together(generate: Found, prompt: Found, default: Setting) -> tuple[Found, Found]:
    """The same for a process that does both: it has one mask and one NUMA strategy.

    Where the best differ in that: of pairs that agree, each as good as the default beyond doubt,
    the one that gains most; the default itself is one of them.
    """
    if _kind(generate.best) == _kind(prompt.best):
        return generate, prompt
    one, other = max(
        (
            pair
            for pair in itertools.product(_sound(generate, default), _sound(prompt, default))
            if _kind(pair[0][0]) == _kind(pair[1][0])
        ),
        key=lambda pair: pair[0][1] * pair[1][1],
    )
    why = "of those that one process can have for generation and prompts"
    return replace(generate, best=one[0], why=why), replace(prompt, best=other[0], why=why)


def _kind(setting: Setting) -> tuple[bool, Numa]:
    return setting.pinned, setting.numa


def _sound(found: Found, default: Setting) -> list[tuple[Setting, float]]:
    """The default, and what is better beyond doubt; each with its gain."""
    reference = next(one for one in found.tried if one.setting == default)
    others = [one for one in found.tried if one is not reference]
    if reference.rates:
        better = [one for one in others if one.rates and _beats(one, reference)]
    else:  # it is hopeless: the first look is enough
        better = [one for one in others if against(one, reference) > 1]
    return [(one.setting, against(one, reference)) for one in [reference, *better]]


def _beats(one: Tried, reference: Tried) -> bool:
    noise = (max(reference.rates) - min(reference.rates)) / reference.rate / 2
    return against(one, reference) >= max(GAIN, 1 + noise) and min(_ratios(one, reference)) > 1


def _ratios(one: Tried, reference: Tried) -> list[float]:
    return [rate / base for rate, base in zip(one.rates, reference.rates, strict=True)]


def _finalists(tried: list[Tried], plan: Plan) -> list[Tried]:
    best = max(one.look for one in tried)
    close = [one for one in tried if one.look >= CLOSE * best]
    close = sorted(close, key=lambda one: -one.look)[:FINALISTS]
    hopeful = [one for one in tried if one.setting == plan.default and one.look >= HOPELESS * best]
    return [one for one in tried if one in close or one in hopeful]


def _settings(counts: Iterable[int], cores: Cores, numa: Numa) -> tuple[Setting, ...]:
    return tuple(Setting(count, _pins(cores, count), numa) for count in counts)


def _pins(cores: Cores, threads: int) -> bool:
    """Whether pinning so many threads leaves CPUs away that were granted."""
    return len(cores.places(threads)) < len(cores.cpus)
