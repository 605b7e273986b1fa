"""What quantization costs and saves: quality, size, memory and speed of each type.

from llm_recipes.evaluation.report.quantization import quantization
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.report.blocks import Block, Cell, Picture, Section, Table
from llm_recipes.evaluation.report.collect import OF_A_FOLDER, Run, read_object
from llm_recipes.evaluation.report.pictures import Dot, scatter
from llm_recipes.evaluation.report.values import (
    at,
    bytes_text,
    decimals_for,
    figure,
    interval,
    number,
    percent,
    rate,
    words,
)

QUANTIZE, COMPARE = "quantized/quantize", "quantized/compare"
QUALITY = "quality.json"
OF_95 = 1.96  # standard errors


def quantization(runs: Sequence[Run]) -> Section | None:
    """Tables and pictures of quantizations and their comparisons; None without any."""
    blocks: list[Block] = []
    for run in runs:
        if run.file.name not in OF_A_FOLDER:  # the record of a file
            continue
        if run.recipe == QUANTIZE:
            blocks += of_quantize(run)
        if run.recipe == COMPARE:
            blocks += of_compare(run)
    return Section("quantization", "Quantization", tuple(blocks)) if blocks else None


def of_quantize(run: Run) -> list[Block]:
    """The table that quantize.py has written beside its record, with its trade-off as a picture."""
    try:
        rows = _rows(read_object(run.file.parent / QUALITY).get("rows"))
    except LLMError:
        return []
    table = []
    dots = []
    for row in rows:
        is_source = row.get("is_source") is True
        type_ = words(row.get("type"))
        size = number(row.get("bytes"))
        ratio, error = (number(at(row, "quality", n)) for n in ("log_ratio", "log_ratio_error"))
        low, high = _change(ratio, error, -OF_95), _change(ratio, error, OF_95)
        change = _change(ratio, 0.0, 0.0)
        decimals = decimals_for(low, high)
        if size is not None and change is not None and not is_source:
            style = 1 if row.get("importance") is True else 0
            dots.append(Dot(type_, _in_unit(size, rows), change, low, high, style))
        text = "–"
        if change is not None and not is_source:
            text = f"{figure(change, decimals)} % ({interval(low, high, decimals)})"
        table.append(
            (
                Cell(f"{type_} (source)" if is_source else type_),
                Cell(figure(number(row.get("bits_per_weight"))), number=True),
                Cell(bytes_text(size), number=True),
                Cell(bytes_text(number(row.get("memory_bytes"))), number=True),
                Cell(figure(number(at(row, "quality", "perplexity"))), number=True),
                Cell(text, number=True),
                Cell(_other(is_source, at(row, "quality", "kl_mean"), figure), number=True),
                Cell(_other(is_source, at(row, "quality", "same_top"), percent), number=True),
                *speeds(row),
            )
        )
    if not table:
        return []
    head = (
        "type",
        "bits a weight",
        "file",
        "memory",
        "perplexity",
        "more perplexity than the source",
        "mean KL divergence",
        "same likeliest token",
        *OF_SPEED,
    )
    notes = ("in brackets: intervals of 95 %; KL divergence from the source, nats a token",)
    blocks: list[Block] = [Table(f"Quantizations in {run.name}", head, tuple(table), notes)]
    if dots:
        told = "; ".join(f"{d.label} {figure(d.x)}: {figure(d.y)} %" for d in dots)
        x_title = f"file, {_unit(rows)[1]}"
        y_title = "more perplexity than the source, %"
        drawing = scatter(dots, x_title, y_title, f"Perplexity and size of each type: {told}")
        with_matrix = any(dot.style for dot in dots)
        text = "Perplexity against size: lower and further left is better; bars: 95 %"
        text += "; squares: with an importance matrix" if with_matrix else ""
        blocks.append(Picture(text, drawing, Markup("")))
    return blocks


def of_compare(run: Run) -> list[Block]:
    """The models that quantized/compare.py has set side by side."""
    rows = _rows(at(run.record, "metrics", "rows"))
    table, dots = [], []
    for n, row in enumerate(rows):
        size, bits = number(row.get("file_bytes")), number(row.get("bits_per_byte"))
        mean, low, high = (
            number(at(row, "more_than_first", name)) for name in ("mean", "low", "high")
        )
        decimals = decimals_for(low, high)
        text = "–"
        if mean is not None:
            text = f"{figure(mean, decimals)} ({interval(low, high, decimals)})"
        name = words(row.get("name"))
        if size is not None and bits is not None:
            first = number(rows[0].get("bits_per_byte"))
            ends = (None, None)
            if first is not None and low is not None and high is not None:
                ends = (first + low, first + high)  # type: ignore[assignment]
            dots.append(Dot(name, _in_unit(size, rows), bits, *ends, style=n))
        table.append(
            (
                Cell(name),
                Cell(words(row.get("type"))),
                Cell(figure(number(row.get("bits_per_weight"))), number=True),
                Cell(bytes_text(size), number=True),
                Cell(bytes_text(number(row.get("memory_bytes"))), number=True),
                Cell(figure(bits), number=True),
                Cell(text, number=True),
                *speeds(row),
            )
        )
    if not table:
        return []
    head = (
        "model",
        "type",
        "bits a weight",
        "file",
        "memory",
        "bits a byte of text",
        "more than the first",
        *OF_SPEED,
    )
    verdicts = at(run.record, "metrics", "verdicts")
    notes = [words(line) for line in verdicts] if isinstance(verdicts, list) else []
    notes.append("in brackets: intervals of 95 %; fewer bits a byte are better")
    blocks: list[Block] = [Table(f"Comparison {run.name}", head, tuple(table), tuple(notes))]
    if dots:
        told = "; ".join(f"{dot.label} {figure(dot.x)}: {figure(dot.y)}" for dot in dots)
        x_title, y_title = f"file, {_unit(rows)[1]}", "bits a byte of text"
        drawing = scatter(dots, x_title, y_title, f"Bits a byte and size of each model: {told}")
        text = "Quality against size: lower and further left is better"
        text += "; bars: 95 % of the difference from the first"
        blocks.append(Picture(text, drawing, Markup("")))
    return blocks


OF_SPEED = ("prompt tokens/s", "new tokens/s", "MBU")


def speeds(row: dict[str, Any]) -> list[Cell]:
    """What llama-bench has measured of a file."""
    rates = [number(at(row, "speed", name, "mean")) for name in ("prompt", "new")]
    mbu = percent(number(at(row, "speed", "mbu")))
    return [*(Cell(rate(value), number=True) for value in rates), Cell(mbu, number=True)]


def _change(ratio: float | None, error: float | None, errors: float) -> float | None:
    """In percent, from the logarithm of a ratio."""
    if ratio is None or error is None or ratio + errors * error > 50:
        return None
    return 100 * math.expm1(ratio + errors * error)


def _other(is_source: bool, value: Any, shown: Any) -> str:
    return "–" if is_source else str(shown(number(value)))


def _unit(rows: Sequence[dict[str, Any]]) -> tuple[float, str]:
    sizes = [number(row.get("bytes")) or number(row.get("file_bytes")) or 0.0 for row in rows]
    return (1e9, "GB") if max(sizes) >= 1e8 else (1e6, "MB")


def _in_unit(size: float, rows: Sequence[dict[str, Any]]) -> float:
    return size / _unit(rows)[0]


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
