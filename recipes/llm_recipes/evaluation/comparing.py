"""Compare runs pair by pair and task by task.

found = compare_runs(Table(runs), pairs, tasks, None, 0.05)
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist

from llm_recipes.errors import LLMError, faults_of
from llm_recipes.evaluation.correction import holm
from llm_recipes.evaluation.paired import (
    Pair,
    aggregate_test,
    difference,
    difference_interval,
    difference_test,
    effect_size,
    odds_ratio,
    spread_of,
)
from llm_recipes.evaluation.power import detectable, detectable_from_errors
from llm_recipes.evaluation.run import EvaluatedRun, Kind, Metric, Task
from llm_recipes.evaluation.units import Scores, is_share, item_scores, scale_of
from llm_recipes.evaluation.verdict import Comparison, word

UNPAIRED = "not item by item: there is no number an item that gives this metric"
UNTESTABLE = "there is neither a number an item nor a standard error"


@dataclass
class Table:
    """Runs by their labels, and the scores that were read from them."""

    runs: Mapping[str, EvaluatedRun]
    held: dict[tuple[str, str, str], Scores] = field(default_factory=dict)

    def scores(self, label: str, task: Task, name: str) -> Scores:
        """The numbers of a metric, in the order of the items' ids.

        Raises:
            LLMError: If one is no number.
        """
        key = (label, task.name, name)
        if key not in self.held:
            items = sorted(task.items, key=lambda item: item.id)
            kind = task.metrics[name].kind
            self.held[key] = item_scores(name, kind, items, f"{task.name} of {label}")
        return self.held[key]


def chosen_metric(task: Task, asked: str | None) -> str:
    """The metric of a task that gets the verdict: the asked one if it has it, else its main one."""
    return asked if asked is not None and asked in task.metrics else task.main


def metric_faults(
    runs: Mapping[str, EvaluatedRun],
    pairs: Sequence[tuple[str, str]],
    tasks: Sequence[str],
    asked: str | None,
) -> list[LLMError]:
    """Why metrics can't be compared: none has the name, they mean different things, or scores."""
    faults = []
    known = {
        name: None
        for run in runs.values()
        for task in run.tasks.values()
        if task.name in tasks
        for name in task.metrics
    }
    if asked is not None and asked not in known:
        near = difflib.get_close_matches(asked, list(known), 1)
        fix = f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}"
        faults.append(LLMError(f"no task has the metric {asked}", fix=fix))
    for first, other in pairs:
        for name in tasks:
            if name in runs[first].tasks and name in runs[other].tasks:
                one, two = runs[first].tasks[name], runs[other].tasks[name]
                faults += _metric_differences(one, two, (first, other), chosen_metric(one, asked))
    return faults


def _metric_differences(
    first: Task, other: Task, labels: tuple[str, str], name: str
) -> Iterator[LLMError]:
    what = f"{labels[1]} can't be compared with {labels[0]} in {first.name}"
    fix = "evaluate one of them again, or choose another --metric"
    for label, task in zip(labels, (first, other), strict=True):
        if name not in task.metrics:
            why = f"{label} has no {name}; it has {', '.join(task.metrics)}"
            yield LLMError(what, why, fix)
            return
    one, two = first.metrics[name], other.metrics[name]
    if one.higher_is_better != two.higher_is_better:
        yield LLMError(what, f"more of {name} is better in the one and worse in the other", fix)
    ours, theirs = ({i.id: name in i.scores for i in task.items} for task in (first, other))
    alone = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if alone:
        why = f"{len(alone):,} items have {name} only in one of them: {', '.join(alone[:3])}"
        yield LLMError(what, why, fix)


def score_faults(table: Table, tasks: Sequence[str], asked: str | None) -> list[LLMError]:
    """Scores that are no numbers, and values that are none."""
    faults = []
    for label, run in table.runs.items():
        for name in tasks:
            if name not in run.tasks:
                continue
            task = run.tasks[name]
            metric = chosen_metric(task, asked)
            if metric not in task.metrics:
                continue
            if not math.isfinite(task.metrics[metric].value):
                what = f"{metric} of {name} in {label} can't be compared"
                faults.append(LLMError(what, "it is no finite number", "evaluate again"))
            if task.metrics[metric].kind != "aggregate":
                faults += faults_of(partial(table.scores, label, task, metric))
    return faults


def compare_runs(
    table: Table,
    pairs: Sequence[tuple[str, str]],
    tasks: Sequence[str],
    asked: str | None,
    level: float,
) -> list[Comparison]:
    """Compare pairs of runs in all tasks that both have, and correct for all tests together.

    A task's main metric (or the one asked for) is tested. The others are shown with difference and
    interval, without a test: whoever looks at enough numbers finds a difference in one of them.

    Args:
        table: Runs that can be compared.
        pairs: Labels of reference and other.
        tasks: Names.
        asked: The metric that decides; None: each task's main one.
        level: Of the tests after correction; intervals have 1 - level.
    """
    runs = table.runs
    found: list[Comparison] = []
    for reference, other in pairs:
        for name in tasks:
            if name not in runs[reference].tasks or name not in runs[other].tasks:
                continue
            task = runs[reference].tasks[name]
            main = chosen_metric(task, asked)
            others = [m for m in task.metrics if m != main and m in runs[other].tasks[name].metrics]
            for metric in [main, *others]:
                told = _compare(table, (reference, other), name, metric, metric == main, level)
                found += [] if told is None else [told]
    tested = [place for place, c in enumerate(found) if c.p is not None]
    corrected = holm([found[place].p or 0.0 for place in tested])
    for place, p in zip(tested, corrected, strict=True):
        found[place] = replace(found[place], p_corrected=p)
    return [
        _with_power(table, replace(c, verdict=word(c, level)), level, len(tested))
        if c.is_main
        else c
        for c in found
    ]


