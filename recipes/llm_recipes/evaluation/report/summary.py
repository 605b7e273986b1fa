"""What the report says, in sentences, at its top.

from llm_recipes.evaluation.report.summary import summary
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llm_recipes.evaluation.report.blocks import Block, Line, Section, Words
from llm_recipes.evaluation.report.collect import Run
from llm_recipes.evaluation.report.comparisons import verdicts
from llm_recipes.evaluation.report.training import trained
from llm_recipes.evaluation.report.values import at, figure, number, words

COMPARE = "quantized/compare"
MOST_LINES = 40


def summary(runs: Sequence[Run], notes: Sequence[str]) -> Section:
    """The comparisons' verdicts, what trainings reached, what did not end or can't be read."""
    blocks: list[Block] = []
    lines = verdicts(runs)
    if lines:
        blocks.append(Words(tuple(limited(lines))))
    elif sum(bool(run.tasks) for run in runs) > 1:
        text = "No comparison is among these records: intervals of single runs that overlap say"
        text += " little about their difference. recipes/evaluate/compare.py compares item by item."
        blocks.append(Words((Line(text, "unsure", "!"),)))
    others = [*training_lines(runs), *quantization_lines(runs)]
    if others:
        blocks.append(Words(tuple(limited(others))))
    blocks.append(Words(tuple(limited([state(runs), *unfinished(runs), *unread(notes)]))))
    return Section("summary", "Summary", tuple(blocks))


def training_lines(runs: Sequence[Run]) -> list[Line]:
    """How far each training's loss has fallen."""
    lines = []
    for t in trained(runs):
        held, train = t.points("held_out_loss"), t.points("loss")
        metrics = at(t.run.record, "metrics")
        before = number(at(metrics, "untrained_perplexity"))
        after = number(at(metrics, "held_out_perplexity"))
        if before is not None and after is not None:
            text = f"held-out perplexity from {figure(before)} untrained to {figure(after)}"
        elif len(held) > 1:
            text = f"held-out loss from {figure(held[0][1])} to {figure(held[-1][1])}"
            best = min(y for _, y in held)
            text += f" (at best {figure(best)})" if best < held[-1][1] else ""
        elif train:
            text = f"training loss from {figure(train[0][1])} to {figure(train[-1][1])}"
        else:
            continue
        lines.append(Line(f"{t.run.name} was trained: {text}"))
    return lines


def quantization_lines(runs: Sequence[Run]) -> list[Line]:
    """What comparisons of GGUF models say of themselves."""
    lines = []
    for run in runs:
        told = at(run.record, "metrics", "verdicts")
        if run.recipe == COMPARE and isinstance(told, list):
            lines += [Line(f"{run.name}: {words(line)}") for line in told[:-1] or told]
    return lines


def state(runs: Sequence[Run]) -> Line:
    """How many runs there are, and of what."""
    recipes = Counter(run.recipe for run in runs)
    kinds = ", ".join(f"{count} {recipe}" for recipe, count in recipes.items())
    ended = sum(run.status == "complete" for run in runs)
    text = f"{len(runs)} run{'s' * (len(runs) != 1)}: {kinds}; "
    return Line(text + ("all are complete" if ended == len(runs) else f"{ended} are complete"))


def unfinished(runs: Sequence[Run]) -> list[Line]:
    """Runs that did not get to their end."""
    return [
        Line(f"{run.name} ({run.recipe}) is {run.status}, not complete", "unsure", "!")
        for run in runs
        if run.status != "complete"
    ]


def unread(notes: Sequence[str]) -> list[Line]:
    """Records that are not in the report."""
    return [Line(f"left out: {note}", "unsure", "!") for note in notes]


def limited(lines: Sequence[Line]) -> list[Line]:
    """So many that they can be read."""
    if len(lines) <= MOST_LINES:
        return list(lines)
    return [*lines[:MOST_LINES], Line(f"… and {len(lines) - MOST_LINES} more, below")]
