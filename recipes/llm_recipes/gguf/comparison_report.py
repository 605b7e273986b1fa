"""Models side by side: table, verdicts, compare.json, .md and .png.

from llm_recipes.gguf.comparison_report import report, table, verdicts, write_report
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_recipes.figures import save_figure
from llm_recipes.files import write_text
from llm_recipes.gguf.bench_points import Model
from llm_recipes.gguf.comparison import Difference, Scored, paired_difference, verdict
from llm_recipes.gguf.evaluation_text import Text
from llm_recipes.gguf.passages import Passage
from llm_recipes.gguf.quality_table import (
    MISSING,
    Speed,
    plain,
    rate_text,
    size_unit,
)
from llm_recipes.text_table import aligned


@dataclass(frozen=True)
class Entry:
    """A model that was measured. memory_bytes: weights, cache, scratch; estimated."""

    model: Model
    scored: Scored
    memory_bytes: int
    speed: Speed | None


@dataclass(frozen=True)
class Report:
    """A comparison. names: of the models, different from each other. differences: of each from the
    first, None for the first. one_tokenizer: whether all models see the same tokens.
    """

    entries: Sequence[Entry]
    names: Sequence[str]
    differences: Sequence[Difference | None]
    bits: Sequence[float]
    text: Text
    passages: Sequence[Passage]

    @property
    def bytes(self) -> int:
        """Of the passages."""
        return sum(passage.bytes for passage in self.passages)

    @property
    def unit(self) -> tuple[float, str]:
        """What sizes are shown in."""
        return size_unit(max(entry.model.file.bytes for entry in self.entries))

    @property
    def one_tokenizer(self) -> bool:
        """Whether every passage has as many tokens for all models: then it is one tokenizer."""
        return len({entry.scored.tokens for entry in self.entries}) == 1

    def as_record(self) -> dict[str, Any]:
        """Its figures."""
        rows = []
        for entry, name, difference, bits in zip(
            self.entries, self.names, self.differences, self.bits, strict=True
        ):
            row = {
                "name": name,
                "path": str(entry.model.file.path),
                **entry.model.described(),
                "file_bytes": entry.model.file.bytes,
                "memory_bytes": entry.memory_bytes,
                "bits_per_byte": bits,
                "more_than_first": None if difference is None else asdict(difference),
                "perplexity": entry.scored.perplexity,
                "tokens": sum(entry.scored.tokens),
                "speed": None if entry.speed is None else asdict(entry.speed),
            }
            rows.append(plain(row))
        return {
            "text": {"name": self.text.name, "digest": self.text.digest},
            "passages": len(self.passages),
            "bytes": self.bytes,
            "one_tokenizer": self.one_tokenizer,
            "rows": rows,
            "verdicts": verdicts(self),
        }


def report(entries: Sequence[Entry], text: Text, passages: Sequence[Passage]) -> Report:
    """Compare every model with the first."""
    first = entries[0].scored
    differences = [None, *(paired_difference(first, e.scored, passages) for e in entries[1:])]
    bits = [entry.scored.bits_per_byte(passages) for entry in entries]
    names = _names([entry.model for entry in entries])
    return Report(entries, names, differences, bits, text, passages)


def verdicts(found: Report) -> list[str]:
    """What the comparison says, in sentences."""
    size = found.entries[0].model.file.bytes
    lines = [
        verdict(found.names[0], name, difference, size, entry.model.file.bytes)
        for name, entry, difference in zip(
            found.names, found.entries, found.differences, strict=True
        )
        if difference is not None
    ]
    if len(lines) > 1:
        lines.append(
            f"{len(lines)} comparisons with intervals of 95 % each: the more there are,"
            " the likelier one of them is wrong"
        )
    words = "the same tokens for all models: perplexities compare too"
    if not found.one_tokenizer:
        words = "the models' tokens differ: their perplexities don't compare, bits per byte do"
    lines.append(
        f"text: {found.text.name}, {len(found.passages)} passages, {found.bytes} bytes; {words}"
    )
    return lines


def cells(found: Report) -> list[list[str]]:
    """The table's lines, titles first."""
    size, unit = found.unit
    lines = [["model", "type", "parameters", unit, "bits", "bits/byte", "more than first"]]
    lines[0] += ["perplexity", "tokens", f"memory {unit}", "prompt/s", "new/s", "MBU %"]
    for number, entry in enumerate(found.entries):
        file, speed, difference = entry.model.file, entry.speed, found.differences[number]
        more = MISSING
        if difference is not None:
            more = f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
        lines.append(
            [
                found.names[number],
                file.file_type,
                f"{file.parameters / 1e6:,.4g} M",
                f"{file.bytes / size:.2f}",
                f"{file.bits_per_weight:.2f}",
                f"{found.bits[number]:.4f}",
                more,
                f"{entry.scored.perplexity:.4g}",
                str(sum(entry.scored.tokens)),
                f"{entry.memory_bytes / size:.2f}",
                rate_text(speed, "prompt"),
                rate_text(speed, "new"),
                MISSING if speed is None or speed.mbu is None else f"{100 * speed.mbu:.0f}",
            ]
        )
    return lines


def table(found: Report) -> str:
    """The models as aligned text."""
    return aligned([[*line, ""] for line in cells(found)])


def write_report(found: Report, folder: Path) -> list[Path]:
    """Write compare.json, compare.md and compare.png.

    Raises:
        LLMError: If the folder cannot be written.
    """
    text = json.dumps({"schema": 1, **found.as_record()}, indent=2, ensure_ascii=False)
    write_text(folder / "compare.json", text + "\n")
    titles, *rows = cells(found)
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    write_text(
        folder / "compare.md", "\n".join([*lines, "", *map("- {}".format, verdicts(found))]) + "\n"
    )
    return [folder / "compare.json", folder / "compare.md", _plot(found, folder / "compare.png")]


def _plot(found: Report, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, entry in enumerate(found.entries):
        size = entry.model.file.bytes / found.unit[0]
        name, bits, difference = found.names[number], found.bits[number], found.differences[number]
        left.plot(size, bits, "o", color=f"C{number % 10}")
        left.annotate(name, (size, bits), xytext=(4, 4), textcoords="offset points", fontsize=8)
        mean, low, high = (0.0, 0.0, 0.0)
        if difference is not None:
            mean, low, high = difference.mean, difference.low, difference.high
        errors = [[mean - low], [high - mean]]
        right.errorbar(mean, number, xerr=errors, marker="o", capsize=3, color=f"C{number % 10}")
    left.set(xlabel=f"size, {found.unit[1]}", ylabel="bits per byte of text (less is better)")
    left.grid(alpha=0.3)
    left.margins(0.15)
    right.set(xlabel=f"bits per byte more than {found.names[0]}, 95 % interval")
    right.set_yticks(range(len(found.names)), found.names)
    right.axvline(0, color="gray", linewidth=0.8)
    right.invert_yaxis()
    right.grid(alpha=0.3)
    return save_figure(figure, path)


def _names(models: Sequence[Model]) -> list[str]:
    """Titles, with folders where two are the same."""
    titles = [model.title for model in models]
    return [
        title if titles.count(title) == 1 else f"{model.file.path.parent.name}/{title}"
        for title, model in zip(titles, models, strict=True)
    ]
