"""Two benchmarks against each other: a ratio for each point that both have, and how sure it is.

    from llm_recipes.gguf.bench_compare import compare, comparison_lines
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_recipes.gguf.bench_figures import Figure, t_quantile
from llm_recipes.gguf.bench_points import varying
from llm_recipes.gguf.bench_table import NAMES, digits, in_words, place

HEADER = ["model", "type", "test", "A, tok/s", "B, tok/s", "B / A", "95 %", "verdict"]


@dataclass(frozen=True)
class Ratio:
    """A point that both have. ratio: B over A. error: half of its 95 % interval, None if nothing
    was repeated.
    """

    a: Figure
    b: Figure
    ratio: float
    error: float | None

    @property
    def verdict(self) -> str:
        """What the ratio says in view of its uncertainty."""
        if self.error is None:
            return "one repeat: not known"
        if abs(self.ratio - 1) <= self.error:
            return "within noise"
        return "B is faster" if self.ratio > 1 else "B is slower"


@dataclass(frozen=True)
class Comparison:
    """What two benchmarks have in common, what only one of them has, and what else differs."""

    ratios: tuple[Ratio, ...]
    only_a: tuple[Figure, ...]
    only_b: tuple[Figure, ...]
    notes: tuple[str, ...]


def compare(a: Sequence[Figure], b: Sequence[Figure]) -> Comparison:
    """Match points by model, type, setting and test, whichever llama.cpp and machine it was.

    If each has one model only, and they are different ones, these are compared with each other.
    """
    different = len(titles(a)) == len(titles(b)) == 1 and titles(a) != titles(b)
    of_a, of_b = (latest(figures, different) for figures in (a, b))
    common = [key for key in of_a if key in of_b]
    ratios = [ratio_of(of_a[key], of_b[key]) for key in common]
    return Comparison(
        tuple(ratio for ratio in ratios if ratio is not None),
        tuple(figure for key, figure in of_a.items() if key not in of_b),
        tuple(figure for key, figure in of_b.items() if key not in of_a),
        tuple(differences(a, b, different)),
    )


def titles(figures: Sequence[Figure]) -> set[tuple[str, str]]:
    """Models by name and type."""
    return {(str(figure.model["name"]), str(figure.model["type"])) for figure in figures}


def latest(figures: Sequence[Figure], whichever_model: bool) -> dict[str, Figure]:
    """Figures by what is compared; of several versions of llama.cpp the last one measured."""
    found = {}
    for figure in figures:
        model = None if whichever_model else [figure.model["name"], figure.model["type"]]
        parts = [model, figure.setting, [figure.test.prompt, figure.test.new]]
        found[json.dumps(parts, sort_keys=True)] = figure
    return found


def ratio_of(a: Figure, b: Figure) -> Ratio | None:
    """The ratio of two figures; None if one of them has failed.

    The error is that of a quotient of averages, with Welch's degrees of freedom for the t quantile
    (B. L. Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28).
    """
    if not a.rate or not b.rate:
        return None
    ratio = b.rate / a.rate
    parts = []
    for figure, rate in ((a, a.rate), (b, b.rate)):
        if figure.spread is None:
            return Ratio(a, b, ratio, None)
        count = len(figure.values)
        parts.append(((figure.spread / rate) ** 2 / count, count - 1))
    variance = sum(part for part, _ in parts)
    if not variance:
        return Ratio(a, b, ratio, 0.0)
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    return Ratio(a, b, ratio, ratio * t_quantile(max(1.0, freedom)) * math.sqrt(variance))


def differences(a: Sequence[Figure], b: Sequence[Figure], different: bool) -> list[str]:
    """What else is not the same in two benchmarks, in words."""
    notes = []
    if different:
        one, other = next(iter(titles(a))), next(iter(titles(b)))
        notes.append(f"different models: A is {' '.join(one)}, B is {' '.join(other)}")
    else:
        notes += [
            f"{' '.join(key)}: the files are not the same"
            for key in sorted(titles(a) & titles(b))
            if digests(a, key).isdisjoint(digests(b, key))
        ]
    for name, title in (("version", "llama.cpp"), ("cpu_info", "CPU"), ("gpu_info", "GPU")):
        one_text, other_text = built(a, name), built(b, name)
        if one_text != other_text:
            notes.append(f"{title}: A is {one_text or 'unknown'}, B is {other_text or 'unknown'}")
    return notes


def digests(figures: Sequence[Figure], title: tuple[str, str]) -> set[str]:
    """Identities of the files of a model."""
    return {
        str(figure.model["digest"])
        for figure in figures
        if (figure.model["name"], figure.model["type"]) == title
    }


def built(figures: Sequence[Figure], name: str) -> str:
    """What all results say of llama.cpp or the machine."""
    found = {str(figure.build[name]): None for figure in figures if figure.build.get(name)}
    return ", ".join(found)


def comparison_lines(found: Comparison) -> list[list[str]]:
    """The ratios as cells, the header first; of the settings those that vary."""
    ratios = sorted(found.ratios, key=order)
    names = vary([ratio.a.setting for ratio in ratios])
    lines = [[*HEADER[:2], *(NAMES[name] for name in names), *HEADER[2:]]]
    for ratio in ratios:
        a, b = ratio.a, ratio.b
        line = [str(a.model["title"]), str(a.model["type"])]
        line += [str(a.setting[name]) for name in names]
        line += [a.test.title, *(digits(f.rate or 0, f.rate or 0) for f in (a, b))]
        error = "-" if ratio.error is None else f"± {ratio.error:.3f}"
        lines.append([*line, f"{ratio.ratio:.3f}", error, ratio.verdict])
    return lines


def order(ratio: Ratio) -> tuple[Any, ...]:
    """To sort ratios: by model, setting, test."""
    a = ratio.a
    return (a.model["bytes"], place(a.setting), not a.test.prompt, a.test.tokens)


def vary(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of settings that have more than one value, in the order of the table."""
    found = varying(settings)
    return [name for name in NAMES if name in found]


def summary(found: Comparison) -> list[str]:
    """What stands below the table: what differs, how often which verdict, what only one has."""
    lines = list(found.notes)
    counts: dict[str, int] = {}
    for ratio in found.ratios:
        counts[ratio.verdict] = counts.get(ratio.verdict, 0) + 1
    said = ", ".join(f"{verdict}: {count}" for verdict, count in counts.items())
    lines.append(f"{len(found.ratios)} points in common; {said}" if said else "nothing in common")
    for name, figures in (("A", found.only_a), ("B", found.only_b)):
        lines += [f"only in {name}: {describe(figure)}" for figure in figures]
    return lines


def describe(figure: Figure) -> str:
    """A point in a line."""
    return f"{figure.model['title']} {figure.test.title}, {in_words(figure.setting)}"


def comparison_csv(found: Comparison) -> str:
    """All ratios with all settings, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rates = ("a_tokens_per_s", "b_tokens_per_s", "ratio", "error_95", "verdict")
    writer.writerow(["title", "type", *NAMES, "test", *rates])
    for ratio in sorted(found.ratios, key=order):
        model, setting = ratio.a.model, ratio.a.setting
        line = [model["title"], model["type"], *(setting[name] for name in NAMES)]
        line += [ratio.a.test.title, ratio.a.rate, ratio.b.rate, ratio.ratio, ratio.error]
        writer.writerow([*line, ratio.verdict])
    return text.getvalue()
