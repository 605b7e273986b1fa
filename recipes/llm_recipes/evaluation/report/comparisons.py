"""Comparisons of runs: differences with intervals, and what they mean.

    from llm_recipes.evaluation.report.comparisons import comparisons, verdicts

What compare.py has found is shown as it says it: nothing is calculated again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from llm_recipes.evaluation.report.blocks import Block, Cell, Line, Section, Table, Tone, Whiskers
from llm_recipes.evaluation.report.collect import Run
from llm_recipes.evaluation.report.pictures import axis_of, whisker, whisker_axis
from llm_recipes.evaluation.report.values import at, figure, number, words
from llm_recipes.evaluation.verdict import (
    POINTS,
    Comparison,
    amount,
    chance,
    change,
    counted,
    interval,
    sentence,
    signed,
    value,
)

RECIPE = "evaluate/compare"
LEVEL = 0.05
SENTENCE = 2000  # characters
TONES: dict[str, Tone] = {"better": "good", "worse": "bad"}
SIGNS = {"better": "▲", "worse": "▼", "no detectable difference": "○"}
MINUS = str.maketrans("-", "−")
DRAWS = re.compile(r"[\d,]+ draws")
ITEMS, TEST, NOTE = 9, 10, 11  # columns of a task's table


def comparisons(runs: Sequence[Run]) -> Section | None:
    """Tables of all comparisons; None without any."""
    blocks: list[Block] = []
    for run in runs:
        if run.recipe == RECIPE:
            blocks += of_run(run)
    return Section("comparisons", "Comparisons", tuple(blocks)) if blocks else None


def verdicts(runs: Sequence[Run]) -> list[Line]:
    """What all comparisons say: first what changed, then where nothing was found; and margins."""
    lines, margins = [], []
    for run in runs:
        if run.recipe != RECIPE:
            continue
        for entry in entries_of(run, "comparisons"):
            text, verdict = brief(entry, level_of(run)), entry.get("verdict")
            if entry.get("is_main") is True and text:
                found = verdict if isinstance(verdict, str) else ""
                lines.append(Line(text, TONES.get(found, "unsure"), SIGNS.get(found, "?")))
        for entry in entries_of(run, "margins"):
            passed = entry.get("passed") is True
            text = f"{'passed' if passed else 'failed'}: {words(entry.get('sentence'), SENTENCE)}"
            margins.append(Line(text, "good" if passed else "bad", "✓" if passed else "✗"))
    return sorted(lines, key=lambda line: line.sign not in ("▲", "▼")) + margins


def brief(entry: Mapping[str, Any], level: float) -> str:
    """A comparison in a short sentence; as its record has it, if that is of another version."""
    try:
        return sentence(_comparison(entry), level, None)
    except (TypeError, ValueError, KeyError):
        return words(entry.get("sentence"), SENTENCE)


def entries_of(run: Run, name: str) -> list[dict[str, Any]]:
    """Objects of a list in the record's metrics."""
    told = at(run.record, "metrics", name)
    return [e for e in told if isinstance(e, dict)] if isinstance(told, list) else []


def of_run(run: Run) -> list[Block]:
    """A comparison's tables: a task's main metric each, then all other metrics."""
    found = read(run)
    level = level_of(run)
    blocks: list[Block] = []
    tasks: dict[tuple[str, str], list[Comparison]] = {}
    for c in found:
        if c.is_main:
            tasks.setdefault((c.task, c.metric), []).append(c)
    for n, ((task, metric), entries) in enumerate(tasks.items(), 1):
        notes = notes_of(run) if n == len(tasks) else []
        blocks.append(main_table(f"{task}: {metric}", entries, level, notes))
    others = [c for c in found if not c.is_main]
    if others:
        blocks.append(other_table(run.name, others))
    return blocks


def main_table(
    title: str, entries: Sequence[Comparison], level: float, notes: Sequence[str]
) -> Table:
    """Differences in a task's main metric, as numbers and as a picture."""
    rows = []
    for c in entries:
        verdict = c.verdict or "not tested"
        p = "–" if c.p_corrected is None else chance(c.p_corrected).removeprefix("= ")
        rows.append(
            (
                Cell(f"{c.other} against {c.reference}"),
                Cell(f"{SIGNS.get(verdict, '?')} {verdict}", tone=TONES.get(verdict, "unsure")),
                Cell(shown(value(c, c.values[0])), number=True),
                Cell(shown(value(c, c.values[1])), number=True),
                Cell(shown(signed(c, c.difference)), number=True),
                Cell(shown(interval(c)), number=True),
                Cell(p, number=True),
                Cell(effect(c), number=True),
                Cell(_alone(amount(c, c.detectable)) if c.detectable else "–", number=True),
                Cell(counted(c)),
                Cell(DRAWS.sub("drawn", c.how) or "–"),
                Cell(c.note or "–"),
            )
        )
    points = ", points" if entries[0].is_share else ""
    shown_columns = list(range(len(rows[0])))
    alike = []
    for n in (ITEMS, TEST, NOTE):  # what is the same for all is said once, below
        texts = {row[n].text for row in rows}
        if len(texts) == 1:
            shown_columns.remove(n)
            alike += [text for text in texts if text != "–"]
    head = (
        "runs",
        "verdict",
        "before",
        "after",
        f"difference{points}",
        f"{100 * (1 - level):.4g} % interval",
        "p, corrected",
        "effect size",
        f"could be detected{points}",
        "items",
        "test",
        "note",
    )
    arrow = "↑ more is better" if entries[0].higher_is_better else "↓ less is better"
    return Table(
        f"{title}, {arrow}",
        tuple(head[n] for n in shown_columns),
        tuple(tuple(row[n] for n in shown_columns) for row in rows),
        (*(["; ".join(alike)] if alike else []), *notes),
        whiskers(entries),
    )


