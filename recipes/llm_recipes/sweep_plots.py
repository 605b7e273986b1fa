"""Pictures of a sweep: throughput and peak memory against the batch, a line per other setting.

from llm_recipes.sweep_plots import write_plots
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_recipes.figures import save_figure
from llm_recipes.sweep_points import describe, varying
from llm_recipes.sweep_report import GB, by_batch
from llm_recipes.sweep_runs import DONE, NO_MEMORY, Row


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write throughput.png and memory.png; nothing if no run reached its end.

    Raises:
        LLMError: If the folder cannot be written.
    """
    if not any(row.status == DONE for row in rows):
        return []
    names = [name for name in varying([row.axes for row in rows]) if name != "batch_size"]
    written = []
    for file in ("throughput.png", "memory.png"):
        figure, axes = _figure()
        for group in by_batch(rows):
            _draw(axes, group, describe(group[0].axes, names), file == "memory.png")
        unit = "peak memory, GB" if file == "memory.png" else "tokens/s, all processes"
        axes.set(xlabel="sequences a batch and process", ylabel=unit)
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
        axes.set_xticks(sorted({row.axes["batch_size"] for row in rows}))
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(save_figure(figure, folder / file))
    return written


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    return figure, figure.subplots()


def _draw(axes: Any, group: Sequence[Row], label: str, memory: bool) -> None:
    """A line of a picture. label: the settings it is of, "" if there is only one line."""
    ran = [row for row in group if row.status == DONE]
    start = f"{label}, " if label else ""
    batches = [row.axes["batch_size"] for row in ran]
    if not memory:
        if ran:
            rates = [row.tokens_per_s for row in ran]
            axes.plot(batches, rates, marker="o", label=label or "measured")
        return
    points = [row.peak_bytes / GB if row.peak_bytes else float("nan") for row in ran]
    (line,) = axes.plot(batches, points, marker="o", label=f"{start}measured")
    expected = [row for row in group if row.predicted_bytes]
    sizes = [row.axes["batch_size"] for row in expected]
    values = [(row.predicted_bytes or 0) / GB for row in expected]
    axes.plot(sizes, values, linestyle="--", color=line.get_color(), label=f"{start}predicted")
    over = [row for row in expected if row.status == NO_MEMORY]
    if over:
        sizes = [row.axes["batch_size"] for row in over]
        values = [(row.predicted_bytes or 0) / GB for row in over]
        axes.plot(sizes, values, "x", color=line.get_color(), label=f"{start}out of memory")
