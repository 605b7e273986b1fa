"""Trainings: their numbers, and the curves of loss and learning rate.

from llm_recipes.evaluation.report.training import training
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_recipes.evaluation.report.blocks import Block, Cell, Picture, Section, Table
from llm_recipes.evaluation.report.collect import Run
from llm_recipes.evaluation.report.pictures import Curve, chart, legend
from llm_recipes.evaluation.report.values import at, duration, figure, number, words
from llm_recipes.metrics_log import NAME, read_rows

# Others may have a metrics.jsonl that came with their model.
TRAINING = ("finetune/sft", "data/tiny")
METHODS = {"data/tiny": "from scratch"}
IN_ONE = 7  # runs in a picture: each has its colour, dash and mark


@dataclass(frozen=True)
class Trained:
    """A training with its steps."""

    run: Run
    rows: Sequence[dict[str, Any]]

    def points(self, name: str) -> list[tuple[float, float]]:
        """A number over the steps."""
        found = [(number(row["step"]), number(row.get(name))) for row in self.rows]
        return [(step, value) for step, value in found if step is not None and value is not None]


def trained(runs: Sequence[Run]) -> list[Trained]:
    """The runs that train, with what their metrics.jsonl holds."""
    return [
        Trained(run, read_rows(run.file.parent / NAME)) for run in runs if run.recipe in TRAINING
    ]


def training(runs: Sequence[Run]) -> Section | None:
    """Numbers and curves of all trainings; None without any."""
    found = trained(runs)
    if not found:
        return None
    blocks: list[Block] = [table(found)]
    # A model that begins at random has another range of losses than one that is tuned.
    for recipe in TRAINING:
        alike = [t for t in found if t.run.recipe == recipe]
        for start in range(0, len(alike), IN_ONE):
            part = alike[start : start + IN_ONE]
            blocks += [picture for picture in (losses(part), rates(part)) if picture is not None]
    return Section("training", "Training", tuple(blocks))


def table(found: Sequence[Trained]) -> Table:
    """What was trained how, and what came of it."""
    rows = []
    for t in found:
        metrics, config = at(t.run.record, "metrics"), at(t.run.record, "config")
        steps = number(at(metrics, "steps")) or number(at(config, "steps"))
        learning_rate = number(at(config, "learning_rate"))
        train, held = t.points("loss"), t.points("held_out_loss")
        first = number(at(metrics, "first_loss"))
        last = number(at(metrics, "last_loss"))
        rows.append(
            (
                Cell(t.run.name),
                Cell(words(at(config, "method")) or METHODS.get(t.run.recipe, "–")),
                Cell(figure(steps), number=True),
                Cell(figure(number(at(metrics, "tokens"))), number=True),
                Cell(figure(learning_rate), number=True),
                Cell(figure(first if first is not None else _end(train, 0)), number=True),
                Cell(figure(last if last is not None else _end(train, -1)), number=True),
                Cell(figure(number(at(metrics, "held_out_loss"))), number=True),
                Cell(figure(min((y for _, y in held), default=None)), number=True),
                Cell(duration(number(at(metrics, "train_s"))), number=True),
            )
        )
    head = (
        "run",
        "method",
        "steps",
        "tokens",
        "learning rate",
        "first loss",
        "last loss",
        "held-out loss",
        "best held-out loss",
        "time",
    )
    return Table("Trainings", head, tuple(rows), ("losses are nats a token",))


def losses(found: Sequence[Trained]) -> Picture | None:
    """Loss of training and on held-out examples over the steps."""
    curves, told = [], []
    for style, t in enumerate(found):
        train, held = t.points("loss"), t.points("held_out_loss")
        if train:
            curves.append(Curve(f"{t.run.name}, training", train, style))
            told.append(f"{t.run.name} from {figure(train[0][1])} to {figure(train[-1][1])}")
        if held:
            name = f"{t.run.name}, held out"
            curves.append(Curve(name, held, style, is_line=False, has_marks=True))
    if not curves:
        return None
    alt = f"Training loss over steps: {'; '.join(told)}"
    drawing = chart(curves, "step", "loss, nats a token", alt)
    runs = [t.run.name for t in found if t.points("loss") or t.points("held_out_loss")]
    return Picture(_caption("Loss", runs), drawing, legend(curves))


def rates(found: Sequence[Trained]) -> Picture | None:
    """The learning rate over the steps."""
    curves = [
        Curve(t.run.name, points, style)
        for style, t in enumerate(found)
        if (points := t.points("learning_rate"))
    ]
    if not curves:
        return None
    highest = [f"{c.name} at most {figure(max(y for _, y in c.points))}" for c in curves]
    alt = f"Learning rate over steps: {'; '.join(highest)}"
    drawing = chart(curves, "step", "learning rate", alt)
    caption = _caption("Learning rate", [c.name for c in curves])
    return Picture(caption, drawing, legend(curves))


def _caption(what: str, runs: Sequence[str]) -> str:
    """Whose picture it is: there may be several."""
    return f"{what} of {runs[0] if len(runs) == 1 else f'{len(runs)} runs'} over the steps"


def _end(points: Sequence[tuple[float, float]], index: int) -> float | None:
    return points[index][1] if points else None
