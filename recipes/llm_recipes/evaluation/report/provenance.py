"""What was run on what: all that a record says about the run, its machine, its model and its data.

from llm_recipes.evaluation.report.provenance import provenance
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llm_recipes.evaluation.report.blocks import Block, Cell, Facts, Section, Table, Tone
from llm_recipes.evaluation.report.collect import ENDING, Run
from llm_recipes.evaluation.report.speed import device_of
from llm_recipes.evaluation.report.values import (
    at,
    bytes_text,
    count_text,
    duration,
    figure,
    moment_text,
    number,
    percent,
    rate,
    seconds_between,
    words,
)

SHORT = 12  # characters of a digest in a table
TONES: dict[str, Tone] = {"complete": "good", "failed": "bad"}
SIGNS = {"complete": "✓", "failed": "✗"}
# Files that recipes leave beside their records, in the order in which people look at them.
BESIDE = (
    "metrics.jsonl",
    "quality.md",
    "compare.md",
    "sweep.md",
    "table.md",
    "comparison.md",
    "comparison.json",
    "quality.json",
    "compare.json",
    "points.jsonl",
    "results.json",
    "summary.json",
    "predictions.json",
    "answers.jsonl",
    "questions.jsonl",
    "loss.png",
)
MOST_NUMBERS = 120
# Shown by name, or by another section.
KNOWN = (
    *("schema", "recipe", "started", "finished", "status", "argv", "cwd", "launch", "config"),
    *("code", "image", "environment"),
)
OF_OTHERS = (
    *("evaluation", "made_with", "rows", "changes", "comparisons"),
    *("config_hidden", "outputs", "results", "deterministic"),  # for programs: llm-record
)
OF_PARTS = ("host", "slurm", "model", "adapter", "data", "metrics")


def provenance(runs: Sequence[Run], output: Path) -> Section:
    """A table of all runs, and all of each."""
    blocks: list[Block] = [table(runs)]
    blocks += [facts(run, output) for run in runs]
    return Section("runs", "What was run", tuple(blocks))


def table(runs: Sequence[Run]) -> Table:
    """A row a run."""
    rows = []
    for run in runs:
        record = run.record
        took = seconds_between(record.get("started"), record.get("finished"))
        status = f"{SIGNS.get(run.status, '!')} {run.status}"
        rows.append(
            (
                Cell(run.name, link=f"#run-{runs.index(run) + 1}"),
                Cell(run.recipe),
                Cell(status, tone=TONES.get(run.status, "unsure")),
                Cell(moment_text(record.get("started"))),
                Cell(duration(took), number=True),
                Cell(model_name(run)),
                Cell(words(at(record, "model", "digest"))[:SHORT]),
                Cell(device_of(run)),
                Cell(image_of(run, SHORT)),
                Cell(commit_of(run, SHORT)),
            )
        )
    titles = ["run", "recipe", "status", "started", "took"]
    head = [*titles, "model", "its digest", "on", "image", "commit"]
    notes = []
    if any(run.status == "running" for run in runs):
        notes.append("running: it still does, or was killed before it could write its end")
    shown = list(range(len(head)))
    for n in (7, 8, 9):  # what is the same for all is said once
        values = {row[n].text for row in rows}
        if len(values) == 1 and (len(rows) > 1 or not rows[0][n].text):
            shown.remove(n)
            notes += [f"all {'with ' * (n > 7)}{head[n]} {text}" for text in values if text]
    cells = tuple(tuple(row[n] for n in shown) for row in rows)
    return Table("Runs", tuple(head[n] for n in shown), cells, tuple(notes))


def facts(run: Run, output: Path) -> Facts:
    """All of a run that is not shown elsewhere."""
    record = run.record
    found: list[tuple[str, str]] = [
        ("recipe", run.recipe),
        ("status", run.status),
        ("started", moment_text(record.get("started"))),
        ("finished", moment_text(record.get("finished"))),
        ("command", command_of(run)),
        ("folder", words(record.get("cwd"))),
        ("image", image_of(run)),
        ("commit", commit_of(run)),
    ]
    host = at(record, "host")
    found += named("host", host, ("site", "nodes", "kernel", "cpus", "device", "driver"))
    gpus = at(host, "gpus")
    if gpus:
        found.append(("GPUs", device_of(run) if isinstance(gpus, list) else words(gpus)))
    found += named("Slurm", at(record, "slurm"), ())
    found += named("model", at(record, "model"), ("files",), leave_out=True)
    found += named("adapter", at(record, "adapter"), ())
    found += named("data", at(record, "data"), ())
    others = [n for n in record if n not in (*KNOWN, *OF_PARTS, *OF_OTHERS)]
    found += [pair for name in others for pair in flat(name, record[name])]
    found += flat("", at(record, "metrics"))
    shown = [(name, text) for name, text in found if text]
    if len(shown) > MOST_NUMBERS:
        left = len(shown) - MOST_NUMBERS
        shown = [*shown[:MOST_NUMBERS], ("more", f"{left} values: see the record")]
    for title, place in (("settings", "config"), ("variables", "environment")):
        settings = at(record, place)
        if isinstance(settings, Mapping):
            given = {k: v for k, v in settings.items() if v is not None}
            text = ", ".join(f"{name} {words(value)}" for name, value in given.items())
            shown.append((title, text))
    return Facts(run.name, tuple(shown), links(run, output))


def links(run: Run, output: Path) -> tuple[tuple[str, str], ...]:
    """The record and files beside it, as addresses relative to the report."""
    folder = run.file.parent
    found = [run.file]
    if run.file.name.endswith(ENDING):
        stem = run.file.name.removesuffix(ENDING)
        found += [folder / name for name in (f"{stem}.jsonl", stem)]
    else:
        found += [folder / name for name in BESIDE]
        tasks = at(run.record, "evaluation", "tasks")
        if isinstance(tasks, Mapping):
            found += [folder / words(at(told, "scores")) for told in tasks.values()]
    for place in (("log",), ("slurm", "log"), ("slurm", "output")):
        log = at(run.record, *place)
        if isinstance(log, str) and log:
            found.append(folder / log)
    return tuple(
        (os.path.relpath(path, folder), address(path, output))
        for path in dict.fromkeys(found)
        if path.is_file()
    )


def address(path: Path, output: Path) -> str:
    """A file's address relative to the report's folder; a colon would be taken for a scheme."""
    return quote(os.fsencode(os.path.relpath(path, output)), safe="/")


def command_of(run: Run) -> str:
    """The command line, as a shell takes it."""
    argv = run.record.get("argv")
    if not isinstance(argv, list):
        return ""
    return shlex.join(part if isinstance(part, str) else words(part) for part in argv)


def image_of(run: Run, most: int | None = None) -> str:
    """The image's name and digest."""
    image = at(run.record, "image")
    name = words(at(image, "name"))
    variant = words(at(image, "variant"))
    if variant and variant not in name:
        name = f"{name} ({variant})" if name else variant
    digest = words(at(image, "digest"))
    short = digest.removeprefix("sha256:")[:most] if most else digest
    return " ".join(part for part in (name, short) if part)


