"""A run record for people: one screen, or a line each of several; and as JSON.

llm-record show runs/base
"""

from __future__ import annotations

import ast
import datetime
import os
import textwrap
from collections.abc import Sequence

from _llm.errors import LLMError
from _llm.record.code import find_code
from _llm.record.compare import flat
from _llm.record.content import file_sha256
from _llm.record.finding import GONE, OK, OTHER, UNKNOWN, Finding
from _llm.record.images import find_image, identity
from _llm.record.inputs import check_inputs
from _llm.record.reading import Record, find_record, inputs, plain, read_record, recipe_file
from _llm.record.surroundings import counts, hardware, this_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _llm.settings import Settings

WIDTH, INDENT = 100, 12
LONGEST_VALUE = 200
MOST_METRICS, MOST_RESULTS = 30, 10
UNITS = (("bytes_per_s", "B/s"), ("_per_s", "/s"), ("_per_min", "/min"), ("_bytes", "B"),
         ("_s", "s"), ("_ms", "ms"))
MOST = 10**300
BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
COLUMNS = ("record", "recipe", "status", "started", "took", "image", "commit", "model")


def screen(record: Record, home: str) -> str:
    """Return the record on one screen. home: the checkout, which may have the recipe."""
    rows: list[tuple[str, str]] = [
        ("run", f"{record.text('recipe')}: {record.text('status') or 'no status'}"),
        ("record", f"{record.path} ({record.digest})"),
        ("when", _when(record)), ("code", _code(record)), ("image", _image(record)),
    ]
    for part, given, path, content in inputs(record):
        known = f" ({path})" if path and path != given else ""
        digest = content or _older_digest(record, part)
        rows.append((part, f"{given or path}{known} {digest}".strip()))
    rows += [("host", _host(record)), ("slurm", _pairs(record.part("slurm"))),
             ("launch", _launch(record)), ("folder", record.text("cwd")),
             ("variables", _pairs({name: value for name, value in record.part("environment").items()
                                   if counts(name)}))]
    settings, defaults_known = changed_settings(record, home)
    rows.append(("config" if not defaults_known else "options", _pairs(settings) or "all as usual"))
    rows.append(("metrics", "; ".join(_metrics(record))))
    rows += [("results", line) for line in _results(record)]
    replayed = record.data.get("replay_of")
    if isinstance(replayed, dict):
        rows.append(("replay of", f"{replayed.get('path')} ({replayed.get('digest')})"))
    return "\n".join(_row(*row) for row in _named_once([row for row in rows if row[1]]))


