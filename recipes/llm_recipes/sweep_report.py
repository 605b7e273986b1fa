"""What a sweep found: a table, the best setting, and what each single change did, in words.

from llm_recipes.sweep_report import best, changes, table
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_recipes.files import write_text
from llm_recipes.record import Record, add_input, read_record, start_record, write_record
from llm_recipes.sweep_points import AXES, Axes, describe, place, shown, varying
from llm_recipes.sweep_runs import DONE, NO_MEMORY, TOO_BIG, Row
from llm_recipes.text_table import aligned

RECIPE = "finetune/sweep"
GB = 1e9
ALIKE = 0.02  # a smaller difference is none: short runs vary by that much
TITLE = "sweep.json"
COLUMNS = ("run", "step s", "tokens/s", "peak GB", "predicted", "ratio", "result")


def ordered(rows: Sequence[Row]) -> list[Row]:
    """By their settings, the plainer and smaller first."""
    return sorted(rows, key=lambda row: [place(row.axes[axis]) for axis in AXES])


def cells(row: Row) -> list[str]:
    """A run's line of the table."""
    result = row.status
    if row.status == DONE and row.axes["checkpointing"] == "auto":
        result += f" (checkpointing {'on' if row.checkpointing else 'off'})"
    elif row.note:
        result += f": {row.note.splitlines()[0]}"
    return [
        row.name,
        f"{row.step_s:.3g}" if row.step_s else "-",
        f"{row.tokens_per_s:,.0f}" if row.tokens_per_s else "-",
        gigabytes(row.peak_bytes),
        gigabytes(row.predicted_bytes),
        f"{row.ratio:.2f}" if row.ratio else "-",
        result,
    ]


def gigabytes(count: int | None) -> str:
    """Bytes in GB, or a dash."""
    return "-" if count is None else f"{count / GB:.2f}"


def table(rows: Sequence[Row]) -> str:
    """The runs as aligned text."""
    return aligned([list(COLUMNS), *map(cells, rows)])


def show_table(rows: Sequence[Row]) -> None:
    """Print the table: with rich on a terminal, plain elsewhere."""
    if not sys.stdout.isatty():
        print(table(rows))
        return
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(table(rows))
        return
    drawn = Table(padding=(0, 0))
    for n, name in enumerate(COLUMNS):
        last = n == len(COLUMNS) - 1
        justify: Any = "left" if last or not n else "right"
        drawn.add_column(name, justify=justify, no_wrap=not last)
    leader = best(rows)
    for row in rows:
        style = "bold green" if row is leader else "" if row.status == DONE else "red"
        drawn.add_row(*map(Text, cells(row)), style=style)
    Console().print(drawn)


def best(rows: Sequence[Row]) -> Row | None:
    """The run with the most tokens a second among those that ran."""
    ran = [row for row in rows if row.status == DONE]
    return max(ran, key=lambda row: row.tokens_per_s or 0.0, default=None)


def best_line(rows: Sequence[Row]) -> str:
    """The best setting in words."""
    row = best(rows)
    if row is None:
        return "no run reached its end"
    where = f", {gigabytes(row.peak_bytes)} GB of {row.memory} memory" if row.peak_bytes else ""
    return f"best: {row.name}, {row.tokens_per_s:,.0f} tokens/s{where}"


def changes(rows: Sequence[Row]) -> list[str]:
    """What each change of a single setting did, compared with the otherwise equal run."""
    rows = ordered(rows)
    names = varying([row.axes for row in rows])
    lines = []
    for axis in names:
        others = [name for name in names if name != axis]
        for row in rows:
            base = _base(row, rows, axis)
            if base is not None:
                lines.append(change_line(base, row, axis, others))
    return lines + batch_lines(rows, [name for name in names if name != "batch_size"])


def _base(row: Row, rows: Sequence[Row], axis: str) -> Row | None:
    """The first finished run with an earlier value of the axis, and all else alike."""
    if row.axes[axis] is None or row.status not in (DONE, NO_MEMORY, TOO_BIG):
        return None
    for other in rows:
        earlier = other.axes[axis] is not None and place(other.axes[axis]) < place(row.axes[axis])
        if other.status == DONE and earlier and alike(other.axes, row.axes, axis):
            return other
    return None


def alike(one: Axes, other: Axes, but: str) -> bool:
    """Whether settings differ in one axis only; full has no rank, which then says nothing."""
    for axis in AXES:
        no_rank = but == "method" and axis == "lora_rank" and None in (one[axis], other[axis])
        if axis != but and not no_rank and one[axis] != other[axis]:
            return False
    return True