def _compare(
    table: Table, labels: tuple[str, str], name: str, metric: str, is_main: bool, level: float
) -> Comparison | None:
    tasks = [table.runs[label].tasks[name] for label in labels]
    one, two = (task.metrics[metric] for task in tasks)
    if not is_main and not all(map(math.isfinite, (one.value, two.value))):
        return None
    try:
        pair = _pair(table, labels, tasks, metric)
    except LLMError:  # of a metric that decides this was said before
        pair = None
    share = pair is not None and is_share(replace(one, kind=pair.kind), pair.first, pair.other)
    told = Comparison(
        task=name,
        metric=metric,
        is_main=is_main,
        kind=pair.kind if pair else "aggregate",
        higher_is_better=one.higher_is_better,
        is_share=share,
        reference=labels[0],
        other=labels[1],
        values=(one.value, two.value),
        difference=two.value - one.value if pair is None else difference(pair),
        low=None,
        high=None,
        items=len(pair.first.parts) if pair else min(len(task.items) for task in tasks),
        units=pair.first.units if pair else min(len(task.items) for task in tasks),
    )
    return _unpaired(told, one, two, level) if pair is None else _paired(told, pair, level)


def _pair(table: Table, labels: tuple[str, str], tasks: Sequence[Task], metric: str) -> Pair | None:
    """Both runs' scores; None if the metric can't be had from them."""
    one, two = (task.metrics[metric] for task in tasks)
    kind = _common_kind(one.kind, two.kind)
    if kind == "aggregate":
        return None
    first, other = (
        table.scores(label, task, metric) for label, task in zip(labels, tasks, strict=True)
    )
    if not len(first.parts) or len(first.parts) != len(other.parts):
        return None
    scale = scale_of(one, first)
    if scale is None or scale != scale_of(two, other):
        return None
    return Pair(kind, scale, first, other)


def _common_kind(one: Kind, other: Kind) -> Kind:
    """What both are: a mean score of one model may happen to be 0 or 1 throughout."""
    if one == other:
        return one
    return "mean" if {one, other} == {"right", "mean"} else "aggregate"


def _paired(told: Comparison, pair: Pair, level: float) -> Comparison:
    found = difference_interval(pair, 1 - level)
    low, high = found or (None, None)
    told = replace(told, low=low, high=high)
    if told.is_share and low is not None and high is not None:
        told = replace(told, low=max(-1.0, low), high=min(1.0, high))
    if pair.kind == "right":
        gained, lost = pair.discordant()
        told = replace(told, gained=gained, lost=lost)
        odds = odds_ratio(pair, 1 - level)
        if odds is not None:
            told = replace(told, odds=odds.ratio, odds_low=odds.low, odds_high=odds.high)
    if not told.is_main:
        return told
    tested = difference_test(pair)
    return replace(told, p=tested.p, how=tested.how, effect=effect_size(pair))


def _unpaired(told: Comparison, one: Metric, two: Metric, level: float) -> Comparison:
    errors = _errors(one, two)
    if errors is None:
        return replace(told, note=UNTESTABLE)
    half = NormalDist().inv_cdf(1 - level / 2) * math.hypot(*errors)
    told = replace(told, low=told.difference - half, high=told.difference + half, note=UNPAIRED)
    if not told.is_main:
        return told
    tested = aggregate_test(one.value, two.value, errors)
    return replace(told, p=tested.p, how=tested.how)


def _errors(one: Metric, two: Metric) -> tuple[float, float] | None:
    errors = (one.stderr, two.stderr)
    if errors[0] is None or errors[1] is None or not all(map(math.isfinite, errors)):  # type: ignore[arg-type]
        return None
    return (errors[0], errors[1]) if errors[0] + errors[1] > 0 else None


def _with_power(table: Table, told: Comparison, level: float, tests: int) -> Comparison:
    """What could have been detected, at the level that the smallest of all p has to pass."""
    if told.p is None:
        return told
    labels = (told.reference, told.other)
    tasks = [table.runs[label].tasks[told.task] for label in labels]
    strict = level / tests
    pair = _pair(table, labels, tasks, told.metric)
    if pair is None:
        errors = _errors(*(task.metrics[told.metric] for task in tasks))
        if errors is None:
            return told
        least = detectable_from_errors(errors, strict)
        return replace(told, detectable=least, showable=detectable_from_errors(errors, level))
    spread = spread_of(pair)
    return replace(told, detectable=detectable(spread, strict), showable=detectable(spread, level))
