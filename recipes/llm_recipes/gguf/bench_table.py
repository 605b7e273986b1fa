"""What a benchmark found, as a table for people, CSV and Markdown.

from llm_recipes.gguf.bench_table import show, table
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_recipes.device import GB
from llm_recipes.gguf.bench_figures import Figure, Peak
from llm_recipes.gguf.bench_points import DONE, Measurement, Setting, varying
from llm_recipes.text_table import aligned

# Settings of llama-bench and their short names for people.
NAMES = {
    "threads": "threads",
    "batch": "batch",
    "micro_batch": "micro batch",
    "gpu_layers": "GPU layers",
    "split": "split",
    "shares": "shares",
    "kv_type": "K/V",
    "flash_attention": "flash",
    "depth": "depth",
    "hosts": "hosts",
}
ALWAYS = ("threads",)


@dataclass(frozen=True)
class Row:
    """A line of the table: a model under a setting, with its tests' figures."""

    model: dict[str, Any]
    setting: dict[str, Any]
    figures: tuple[Figure, ...]

    def of(self, test: Measurement) -> Figure | None:
        """The figure of a test, if it is there."""
        return next((figure for figure in self.figures if figure.test == test), None)


def rows_of(figures: Sequence[Figure]) -> list[Row]:
    """The table's lines: by the model's size, then by setting."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        group = repr((figure.model["digest"], figure.setting, figure.build.get("version")))
        groups.setdefault(group, []).append(figure)
    rows = [Row(group[0].model, group[0].setting, tuple(group)) for group in groups.values()]
    return sorted(rows, key=lambda row: (row.model["bytes"], place(row.setting)))


def place(setting: Mapping[str, Any]) -> list[tuple[float, str]]:
    """To sort settings: numbers by their size, words by the alphabet."""
    values = setting.values()
    return [(v, "") if isinstance(v, (int, float)) else (0.0, str(v)) for v in values]


def in_words(setting: Mapping[str, Any]) -> str:
    """The threads of a setting, and what is not llama-bench's usual one."""
    usual = Setting(threads=0)
    parts = [
        f"{title} {setting[name]}"
        for name, title in NAMES.items()
        if setting[name] != getattr(usual, name)
    ]
    return ", ".join(parts)


def tests_of(figures: Sequence[Figure]) -> list[Measurement]:
    """All tests, prompts first, short ones first."""
    found = {figure.test for figure in figures}
    return sorted(found, key=lambda test: (not test.prompt, test.tokens))


def table(figures: Sequence[Figure], peak: Peak) -> list[list[str]]:
    """The table as cells, its header first; of the settings those that vary, and the threads."""
    rows, tests = rows_of(figures), tests_of(figures)
    vary = varying([row.setting for row in rows])
    names = [name for name in NAMES if name in vary or name in ALWAYS]
    shares = any(figure.mbu(peak) is not None for figure in figures)
    header = ["model", "type", "GB", "bits/weight", *(NAMES[name] for name in names)]
    for test in tests:
        header += [f"{test.title}, tok/s", *(["MBU"] if shares and test.new else [])]
    lines = [[*header, "result"]]
    for row in rows:
        line = [str(row.model["title"]), str(row.model["type"])]
        line += [f"{row.model['bytes'] / GB:.3g}", f"{row.model['bits_per_weight']:.2f}"]
        line += [str(row.setting[name]) for name in names]
        for test in tests:
            figure = row.of(test)
            line.append(rate_text(figure))
            if shares and test.new:
                line.append(share_text(figure, peak))
        lines.append([*line, outcome(row)])
    return lines


def rate_text(figure: Figure | None) -> str:
    """Tokens/s with their standard deviation."""
    if figure is None or figure.rate is None:
        return "-"
    spread = "" if figure.spread is None else f" ± {digits(figure.spread, figure.rate)}"
    return f"{digits(figure.rate, figure.rate)}{spread}"


def digits(number: float, of: float) -> str:
    """A number with as many decimals as one of that size deserves."""
    return f"{number:.{0 if of >= 1000 else 1 if of >= 100 else 2}f}"


def share_text(figure: Figure | None, peak: Peak) -> str:
    """MBU in percent."""
    share = figure.mbu(peak) if figure is not None else None
    return "-" if share is None else f"{100 * share:.0f} %"


def outcome(row: Row) -> str:
    """How a row's tests ended."""
    ends: dict[str, None] = {}
    for figure in row.figures:
        if figure.status != DONE:
            note = f": {figure.note.splitlines()[0]}" if figure.note else ""
            ends[f"{figure.status}{note}"] = None
    return "; ".join(ends) or DONE


def show(lines: Sequence[Sequence[str]]) -> None:
    """Print a table: with rich on a terminal, plain elsewhere."""
    if not sys.stdout.isatty():
        print(aligned(lines, names=2), flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(padding=(0, 0))
    for n, name in enumerate(lines[0]):
        words = n in (0, 1, len(lines[0]) - 1)
        drawn.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for line in lines[1:]:
        drawn.add_row(*map(Text, line), style="" if line[-1] == DONE else "red")
    Console().print(drawn)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    last = len(lines[0]) - 1
    rule = ["---" if n in (0, 1, last) else "---:" for n in range(last + 1)]
    return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])]) + "\n"


def csv_text(figures: Sequence[Figure], peak: Peak) -> str:
    """Every figure with all that is known of it, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    of_model = ("title", "name", "type", "parameters", "bytes", "bits_per_weight", "digest")
    of_test = ("test", "tokens_per_s", "spread", "error_95", "rounds", "values", "mbu")
    writer.writerow([*of_model, *NAMES, *of_test, "status", "note", "version"])
    for row in rows_of(figures):
        for test in tests_of(row.figures):
            figure = row.of(test)
            assert figure is not None
            found = [test.title, figure.rate, figure.spread, figure.error, len(figure.samples)]
            found += [len(figure.values), figure.mbu(peak), figure.status, figure.note]
            model = [row.model[name] for name in of_model]
            setting = [row.setting[name] for name in NAMES]
            writer.writerow([*model, *setting, *found, figure.build.get("version")])
    return text.getvalue()
