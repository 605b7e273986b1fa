"""The results of evaluations: every task's metrics with intervals, and their parts by group.

from llm_recipes.evaluation.report.results import results
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.comparability import condition_differences
from llm_recipes.evaluation.report.blocks import Block, Cell, Section, Table, Whiskers
from llm_recipes.evaluation.report.collect import Run
from llm_recipes.evaluation.report.pictures import Axis, axis_of, whisker, whisker_axis
from llm_recipes.evaluation.report.values import decimals_for, figure, interval, number, words
from llm_recipes.evaluation.run import Item, Metric, Task, cluster_of

if TYPE_CHECKING:
    from llm_recipes.evaluation.units import Scale

WIDE = 6  # runs that are columns; more are rows
PERCENT = 100.0
MOST_GROUPS = 60  # rows of a breakdown


@dataclass(frozen=True)
class Found:
    """A run's result of a task."""

    run: Run
    task: Task

    @property
    def main(self) -> Metric | None:
        """The metric that decides."""
        return self.task.metrics.get(self.task.main)

    def is_share(self, name: str) -> bool:
        """Whether a metric is a fraction of 1, which is shown in percent."""
        from llm_recipes.evaluation.units import is_share, item_scores

        metric = self.task.metrics.get(name)
        if metric is None or metric.kind == "aggregate":
            return False
        try:
            return is_share(metric, item_scores(name, metric.kind, self.task.items))
        except LLMError:
            return False


def by_task(runs: Sequence[Run]) -> dict[str, list[Found]]:
    """Every task's results, in the runs' order."""
    found: dict[str, list[Found]] = {}
    for run in runs:
        for name, task in run.tasks.items():
            found.setdefault(name, []).append(Found(run, task))
    return found


def results(runs: Sequence[Run]) -> Section | None:
    """Tables of all evaluations; None without any."""
    tasks = by_task(runs)
    if not tasks:
        return None
    blocks: list[Block] = []
    if len(tasks) > 1:
        blocks.append(overview(tasks))
    for name, found in tasks.items():
        blocks.append(task_table(name, found))
        parts = breakdown(name, found)
        if parts is not None:
            blocks.append(parts)
    return Section("results", "Results", tuple(blocks))


def overview(tasks: Mapping[str, Sequence[Found]]) -> Table:
    """The main metrics of all tasks: tasks are rows, or columns where there are more runs."""
    names = list(dict.fromkeys(f.run.name for found in tasks.values() for f in found))
    titles = {n: f"{n}: {_arrow(found[0].task.main, found)}" for n, found in tasks.items()}
    cells = {
        (name, f.run.name): Cell(value_text(f.main, _unit(found, found[0].task.main)), number=True)
        for name, found in tasks.items()
        for f in found
    }
    none = Cell("–", number=True)
    if len(names) <= WIDE:
        head = ("task and main metric", *names)
        rows = [[Cell(titles[t]), *(cells.get((t, run), none) for run in names)] for t in tasks]
    else:
        head = ("run", *titles.values())
        rows = [[Cell(run), *(cells.get((t, run), none) for t in tasks)] for run in names]
    notes = ("in brackets: intervals of 95 %",)
    return Table("Main metrics of all tasks", head, tuple(map(tuple, rows)), notes)


def task_table(name: str, found: Sequence[Found]) -> Table:
    """A task's metrics, a row a run, the main one first and as a picture too."""
    main = found[0].task.main
    metrics = list(dict.fromkeys([main, *(m for f in found for m in f.task.metrics)]))
    units = {metric: _unit(found, metric) for metric in metrics}
    rows = []
    for f in found:
        cells = [Cell(f.run.name)]
        for metric in metrics:
            text = value_text(f.task.metrics.get(metric), units[metric])
            cells.append(Cell(text, number=True))
        cells.append(Cell(figure(len(f.task.items) or _items(f.main)), number=True))
        rows.append(tuple(cells))
    head = ("run", *(_arrow(metric, found) for metric in metrics), "items")
    return Table(
        f"{name}: version {found[0].task.version}, {found[0].task.fewshot}-shot",
        head,
        tuple(rows),
        tuple(notes_of(found)),
        main_whiskers(found),
    )


def main_whiskers(found: Sequence[Found]) -> Whiskers | None:
    """The main metric of each run as a dot with its interval."""
    metrics = [f.main if f.main is not None else Metric(math.nan, True, "mean") for f in found]
    values = [v for m in metrics for v in (m.value, m.low, m.high) if number(v) is not None]
    if not values:
        return None
    main = found[0].task.main
    unit = _unit(found, main)
    axis = axis_of([unit * float(value) for value in values if value is not None])
    rows = tuple(_whisker(metric, axis, unit) for metric in metrics)
    return Whiskers(f"{_arrow(main, found)} with intervals", rows, whisker_axis(axis))


def notes_of(found: Sequence[Found]) -> list[str]:
    """What the table's numbers are, and which of the runs did not measure the same."""
    first = found[0].task
    notes = ["in brackets: intervals of 95 %; ↑ more is better, ↓ less is better"]
    units = len({cluster_of(item) for item in first.items})
    if units < len(first.items):
        told = f"{len(first.items):,} items in {units:,} clusters"
        notes.append(f"{told}: those of one cluster are not independent of each other")
    for f in found[1:]:
        differs = differences(first, f.task)
        if differs:
            notes.append(f"not the same measurement: {f.run.name} has {', '.join(differs)}")
    return notes


