"""Answers of several runs side by side, those first where the runs differ.

    from llm_recipes.evaluation.report.answers import Chosen, answers

Of evaluations: the items of a task that are the same for all. Of generate.py: the same prompts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.report.blocks import (
    Answer,
    Block,
    Item,
    Line,
    Piece,
    Section,
    Tone,
    Words,
)
from llm_recipes.evaluation.report.collect import ENDING, Run
from llm_recipes.evaluation.report.diff import changed, different
from llm_recipes.evaluation.report.results import by_task
from llm_recipes.evaluation.report.values import figure
from llm_recipes.evaluation.run import Item as Scored
from llm_recipes.evaluation.run import Kind, digest

GENERATED = "generated answers"
MOST_TEXT, MOST_CONTEXT = 4000, 8000  # characters


@dataclass(frozen=True)
class Given:
    """A run's answer. verdict: right, wrong …, "" where nothing says so. score: 0 to 1."""

    run: str
    text: str
    verdict: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Asked:
    """An item with all answers. number: its place in the task, from 0."""

    task: str
    id: str
    number: int
    question: str
    context: str
    gold: str
    answers: tuple[Given, ...]

    @property
    def rank(self) -> int:
        """0: some are right and others not. 1: answers differ. 2: all are the same."""
        if len({given.verdict for given in self.answers}) > 1:
            return 0
        return 1 if len({given.text.strip() for given in self.answers}) > 1 else 2


def answers(runs: Sequence[Run], most: int, chosen: Sequence[str]) -> Section | None:
    """Questions with the answers of all runs; None if no run kept any.

    Args:
        runs: All of the report.
        most: Items at most; 0: none.
        chosen: Items to show instead: ids, numbers, lists and ranges of these.

    Raises:
        LLMError: For what was chosen and isn't there.
    """
    asked = [*evaluated(runs), *generated(runs)]
    shown = pick(asked, chosen) if chosen else differing(asked, most)
    if not shown:
        return None
    names = list(dict.fromkeys(given.run for item in asked for given in item.answers))
    blocks: list[Block] = [Words((Line(_intro(asked, shown, len(names), bool(chosen))),), False)]
    blocks += [block_of(item) for item in shown]
    return Section("answers", "Answers side by side", tuple(blocks))


def evaluated(runs: Sequence[Run]) -> list[Asked]:
    """Items of evaluations, the same ones of all runs together."""
    found: list[Asked] = []
    for task, results in by_task(runs).items():
        items: dict[tuple[str, str], list[tuple[str, Scored, Kind | None]]] = {}
        for result in results:
            kind = result.main.kind if result.main is not None else None
            for item in result.task.items:
                if item.shown is not None:
                    items.setdefault((item.id, item.doc), []).append((result.run.name, item, kind))
        main = results[0].task.main
        for n, ((id_, _), entries) in enumerate(items.items()):
            first = entries[0][1].shown
            assert first is not None
            given = tuple(
                Given(run, item.shown.answer, *judged(item, main, kind))
                for run, item, kind in entries
                if item.shown is not None
            )
            found.append(Asked(task, id_, n, first.question, first.context, first.gold, given))
    return found


def judged(item: Scored, main: str, kind: Kind | None) -> tuple[str, Tone]:
    """What the main metric says of an answer."""
    score = item.scores.get(main)
    if kind not in ("right", "mean") or isinstance(score, tuple) or score is None:
        return "", ""
    if score == 1:
        return "right", "good"
    if score == 0:
        return "wrong", "bad"
    return (f"partly right ({main} {figure(score)})", "unsure") if 0 < score < 1 else ("", "")


