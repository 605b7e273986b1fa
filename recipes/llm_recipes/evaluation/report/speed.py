"""Throughput and memory of all runs, sweeps and benchmarks.

from llm_recipes.evaluation.report.speed import speed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.report.blocks import Block, Cell, Section, Table
from llm_recipes.evaluation.report.collect import Run
from llm_recipes.evaluation.report.values import (
    at,
    bytes_text,
    duration,
    number,
    percent,
    rate,
    seconds_between,
    words,
)

SWEEP, BENCH = "finetune/sweep", "quantized/bench"
MOST_ROWS = 200
# A column's title, names of its number in records (the first that is there), and how it is shown.
COLUMNS: tuple[tuple[str, tuple[str, ...], Callable[[float | None], str]], ...] = (
    ("load", ("load_s",), duration),
    ("prompt tokens/s", ("prompt_tokens_per_s",), rate),
    ("tokens/s", ("tokens_per_s",), rate),
    ("decode tokens/s", ("decode_tokens_per_s",), rate),
    ("items/s", ("items_per_s", "questions_per_s", "requests_per_s"), rate),
    ("MFU", ("mfu", "prompt_mfu"), percent),
    ("MBU", ("decode_mbu", "mbu"), percent),
    ("peak GPU memory", ("peak_gpu_bytes",), bytes_text),
    ("peak host memory", ("peak_host_bytes",), bytes_text),
)


def speed(runs: Sequence[Run]) -> Section | None:
    """Tables of all that was measured; None if nothing was."""
    blocks: list[Block] = []
    table = of_runs(runs)
    if table is not None:
        blocks.append(table)
    for run in runs:
        if run.recipe == SWEEP:
            blocks += [block for block in [of_sweep(run)] if block is not None]
        if run.recipe == BENCH:
            blocks += [block for block in [of_bench(run)] if block is not None]
    return Section("speed", "Throughput and memory", tuple(blocks)) if blocks else None


def of_runs(runs: Sequence[Run]) -> Table | None:
    """A row a run that has such numbers, and the columns that any has."""
    found = []
    for run in runs:
        metrics = at(run.record, "metrics")
        values = [
            next((v for n in names if (v := number(at(metrics, n))) is not None), None)
            for _, names, _ in COLUMNS
        ]
        if any(value is not None for value in values):
            found.append((run, values))
    if not found:
        return None
    shown = [n for n in range(len(COLUMNS)) if any(v[n] is not None for _, v in found)]
    rows = []
    for run, values in found:
        took = seconds_between(run.record.get("started"), run.record.get("finished"))
        cells = [Cell(run.name), Cell(device_of(run))]
        cells += [Cell(COLUMNS[n][2](values[n]), number=True) for n in shown]
        rows.append((*cells, Cell(duration(took), number=True)))
    head = ("run", "on", *(COLUMNS[n][0] for n in shown), "whole run")
    notes = (
        "MFU and MBU: shares of the device's arithmetic and memory bandwidth; – is unknown",
        "tokens without padding; of trainings over all processes, of generation without loading",
    )
    return Table("Runs", head, tuple(rows), notes)


def of_sweep(run: Run) -> Table | None:
    """A sweep's runs."""
    rows = []
    for row in _rows(run.record.get("rows")):
        rows.append(
            (
                Cell(words(row.get("name"))),
                Cell(duration(number(row.get("step_s"))), number=True),
                Cell(rate(number(row.get("tokens_per_s"))), number=True),
                Cell(bytes_text(number(row.get("peak_bytes"))), number=True),
                Cell(bytes_text(number(row.get("predicted_bytes"))), number=True),
                Cell(words(row.get("status"))),
            )
        )
    if not rows:
        return None
    head = ("settings", "step", "tokens/s", "peak memory", "predicted", "result")
    notes = [f"the most tokens a second: {words(run.record.get('best')) or 'none'}"]
    changes = run.record.get("changes")
    notes += [words(line) for line in changes] if isinstance(changes, list) else []
    return Table(f"Sweep {run.name}", head, tuple(rows[:MOST_ROWS]), tuple(notes))


def of_bench(run: Run) -> Table | None:
    """A benchmark's figures, from the points beside its record."""
    from llm_recipes.gguf.bench_figures import gather
    from llm_recipes.gguf.bench_points import varying
    from llm_recipes.gguf.bench_results import RESULTS, read_results

    folder = run.file.parent
    try:
        figures = gather(read_results(folder)) if (folder / RESULTS).is_file() else []
        figures = [figure for figure in figures if isinstance(figure.setting, dict)]
    except (LLMError, KeyError, TypeError, ValueError, AttributeError):
        figures = []
    names = varying([figure.setting for figure in figures])
    rows = []
    for figure in figures[:MOST_ROWS]:
        error = f" ± {rate(figure.error)}" if figure.rate and figure.error else ""
        setting = ", ".join(f"{name} {words(figure.setting.get(name))}" for name in names)
        rows.append(
            (
                Cell(words(figure.model.get("title"))),
                Cell(figure.test.title),
                Cell(f"{rate(figure.rate)}{error}" if figure.rate else "–", number=True),
                Cell(figure.status if not figure.note else f"{figure.status}: {figure.note}"),
                Cell(setting or "–"),
            )
        )
    if not rows:
        return None
    same = {k: v for f in figures for k, v in f.setting.items() if k not in names}
    notes = [
        f"all with {', '.join(f'{name} {words(value)}' for name, value in same.items() if value)}",
        "ppN: a prompt of N tokens; tgN: generating N tokens; ±: half of the 95 % interval",
        f"llama.cpp {words(at(run.record, 'metrics', 'llama_cpp')) or 'unknown'}",
    ]
    if len(figures) > MOST_ROWS:
        notes.append(f"{len(figures) - MOST_ROWS} more are left out")
    head = ("model", "test", "tokens/s", "result", "settings")
    return Table(f"Benchmark {run.name}", head, tuple(rows), tuple(notes))


def device_of(run: Run) -> str:
    """What computed: GPUs, or the processor."""
    gpus = at(run.record, "host", "gpus")
    if isinstance(gpus, list) and gpus:
        kinds = list(dict.fromkeys(words(gpu) for gpu in gpus))
        return f"{len(gpus)} × {', '.join(kinds)}" if len(gpus) > 1 else kinds[0]
    device = words(at(run.record, "host", "device") or run.record.get("device"))
    cpus = at(run.record, "host", "cpus")
    count = f"{cpus} CPU{'' if cpus == 1 else 's'}" if cpus else ""
    return ", ".join(part for part in (device, count) if part)


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
