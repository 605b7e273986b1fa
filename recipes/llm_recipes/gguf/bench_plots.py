"""Pictures of a benchmark: tokens/s over threads, batch, GPU layers, depth, as far as they vary.

from llm_recipes.gguf.bench_plots import write_plots
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_recipes.figures import save_figure
from llm_recipes.gguf.bench_figures import Figure
from llm_recipes.gguf.bench_points import varying
from llm_recipes.gguf.bench_table import NAMES, tests_of

AXES = {
    "threads": "threads",
    "batch": "tokens a batch",
    "micro_batch": "tokens a micro batch",
    "gpu_layers": "layers on GPUs (the output is one)",
    "depth": "tokens in the cache",
}
MANY = 16  # values that are still written at the axis


def write_plots(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write a picture for each number that varies: prompts above, generation below.

    Raises:
        LLMError: If the folder cannot be written.
    """
    ran = [figure for figure in figures if figure.rate is not None]
    vary = varying([figure.setting for figure in ran])
    return [write_plot(ran, axis, vary, folder) for axis in AXES if axis in vary]


def write_plot(figures: Sequence[Figure], axis: str, vary: Sequence[str], folder: Path) -> Path:
    """A picture of tokens/s over one setting, a line for each combination of the others."""
    from matplotlib.figure import Figure as Picture

    kinds = [kind for kind in (True, False) if any(bool(f.test.prompt) is kind for f in figures)]
    picture = Picture(figsize=(7, 3.8 * len(kinds)), layout="constrained")
    values = sorted({figure.setting[axis] for figure in figures})
    for n, kind in enumerate(kinds):
        axes = picture.add_subplot(len(kinds), 1, n + 1)
        for label, group in lines_of(figures, kind, axis, vary).items():
            draw(axes, sorted(group, key=lambda f: f.setting[axis]), axis, label)
        axes.set(xlabel=AXES[axis], ylabel=f"{'prompt' if kind else 'generation'}, tokens/s")
        axes.set_ylim(bottom=0)
        if len(values) <= MANY:
            axes.set_xticks(values)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return save_figure(picture, folder / f"{axis.replace('_', '-')}.png")


def lines_of(
    figures: Sequence[Figure], prompts: bool, axis: str, vary: Sequence[str]
) -> dict[str, list[Figure]]:
    """The figures of each line by the line's name: the model, the test, what else varies."""
    chosen = [figure for figure in figures if bool(figure.test.prompt) is prompts]
    several = len(tests_of(chosen)) > 1
    found: dict[str, list[Figure]] = {}
    for figure in chosen:
        others = [name for name in NAMES if name in vary and name != axis]
        parts = [str(figure.model["title"]), *([figure.test.title] if several else [])]
        parts += [f"{NAMES[name]} {figure.setting[name]}" for name in others]
        found.setdefault(", ".join(parts), []).append(figure)
    return found


def draw(axes: Any, group: Sequence[Figure], axis: str, label: str) -> None:
    """A line with standard deviations."""
    places = [figure.setting[axis] for figure in group]
    rates = [figure.rate or 0.0 for figure in group]
    spreads = [figure.spread or 0.0 for figure in group]
    # matplotlib takes $ for mathematics and hides what begins with _
    text = label.replace("$", r"\$").lstrip("_")
    axes.errorbar(places, rates, yerr=spreads, marker="o", capsize=3, label=text)
