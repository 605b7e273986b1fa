"""Quality, size and speed of a model's quantizations side by side: table, files, picture.

from llm_recipes.gguf.quality_table import Row, table, write_all
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_recipes.figures import save_figure
from llm_recipes.files import write_text
from llm_recipes.gguf.quality import Quality
from llm_recipes.text_table import aligned

GB = 1e9
MISSING = "-"


@dataclass(frozen=True)
class Rate:
    """Tokens a second: mean of the repeats and their standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Speed:
    """What llama-bench has measured. mbu: share of the memory bandwidth that generating uses."""

    prompt: Rate | None
    new: Rate | None
    mbu: float | None = None


@dataclass(frozen=True)
class Row:
    """A file. memory_bytes: as estimated. fallbacks: tensors of other types."""

    type: str
    file: str
    bytes: int
    bits_per_weight: float
    memory_bytes: int
    fallbacks: int = 0
    importance: bool = False
    is_source: bool = False
    quality: Quality | None = None
    speed: Speed | None = None


# Title, what it means, and the text of a row's cell.
Column = tuple[str, str, Callable[[Row], str]]
OF_QUALITY: tuple[Column, ...] = (
    (
        "perplexity",
        "of the text, with its standard error",
        lambda row: _of(row.quality, lambda q: f"{q.perplexity:.4g} ±{q.perplexity_error:.2g}"),
    ),
    (
        "change %",
        "of the perplexity against the source's, with its standard error",
        lambda row: _of_other(row, lambda q: f"{_percent(q.log_ratio)} ±{_error(q):.2g}"),
    ),
    (
        "KL mean",
        "mean KL divergence of the predictions from the source's, nats a token",
        lambda row: _of_other(row, lambda q: f"{q.kl_mean:.3g}"),
    ),
    ("KL 99 %", "its 99th percentile", lambda row: _of_other(row, lambda q: f"{q.kl_99:.3g}")),
    (
        "same top %",
        "tokens whose likeliest prediction is the source's",
        lambda row: _of_other(row, lambda q: f"{100 * q.same_top:.1f}"),
    ),
)
OF_SPEED: tuple[Column, ...] = (
    ("prompt/s", "tokens of a prompt a second", lambda row: rate_text(row.speed, "prompt")),
    ("new/s", "generated tokens a second", lambda row: rate_text(row.speed, "new")),
    (
        "MBU %",
        "bytes read a second while generating, of the memory's bandwidth; of small models, which"
        " caches hold, more than 100",
        lambda row: _of(row.speed, lambda s: MISSING if s.mbu is None else f"{100 * s.mbu:.0f}"),
    ),
)


def columns(rows: Sequence[Row]) -> list[Column]:
    """Those that have something to show."""
    size, unit = size_unit(max((row.bytes for row in rows), default=0))
    shown: list[Column] = [
        ("type", "quantization type", lambda row: row.type + " (source)" * row.is_source),
        ("bits", "bits a weight", lambda row: f"{row.bits_per_weight:.2f}"),
        (unit, "size of the file", lambda row: f"{row.bytes / size:.2f}"),
    ]
    if any(row.quality for row in rows):
        shown += OF_QUALITY
    meaning = "estimated: weights, cache and scratch while quality is measured"
    shown.append((f"memory {unit}", meaning, lambda row: f"{row.memory_bytes / size:.2f}"))
    if any(row.speed for row in rows):
        shown += OF_SPEED
    return shown


def size_unit(largest: int) -> tuple[float, str]:
    """What to divide sizes by, and its name, for sizes of which this is the largest."""
    return (GB, "GB") if largest >= GB / 10 else (1e6, "MB")


def size_text(count: int) -> str:
    """A size with its unit."""
    size, unit = size_unit(count)
    return f"{count / size:.3g} {unit}"