def change_line(base: Row, row: Row, axis: str, others: Sequence[str]) -> str:
    """`checkpointing false -> true (batch 4): time per step +31 %, peak memory -42 %`."""
    context = describe(row.axes, others)
    start = f"{AXES[axis]} {shown(base.axes[axis])} -> {shown(row.axes[axis])}"
    start += f" ({context}): " if context else ": "
    if row.status != DONE:
        return start + row.status
    parts = []
    if axis not in ("batch_size", "max_length"):  # their steps are of other sizes
        parts.append(f"time per step {difference(base.step_s, row.step_s)}")
    parts.append(f"tokens/s {difference(base.tokens_per_s, row.tokens_per_s)}")
    if base.memory == row.memory:
        parts.append(f"peak memory {difference(base.peak_bytes, row.peak_bytes)}")
    return start + ", ".join(parts)


def difference(before: float | None, after: float | None) -> str:
    """In percent, with its sign."""
    if not before or not after:
        return "unknown"
    share = after / before - 1
    return "about the same" if abs(share) < ALIKE else f"{100 * share:+.0f} %"


def batch_lines(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """What one more row in a batch takes, measured and predicted, for all other settings."""
    lines = []
    for group in by_batch(rows):
        ran = [row for row in group if row.status == DONE and row.peak_bytes]
        if len(ran) < 2 or ran[0].checkpointing != ran[-1].checkpointing:
            continue
        more = ran[-1].axes["batch_size"] - ran[0].axes["batch_size"]
        context = describe(group[0].axes, names)
        took = ((ran[-1].peak_bytes or 0) - (ran[0].peak_bytes or 0)) / more / GB
        line = f"a row more in a batch{f' ({context})' if context else ''}: {took:.3g} GB"
        if ran[0].predicted_bytes and ran[-1].predicted_bytes:
            expected = (ran[-1].predicted_bytes - ran[0].predicted_bytes) / more / GB
            line += f" measured, {expected:.3g} GB predicted"
        lines.append(line)
    return lines


def by_batch(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs in groups that differ in the batch only, by its size."""
    groups: dict[str, list[Row]] = {}
    for row in ordered(rows):
        rest = repr([value for axis, value in row.axes.items() if axis != "batch_size"])
        groups.setdefault(rest, []).append(row)
    return list(groups.values())


def write_report(
    output: Path, rows: Sequence[Row], config: dict[str, Any], names: Sequence[str], status: str
) -> list[Path]:
    """Write sweep.json, sweep.md and the pictures; returns what was written.

    Args:
        output: The sweep's folder.
        rows: Results.
        config: The sweep's own settings.
        names: Of all runs it is to have.
        status: complete, interrupted or failed.

    Raises:
        LLMError: If the folder can't be written.
    """
    from llm_recipes.sweep_plots import write_plots

    found = best(rows)
    words = changes(rows)
    earlier = read_record(output / TITLE) or {}
    record = start(config, names)
    record |= {
        "started": earlier.get("started", record["started"]),
        "device": next((row.device for row in rows if row.device), ""),
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        "best": found.name if found else None,
        "changes": words,
    }
    record["host"]["device"] = record["device"]
    write_record(output / TITLE, record, status)
    write_text(output / "sweep.md", markdown(rows, words))
    return [output / TITLE, output / "sweep.md", *write_plots(rows, output)]


def start(config: dict[str, Any], names: Sequence[str]) -> Record:
    """What sweep.json says from the beginning."""
    record = start_record(RECIPE, config, "")
    record["runs"] = list(names)
    for part in ("model", "data"):
        add_input(record, part, config.get(part))
    return record


def markdown(rows: Sequence[Row], words: Sequence[str]) -> str:
    """The table and the words as Markdown."""

    def line(parts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in parts) + " |"

    lines = [line(COLUMNS), line(["---"] + ["---:"] * 5 + ["---"])]
    lines += [line(cells(row)) for row in rows]
    lines += ["", best_line(rows), ""]
    lines += [f"- {word}" for word in words]
    device = next((row.device for row in rows if row.device), "")
    return "\n".join([*lines, "", f"On {device or 'an unknown device'}. {shared(rows)}", ""])


def shared(rows: Sequence[Row]) -> str:
    """What all runs have in common, as far as it is switched on."""
    if not rows:
        return "No run has ended."
    names = varying([row.axes for row in rows])
    parts = [describe(rows[0].axes, [axis for axis in AXES if axis not in names])]
    values = {name: value for name, value in rows[0].fixed.items() if value not in (None, "auto")}
    parts += [f"{name} {shown(value)}" for name, value in values.items() if value]
    return "All runs: " + ", ".join(parts)