def generated(runs: Sequence[Run]) -> list[Asked]:
    """Answers that generate.py has written, the same prompts together."""
    items: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for run in runs:
        if run.recipe.endswith("/generate") and run.file.name.endswith(ENDING):
            for row in rows_of(run.file):
                key = f"{row.get('id')}, {row.get('sample', 0)}"
                items.setdefault((key, digest(row["prompt"])), []).append((run.name, row))
    found = []
    for n, entries in enumerate(items.values()):
        row = entries[0][1]
        gold = next((r["reference"] for _, r in entries if isinstance(r.get("reference"), str)), "")
        given = tuple(Given(name, row["completion"]) for name, row in entries)
        sample = row.get("sample")
        id_ = f"{row.get('id')}" + (f", sample {sample}" if sample else "")
        found.append(Asked(GENERATED, id_, n, row["prompt"], "", gold, given))
    return found


def rows_of(record: Path) -> list[dict[str, Any]]:
    """The answers beside a record; lines that can't be read are left out."""
    file = record.with_name(f"{record.name.removesuffix(ENDING)}.jsonl")
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(
            isinstance(row.get(name), str) for name in ("prompt", "completion")
        ):
            found.append(row)
    return found


def differing(asked: Sequence[Asked], most: int) -> list[Asked]:
    """At most so many items: where runs differ first, from all tasks in turn."""
    found: list[Asked] = []
    for rank in range(3):
        tasks: dict[str, list[Asked]] = {}
        for item in asked:
            if item.rank == rank:
                tasks.setdefault(item.task, []).append(item)
        turns = itertools.zip_longest(*tasks.values())
        found += [item for turn in turns for item in turn if item is not None]
    order = {id(item): n for n, item in enumerate(asked)}
    return sorted(found[:most], key=lambda item: order[id(item)])


def pick(asked: Sequence[Asked], chosen: Sequence[str]) -> list[Asked]:
    """Items by their ids, or by their numbers: `100`, `3-7`, `3,7,12`.

    Raises:
        LLMError: If one is not there.
    """
    found: list[Asked] = []
    missing = []
    ids = {item.id for item in asked}
    names = [n for text in chosen for n in ([text] if text in ids else text.split(","))]
    for name in dict.fromkeys(part.strip() for part in names):
        named = [item for item in asked if name in (item.id, str(item.number))]
        exact = [item for item in named if item.id == name]
        wanted = exact or named
        first, dash, last = name.partition("-")
        if not wanted and dash and first.isdecimal() and last.isdecimal():
            wanted = [item for item in asked if int(first) <= item.number <= int(last)]
        if not wanted:
            missing.append(name)
        found += [item for item in wanted if item not in found]
    if missing:
        known = ", ".join(dict.fromkeys(item.id for item in asked[:5]))
        why = (
            f"items are {known} … (or their places from 0)" if known else "no run kept its answers"
        )
        fix = "give ids of items that the runs have answered"
        raise LLMError(f"--sid {', '.join(missing)} is no item of these runs", why, fix)
    return found


def block_of(item: Asked) -> Item:
    """An item with its differences marked: against the first run's answer, and the gold one."""
    first = item.answers[0]
    shown = []
    for given in item.answers:
        text = cut(given.text, MOST_TEXT)
        pieces: tuple[Piece, ...] = (Piece(text),)
        if given is not first:
            pieces = different(cut(first.text, MOST_TEXT), text)
        gold = cut(item.gold, MOST_TEXT)
        against = changed(gold, text) if gold and given.tone in ("bad", "unsure") else ()
        shown.append(Answer(given.run, given.verdict, given.tone, pieces, against))
    return Item(
        f"{item.task}, {item.id}",
        cut(item.question, MOST_TEXT),
        cut(item.context, MOST_CONTEXT),
        cut(item.gold, MOST_TEXT),
        tuple(shown),
    )


def cut(text: str, most: int) -> str:
    """The text, or its beginning and how much is left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def _intro(asked: Sequence[Asked], shown: Sequence[Asked], runs: int, chosen: bool) -> str:
    parts = [f"{len(shown)} of {len(asked)} items"]
    if not chosen and runs > 1:
        judged = sum(item.rank == 0 for item in asked)
        parts[0] += f"; in {judged} some runs are right and others not, and those come first"
    if runs > 1:
        parts.append("Marked: words that the first run's answer does not have")
    parts.append("Against gold: words of it that are missing are struck out, others underlined")
    return ". ".join(parts) + "."