def count_text(count: int) -> str:
    """A number of parameters in words."""
    return f"{count / GB:.3g} billion" if count >= GB / 10 else f"{count / 1e6:.3g} million"


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    shown = columns(rows)
    # An empty column at the end: `aligned` sets the last one to the left.
    lines = [[title for title, _, _ in shown] + [""]]
    lines += [[cell(row) for _, _, cell in shown] + [""] for row in rows]
    return aligned(lines)


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The rows as a table of Markdown, with what its columns mean."""
    shown = columns(rows)
    lines = ["| " + " | ".join(title for title, _, _ in shown) + " |"]
    lines.append("|" + "|".join("---" if not n else "---:" for n in range(len(shown))) + "|")
    lines += ["| " + " | ".join(cell(row) for _, _, cell in shown) + " |" for row in rows]
    lines += ["", *(f"- {title}: {meaning}" for title, meaning, _ in shown)]
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def write_all(
    folder: Path, rows: Sequence[Row], facts: Mapping[str, Any], notes: Sequence[str]
) -> list[Path]:
    """Write quality.json, .csv, .md, and quality.png if there is quality to show.

    Args:
        folder: Where they go.
        rows: The source first.
        facts: What was measured with what, for quality.json.
        notes: The same in sentences, for quality.md.

    Raises:
        LLMError: If the folder cannot be written.
    """
    numbers = [plain(asdict(row)) for row in rows]
    text = json.dumps({"schema": 1, **facts, "rows": numbers}, indent=2, ensure_ascii=False)
    write_text(folder / "quality.json", text + "\n")
    write_text(folder / "quality.csv", _comma_separated(rows))
    write_text(folder / "quality.md", markdown(rows, notes))
    written = [folder / f"quality.{ending}" for ending in ("json", "csv", "md")]
    if sum(row.quality is not None and not row.is_source for row in rows):
        written.append(_plot(folder / "quality.png", rows))
    return written


def plain(value: Any) -> Any:
    """The value with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def rate_text(speed: Speed | None, name: str) -> str:
    """A rate of `prompt` or `new` tokens, or a dash."""
    rate: Rate | None = None if speed is None else getattr(speed, name)
    if rate is None:
        return MISSING
    return f"{rate.mean:,.0f}" if rate.mean >= 100 else f"{rate.mean:.3g}"


def _comma_separated(rows: Sequence[Row]) -> str:
    flat = []
    for row in rows:
        own = {k: v for k, v in asdict(row).items() if k not in ("quality", "speed")}
        quality = asdict(row.quality) if row.quality else {}
        speed = asdict(row.speed) if row.speed else {}
        for name in ("prompt", "new"):
            rate = speed.pop(name, None) or {}
            speed[f"{name}_tokens_per_s"] = rate.get("mean")
        flat.append({**own, **quality, **speed})
    names = list(dict.fromkeys(name for line in flat for name in line))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _plot(path: Path, rows: Sequence[Row]) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    size, unit = size_unit(max(row.bytes for row in rows))
    others = [row for row in rows if row.quality is not None and not row.is_source]
    for row in others:
        assert row.quality is not None
        color = "C1" if row.importance else "C0"
        for axes, value, error in (
            (left, row.quality.kl_mean, row.quality.kl_mean_error),
            (right, 100 * math.expm1(row.quality.log_ratio), _error(row.quality)),
        ):
            point = (row.bytes / size, value)
            axes.errorbar(*point, yerr=error, marker="o", capsize=3, color=color)
            axes.annotate(row.type, point, xytext=(5, 5), textcoords="offset points", fontsize=8)
    for axes in (left, right):
        axes.set_xlabel(f"size, {unit}")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(alpha=0.3)
        axes.margins(0.12)
    if all(row.quality and row.quality.kl_mean > 0 for row in others):
        left.set_yscale("log")
    left.set_ylabel("mean KL divergence from the source, nats a token")
    right.set_ylabel("perplexity more than the source's, %")
    right.axhline(0, color="gray", linewidth=0.8)
    if any(row.importance for row in others):
        left.set_title("orange: with an importance matrix", fontsize=9)
    return save_figure(figure, path)


def _of(part: Any, text: Callable[[Any], str]) -> str:
    return MISSING if part is None else text(part)


def _of_other(row: Row, text: Callable[[Quality], str]) -> str:
    """A comparison with the source, which the source itself does not have."""
    return MISSING if row.quality is None or row.is_source else text(row.quality)


def _percent(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.2f}"


def _error(quality: Quality) -> float:
    return 100 * math.exp(quality.log_ratio) * quality.log_ratio_error