def whiskers(entries: Sequence[Comparison]) -> Whiskers | None:
    """Each difference as a dot with its interval, and a line at none."""
    unit = POINTS if entries[0].is_share else 1
    scaled = [
        [None if v is None else unit * v for v in (c.difference, c.low, c.high)] for c in entries
    ]
    values = [v for row in scaled for v in row if v is not None]
    axis = axis_of(values, 4, with_zero=True)
    rows = tuple(whisker(row[0], row[1], row[2], axis, zero=True) for row in scaled)
    title = "difference, points" if entries[0].is_share else "difference"
    return Whiskers(title, rows, whisker_axis(axis), after=1)


def other_table(name: str, entries: Sequence[Comparison]) -> Table:
    """Metrics that decide nothing: without tests."""
    rows = []
    for c in entries:
        rows.append(
            (
                Cell(f"{c.task}: {c.metric} {'↑' if c.higher_is_better else '↓'}"),
                Cell(f"{c.other} against {c.reference}"),
                Cell(shown(value(c, c.values[0])), number=True),
                Cell(shown(value(c, c.values[1])), number=True),
                Cell(shown(change(c)), number=True),
                Cell(shown(interval(c)), number=True),
            )
        )
    head = ("metric", "runs", "before", "after", "difference", "interval")
    return Table(f"Other metrics of {name}", head, tuple(rows))


def notes_of(run: Run) -> list[str]:
    """What the tables' numbers are, and what the comparison says of itself."""
    tests = number(at(run.record, "metrics", "tests")) or 0
    notes = [
        "effect size: of right and wrong answers, items gained : items lost; of others, the mean"
        " difference in standard deviations",
        "could be detected: the smallest true difference that is found in 4 of 5 cases",
    ]
    if tests > 1:
        notes.insert(0, f"p is corrected for {figure(tests)} tests (Holm)")
    despite, told = at(run.record, "metrics", "despite"), at(run.record, "metrics", "notes")
    if isinstance(despite, list) and despite:
        notes.append(f"compared despite: {words(despite)}")
    return notes + [words(note, SENTENCE) for note in (told if isinstance(told, list) else [])]


def effect(c: Comparison) -> str:
    """Items gained and lost, or the standardised difference."""
    if c.gained is not None and c.lost is not None:
        return f"{c.gained:,} : {c.lost:,}"
    return figure(c.effect)


def level_of(run: Run) -> float:
    """Of tests and intervals."""
    return number(at(run.record, "metrics", "level")) or LEVEL


def read(run: Run) -> list[Comparison]:
    """The record's comparisons; those that a later version wrote otherwise are left out."""
    found = []
    for entry in entries_of(run, "comparisons"):
        try:
            found.append(_comparison(entry))
        except (TypeError, ValueError, KeyError):
            continue
    return found


def _comparison(entry: Mapping[str, Any]) -> Comparison:
    """A comparison all of whose values are of their kind.

    Raises:
        ValueError, TypeError, KeyError: If some are not.
    """
    known = {f.name: entry[f.name] for f in fields(Comparison) if f.name in entry}
    made = Comparison(**{**known, "values": tuple(entry["values"])})
    texts = (made.task, made.metric, made.reference, made.other, made.how, made.note)
    whole = (made.items, made.units)
    needed = (*made.values, made.difference, *whole)
    ends = (made.low, made.high, made.odds_low, made.odds_high)
    others = (made.p, made.p_corrected, made.detectable, made.effect, made.odds)
    unless_none = (*ends, *others, made.gained, made.lost)
    if not (
        len(made.values) == 2
        and all(isinstance(text, str) for text in texts)
        and isinstance(made.verdict, str | None)
        and all(isinstance(count, int) for count in whole)
        and all(number(value) is not None for value in needed)
        and all(number(value) is not None for value in unless_none if value is not None)
    ):
        raise ValueError(made)
    return made


def _alone(amount_: str) -> str:
    """The number of an amount, whose unit is in the column's title."""
    return amount_.removesuffix(" points")


def shown(text: str) -> str:
    """With a real minus sign, and no line's end in front of a unit."""
    return text.translate(MINUS).replace(" %", "\xa0%")
