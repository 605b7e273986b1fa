"""Pictures of a training run: loss, throughput, memory over its steps.

from llm_recipes.training_plots import write_plots
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_recipes.figures import save_figure

DOTS_PER_INCH = 120


def write_plots(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write loss.png, throughput.png and memory.png; returns those that had something to show.

    Args:
        rows: Of metrics.jsonl.
        folder: Where they go.

    Raises:
        LLMError: If the folder cannot be written.
    """
    steps = [row for row in rows if "loss" in row]
    if not steps:
        return []
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def curve(axes: Any, source: Sequence[Mapping[str, Any]], name: str, **style: Any) -> None:
        points = [(row["step"], row[name]) for row in source if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), **style)

    def memory(name: str) -> list[dict[str, Any]]:
        return [{"step": row["step"], "GB": row[name] / 1e9} for row in steps if row.get(name)]

    written = []
    for file, unit in (
        ("loss.png", "loss, nats a token"),
        ("throughput.png", "tokens/s, all processes"),
        ("memory.png", "peak memory, GB"),
    ):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        if file == "loss.png":
            curve(axes, steps, "loss", label="training", linewidth=1)
            curve(axes, rows, "held_out_loss", label="held out", marker="o")
        elif file == "throughput.png":
            curve(axes, steps, "tokens_per_s", label="without padding", linewidth=1)
            curve(axes, steps, "loss_tokens_per_s", label="of these, learned", linewidth=1)
        else:
            curve(axes, memory("peak_host_bytes"), "GB", label="host, first process")
            curve(axes, memory("peak_gpu_bytes"), "GB", label="GPU, first process")
        axes.set(xlabel="step", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if file != "loss.png":  # a rise of 0.1 % should not fill the picture
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(save_figure(figure, folder / file, DOTS_PER_INCH))
    return written