def commit_of(run: Run, most: int | None = None) -> str:
    """The commit, and whether files differed from it."""
    commit = words(at(run.record, "code", "commit"))[:most]
    changed = at(run.record, "code", "dirty") is True
    return f"{commit}, with changes" if commit and changed else commit


def model_name(run: Run) -> str:
    """The model's own name, of an adapter with its base."""
    model = at(run.record, "model")
    paths = [at(model, name) for name in ("path", "base", "adapter")]
    names = [Path(path).name or path for path in paths if isinstance(path, str) and path]
    parameters = count_text(number(at(model, "parameters")))
    name = " + ".join(dict.fromkeys(names))
    return f"{name}, {parameters}" if name and parameters else name


def named(
    title: str, value: Any, names: Sequence[str], leave_out: bool = False
) -> list[tuple[str, str]]:
    """Parts of a record's part; names: which, all without any, or all but these."""
    if not isinstance(value, Mapping):
        return [(title, words(value))]
    chosen = [n for n in value if not names or (n in names) != leave_out]
    return [
        (f"{title}: {spelled}", text)
        for name in chosen
        for spelled, text in flat(name, value[name])
    ]


def flat(name: str, value: Any) -> list[tuple[str, str]]:
    """A value and those in it, each with its name and unit; what holds tables is only counted."""
    if isinstance(value, Mapping) and (not name or not any(map(_holds_more, value.values()))):
        start = f"{name} " if name else ""
        return [pair for key, inner in value.items() for pair in flat(f"{start}{key}", inner)]
    spelled = name.replace("_", " ")
    if isinstance(value, Mapping) or _holds_more(value):
        return [(spelled, f"{len(value)} entries")]
    return [(spelled, with_unit(name, value))]


def _holds_more(value: Any) -> bool:
    if isinstance(value, list):
        return any(isinstance(part, dict | list) for part in value)
    return isinstance(value, Mapping)


def with_unit(name: str, value: Any) -> str:
    """A value by the unit in its name."""
    known = number(value)
    if known is None:
        return words(value)
    if name.endswith("bytes_per_s"):
        return f"{bytes_text(known)}/s"
    if name.endswith("_per_s") or name.endswith("_per_min"):
        return rate(known)
    if name.endswith("bytes"):
        return bytes_text(known)
    if name.endswith("_s"):
        return duration(known)
    if name.endswith(("mfu", "mbu")):
        return percent(known)
    if name.endswith(("parameters", "tokens", "rows", "steps")) and known == int(known):
        return f"{known:,.0f}"
    return figure(known) if isinstance(value, float) else str(value)
