"""The result of questions: what an evaluation leaves on disk, and the table on the terminal.

task = question_task(found, judged, seen, conditions)
print(result_table(task, count_faults(judged)))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from llm_recipes.evaluation import tatqa_scores, text_scores
from llm_recipes.evaluation.intervals import with_interval
from llm_recipes.evaluation.judging import FAULTS, Judged, gold_text
from llm_recipes.evaluation.questions import Questions
from llm_recipes.evaluation.run import Item, Kind, Metric, Shown, Task, digest
from llm_recipes.text_table import aligned

VERSION = "1"
KINDS: Mapping[str, Kind] = {"exact_match": "right", "f1": "mean", "scale": "right"}
HEADS = {"exact_match": "EM", "f1": "F1", "scale": "scale"}
TYPE_AND_SOURCE = ("answer_type", "answer_from")
ALL = "all"


def question_task(
    found: Questions,
    judged: Sequence[Judged],
    seen: Mapping[str, str],
    conditions: Mapping[str, str],
) -> Task:
    """Every item's scores and the metrics with their intervals.

    Args:
        found: What the questions are from.
        judged: Their answers.
        seen: The text that the model saw of each question, by its id.
        conditions: Under which the answers were made; the scorer is added.
    """
    scorer = tatqa_scores.VERSION if found.are_tatqa else text_scores.VERSION
    items = tuple(_item(one, seen[one.question.example.id]) for one in judged)
    names = [name for name in KINDS if items and name in items[0].scores]
    metrics = {name: metric_of(name, items) for name in names}
    told = {**conditions, "scorer": scorer}
    return Task(found.name, VERSION, 0, told, "exact_match", metrics, items)


def metric_of(name: str, items: Sequence[Item]) -> Metric:
    """The mean of a score with its interval; stderr as lm-eval defines it for means."""
    values = [score for item in items if isinstance(score := item.scores[name], float)]
    count = len(values)
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values)
    stderr = math.sqrt(spread / (count - 1) / count) if count > 1 else None
    return with_interval(name, Metric(mean, True, KINDS[name], stderr), items)


def result_table(task: Task, faults: Mapping[str, int]) -> str:
    """The metrics of all items and of each group, in percent, with their intervals of 95 %."""
    grouped = sorted({name for item in task.items for name in item.groups})
    crossed = task.items and all(name in grouped for name in TYPE_AND_SOURCE)
    further = [name for name in grouped if not (crossed and name in TYPE_AND_SOURCE)]
    names = list(task.metrics)
    lines = [["", "", "questions", *(head for name in names for head in _heads(name))]]
    if crossed:
        lines += _crossed(task, names)
    for name in further:
        for value in sorted({item.groups[name] for item in task.items}):
            chosen = [item for item in task.items if item.groups[name] == value]
            lines.append(_row(name, value or "(none)", chosen, names))
    cells = [cell for name in names for cell in _cells(task.metrics[name])]
    lines.append([ALL, "", f"{len(task.items):,}", *cells])
    return "\n".join([aligned(lines, names=2), *fault_lines(faults, len(task.items))])


def fault_lines(faults: Mapping[str, int], count: int) -> list[str]:
    """How many answers could not be read, by kind; nothing if all could."""
    if not faults:
        return []
    total = sum(faults.values())
    parts = [f"{faults[fault]:,} {told}" for fault, told in FAULTS.items() if fault in faults]
    return ["", f"{total:,} of {count:,} answers can't be read and score 0: {'; '.join(parts)}"]


def _crossed(task: Task, names: Sequence[str]) -> list[list[str]]:
    """Rows by answer type and source, and of each type and each source as a whole."""
    there = [tuple(item.groups[name] for name in TYPE_AND_SOURCE) for item in task.items]
    types = _ordered({kind for kind, _ in there}, tatqa_scores.ANSWER_TYPES)
    sources = _ordered({source for _, source in there}, tatqa_scores.SOURCES)
    rows = []
    for kind, source in product([*types, ALL], [*sources, ALL]):
        chosen = [
            item
            for item, (its_kind, its_source) in zip(task.items, there, strict=True)
            if kind in (ALL, its_kind) and source in (ALL, its_source)
        ]
        if chosen and (kind, source) != (ALL, ALL):
            rows.append(_row(kind, source, chosen, names))
    return rows


def _row(first: str, second: str, items: Sequence[Item], names: Sequence[str]) -> list[str]:
    cells = [cell for name in names for cell in _cells(metric_of(name, items))]
    return [first, second, f"{len(items):,}", *cells]


def _heads(name: str) -> tuple[str, str]:
    return HEADS[name], "95 %"


def _cells(metric: Metric) -> tuple[str, str]:
    interval = ""
    if metric.low is not None and metric.high is not None:
        interval = f"{100 * metric.low:.1f}-{100 * metric.high:.1f}"
    return f"{100 * metric.value:.2f}", interval


def _ordered(found: set[str], known: Sequence[str]) -> list[str]:
    return [name for name in known if name in found] + sorted(found - set(known))


def _item(judged: Judged, seen: str) -> Item:
    question = judged.question
    return Item(
        id=question.example.id,
        doc=digest([question.text, question.context]),
        target=digest(gold_text(question)),
        prompt=digest(seen),
        scores=dict(judged.scores),
        cluster=question.example.context or None,
        groups=dict(question.groups),
        shown=Shown(question.text, gold_text(question), judged.text, question.context),
    )