def table(records: Sequence[tuple[str, Record]]) -> str:
    """Return a line for each record. records: the name that the user gave, and the record."""
    lines = [COLUMNS]
    for given, record in records:
        label, payload, by_inputs = identity(record)
        model = record.text("path", "model") or str(record.part("config").get("model") or "")
        digest = by_inputs or payload[7:19]
        lines.append((
            given, record.text("recipe"), record.text("status"), record.text("started")[:16],
            _took(record), f"{label} {digest}".strip(), record.text("commit", "code")[:12] + (
                "+" if record.part("code").get("dirty") is True else ""),
            os.path.basename(model.rstrip("/")),
        ))
    cells = [[plain(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in cells)


def check(record: Record, settings: Settings, home: str) -> list[Finding]:
    """Return what became of everything that the record names."""
    cache = settings.get("paths", "cache")
    code = find_code(record, home, cache)
    findings = [find_image(record, settings, home)[1], *code.findings]
    findings += check_inputs(record, cache)
    folder = os.path.dirname(record.path)
    for name, digest in record.part("results").items():
        findings.append(_check_result(os.path.join(folder, name), name, digest))
    for text in hardware(record, this_host()):
        findings.append(Finding("host", UNKNOWN, text))
    return findings


def changed_settings(record: Record, home: str) -> tuple[dict[str, Any], bool]:
    """Return the configuration without what has its default, and whether defaults are known.

    They are read from the recipe's file, if it is the recorded one; else everything is returned.
    """
    config = record.part("config")
    name, digest = recipe_file(record)
    path = os.path.join(home, name)
    try:
        if not digest or file_sha256(path) != digest:
            return config, False
        with open(path, encoding="utf-8") as file:
            known = defaults_of(file.read())
    except (OSError, ValueError, SyntaxError, RecursionError):
        return config, False
    if not known:
        return config, False
    return {name: value for name, value in config.items()
            if name not in known or known[name] != value}, True


def defaults_of(source: str) -> dict[str, Any]:
    """Return the defaults of the function that a recipe's file gives to run_recipe."""
    tree = ast.parse(source)
    given = [node.args[0].id for node in ast.walk(tree)
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_recipe"
             and node.args and isinstance(node.args[0], ast.Name)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in given:
            names = [argument.arg for argument in node.args.args]
            pairs = [*zip(names[len(names) - len(node.args.defaults):], node.args.defaults),
                     *zip((one.arg for one in node.args.kwonlyargs), node.args.kw_defaults)]
            return {name: ast.literal_eval(value) for name, value in pairs
                    if isinstance(value, (ast.Constant, ast.UnaryOp, ast.List, ast.Tuple))}
    return {}


def _check_result(path: str, name: str, digest: object) -> Finding:
    try:
        now = file_sha256(path)
    except OSError as error:
        return Finding("result", GONE, f"{name}: {error.strerror}")
    if not isinstance(digest, str):
        return Finding("result", UNKNOWN, f"{name}: the record has no hash of it")
    if now == digest:
        return Finding("result", OK, f"{name} {digest[:12]}")
    return Finding("result", OTHER, f"{name} has changed: {digest[:12]}, now {now[:12]}")


def _when(record: Record) -> str:
    started, finished = record.text("started"), record.text("finished")
    took = _took(record)
    return f"{started or '?'} to {finished or '?'}" + (f", {took}" if took else "")


def _took(record: Record) -> str:
    try:
        begin, end = (datetime.datetime.fromisoformat(record.text(name).replace("Z", "+00:00"))
                      for name in ("started", "finished"))
        seconds = (end - begin).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return ""
    if seconds < 0:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _code(record: Record) -> str:
    commit, dirty = record.text("commit", "code"), record.part("code").get("dirty")
    words = {True: "with changes that are not committed", False: "no unstaged changes"}
    state = words.get(dirty, "") if isinstance(dirty, bool) else ""
    name, digest = recipe_file(record)
    recipe = f"{name} {digest[:12]}" if digest else name
    files = record.text("files_sha256", "code")
    parts = (f"commit {commit or 'not known'}", state, recipe, files and f"recipes/ {files[:12]}")
    return ", ".join(part for part in parts if part)


def _image(record: Record) -> str:
    label, payload, by_inputs = identity(record)
    if not label:
        return "none: llm-run did not start the program"
    words = [label, payload]
    words += [f"from the inputs {by_inputs} ({label}-{by_inputs}.sif)"] if by_inputs else []
    return " ".join(word for word in words if word)


def _older_digest(record: Record, part: str) -> str:
    digest = record.text("digest", part)
    return f"digest {digest[:19]}" if digest else ""


def _host(record: Record) -> str:
    host = record.part("host")
    gpus = [str(gpu) for gpu in host["gpus"]] if isinstance(host.get("gpus"), list) else []
    counted = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    memory = host.get("memory_bytes")
    nodes = host.get("nodes")
    words = [", ".join(map(str, nodes)) if isinstance(nodes, list) else "",
             f"{host.get('cpus')} CPUs" if host.get("cpus") else "",
             record.text("cpu_model", "host"),
             _size(memory) if isinstance(memory, int) else "", *counted,
             f"driver {host['driver']}" if host.get("driver") else "",
             f"Linux {host['kernel']}" if host.get("kernel") else "",
             f"site {host['site']}" if host.get("site") else ""]
    return ", ".join(word for word in words if word)


def _launch(record: Record) -> str:
    launch = record.data.get("launch")
    return _pairs({name: value for name, value in launch.items() if value not in (None, False, {})}
                  ) if isinstance(launch, dict) else ""


def _pairs(values: dict[str, Any]) -> str:
    found = []
    for name, value in values.items():
        if value is None:
            continue
        text = plain(value)
        text = text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
        found.append(f"{name}={text}")
    return ", ".join(found)


def _metrics(record: Record) -> list[str]:
    found = [(name, value) for name, value in flat(record.part("metrics")) if value is not None]
    lines = [f"{name} {with_unit(name, value)}" for name, value in found[:MOST_METRICS]]
    more = len(found) - MOST_METRICS
    return [*lines, f"... and {more} more (--json has all)"] if more > 0 else lines


def with_unit(name: str, value: object) -> str:
    """Return a metric's value with the unit that its name ends in."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    unit = next((unit for end, unit in UNITS if name.endswith(end)), "")
    if unit[:1] == "B":
        return _size(value) + unit[1:]
    text = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return f"{text} {unit}".strip()


def _results(record: Record) -> list[str]:
    found = list(record.part("results").items())
    lines = [f"{name} {digest}" for name, digest in found[:MOST_RESULTS]]
    more = len(found) - MOST_RESULTS
    if more > 0:
        lines.append(f"... and {more} more files (--json has all)")
    if lines:
        promised = record.data.get("deterministic") is True
        lines.append("the same command gives these bytes again" if promised
                     else "the recipe does not promise the same bytes")
    return lines


def _size(count: float) -> str:
    number = float(min(max(count, -MOST), MOST))  # a damaged record may have any number
    for unit in BYTES:
        if abs(number) < 1024 or unit == BYTES[-1]:
            return f"{number:.4g} {unit}" if unit != "B" else f"{count:,} B"
        number /= 1024
    return ""


def _named_once(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the rows with a name only where it changes."""
    return [("" if number and rows[number - 1][0] == name else name, text)
            for number, (name, text) in enumerate(rows)]


def _row(name: str, text: str) -> str:
    lines = textwrap.wrap(plain(text), WIDTH - INDENT, break_long_words=False,
                          break_on_hyphens=False) or [""]
    return "\n".join([f"{name:<{INDENT}}{lines[0]}", *(" " * INDENT + line for line in lines[1:])])


def read_all(paths: Sequence[str]) -> tuple[list[tuple[str, Record]], list[LLMError]]:
    """Return the records that can be read, with the names that the user gave, and the faults."""
    found, faults = [], []
    for given in paths:
        try:
            found.append((given, read_record(find_record(given))))
        except LLMError as error:
            faults.append(error)
    return found, faults