def differences(one: Task, other: Task) -> list[str]:
    """In what the second task was another measurement than the first."""
    found = [
        f"{name} {after}, not {before}" for name, before, after in condition_differences(one, other)
    ]
    docs = [[(item.id, item.doc) for item in task.items] for task in (one, other)]
    if sorted(docs[0]) != sorted(docs[1]):
        found.append("other items")
    return found


def breakdown(name: str, found: Sequence[Found]) -> Table | None:
    """The main metric by the items' groups: each alone, and, of two or more, all together."""
    keys = list(dict.fromkeys(k for f in found for item in f.task.items for k in item.groups))
    if not keys:
        return None
    kinds: list[tuple[tuple[str, str], ...]] = []
    for key in keys:
        values = sorted({i.groups[key] for f in found for i in f.task.items if key in i.groups})
        kinds += [((key, value),) for value in values]
    if len(keys) > 1:
        kinds += sorted(
            {
                tuple((key, item.groups[key]) for key in keys if key in item.groups)
                for f in found
                for item in f.task.items
                if len(item.groups) > 1
            }
        )
    unit = _unit(found, found[0].task.main)
    scales = [main_scale(f) for f in found]
    rows = []
    for kind in list(dict.fromkeys(kinds))[:MOST_GROUPS]:
        parts = [[i for i in f.task.items if _belongs(i, kind)] for f in found]
        row = [Cell(" × ".join(value for _, value in kind)), Cell(", ".join(k for k, _ in kind))]
        row.append(Cell(words(max(map(len, parts))), number=True))
        for f, items, scale in zip(found, parts, scales, strict=True):
            row.append(Cell(value_text(group_metric(f, items, scale), unit), number=True))
        rows.append(tuple(row))
    head = ("group", "of", "items", *(f.run.name for f in found))
    notes = [f"in brackets: intervals of 95 %; {found[0].task.main} of the group's items"]
    if len(kinds) > MOST_GROUPS:
        notes.append(f"{len(kinds) - MOST_GROUPS} more groups are left out")
    return Table(f"{name} by {' and '.join(keys)}", head, tuple(rows), tuple(notes))


def main_scale(found: Found) -> Scale | None:
    """How the main metric comes from the items' numbers; None if it does not."""
    from llm_recipes.evaluation.units import item_scores, scale_of

    main, name = found.main, found.task.main
    if main is None or main.kind == "aggregate":
        return None
    if not any(name in item.scores for item in found.task.items):
        return None
    try:
        return scale_of(main, item_scores(name, main.kind, found.task.items))
    except LLMError:
        return None


def group_metric(found: Found, items: Sequence[Item], scale: Scale | None) -> Metric | None:
    """The main metric of some items; None if their numbers don't give one."""
    from llm_recipes.evaluation.intervals import with_interval
    from llm_recipes.evaluation.units import item_scores

    main, name = found.main, found.task.main
    if main is None or scale is None or not any(name in item.scores for item in items):
        return None
    ratio = item_scores(name, main.kind, items).ratio
    value = math.exp(ratio) if scale == "exp" else ratio
    return with_interval(name, replace(main, value=value, stderr=None), items)


def value_text(metric: Metric | None, unit: float = 1.0) -> str:
    """A value with its interval, times unit."""
    value, low, high = (_scaled(metric, name, unit) for name in ("value", "low", "high"))
    if value is None:
        return "–"
    decimals = decimals_for(low, high)
    if decimals is None:
        return figure(value)
    decimals = max(decimals, 1) if unit == PERCENT else decimals
    return f"{figure(value, decimals)} ({interval(low, high, decimals)})"


def _scaled(metric: Metric | None, name: str, unit: float) -> float | None:
    value = None if metric is None else number(getattr(metric, name))
    return None if value is None else unit * value


def _whisker(metric: Metric, axis: Axis, unit: float) -> Markup:
    value, low, high = (_scaled(metric, name, unit) for name in ("value", "low", "high"))
    return whisker(value, low, high, axis, zero=False)


def _unit(found: Sequence[Found], metric: str) -> float:
    """100 if the metric is shown in percent, which it is of all runs or of none."""
    known = [f for f in found if metric in f.task.metrics]
    return PERCENT if known and all(f.is_share(metric) for f in known) else 1.0


def _belongs(item: Item, kind: Iterable[tuple[str, str]]) -> bool:
    return all(item.groups.get(key) == value for key, value in kind)


def _arrow(metric: str, found: Sequence[Found]) -> str:
    known = [f.task.metrics[metric] for f in found if metric in f.task.metrics]
    if not known:
        return metric
    percent = ", %" if _unit(found, metric) == PERCENT else ""
    return f"{metric}{percent} {'↑' if known[0].higher_is_better else '↓'}"


def _items(metric: Metric | None) -> int | None:
    return metric.items if metric is not None and metric.items else None
