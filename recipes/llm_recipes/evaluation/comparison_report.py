"""A comparison for a terminal, as Markdown and as JSON.

from llm_recipes.evaluation.comparison_report import table, sentences, write_comparison
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from llm_recipes.evaluation.run import EvaluatedRun
from llm_recipes.evaluation.verdict import (
    Comparison,
    Margin,
    as_record,
    chance,
    change,
    interval,
    sentence,
    value,
)
from llm_recipes.files import write_text
from llm_recipes.text_table import aligned


@dataclass(frozen=True)
class Found:
    """All that a call has found. margins: one a tested comparison, empty if not asked for."""

    runs: Mapping[str, EvaluatedRun]
    reference: str
    level: float
    comparisons: Sequence[Comparison]
    margins: Sequence[tuple[Comparison, float, Margin]]
    despite: Sequence[str]
    notes: Sequence[str]

    @property
    def main(self) -> list[Comparison]:
        """Those with a verdict."""
        return [c for c in self.comparisons if c.is_main]

    @property
    def tests(self) -> int:
        """Tests that were corrected for."""
        return sum(c.p is not None for c in self.comparisons)


def table(found: Found) -> str:
    """The comparisons with a verdict, for a terminal."""
    return aligned(_rows(found, found.main), names=2)


def sentences(found: Found) -> list[str]:
    """A verdict in words for each."""
    return [sentence(c, found.level, found.tests) for c in found.main]


def as_metrics(found: Found) -> dict[str, Any]:
    """What comparison.json and the record's metrics hold; see recipes/evaluate/compare.py."""
    return {
        "level": found.level,
        "tests": found.tests,
        "reference": found.reference,
        "runs": [_run(label, run) for label, run in found.runs.items()],
        "despite": list(found.despite),
        "notes": list(found.notes),
        "comparisons": [
            as_record(c)
            | {"sentence": sentence(c, found.level, found.tests) if c.is_main else None}
            for c in found.comparisons
        ],
        "margins": [
            {
                "task": c.task,
                "reference": c.reference,
                "other": c.other,
                "margin": margin,
                "passed": judged.passed,
                "sentence": judged.words,
            }
            for c, margin, judged in found.margins
        ],
    }


def write_comparison(found: Found, output: Path) -> list[Path]:
    """Write comparison.md and comparison.json.

    Raises:
        LLMError: If the folder, which is there, can't be written.
    """
    written = []
    told = json.dumps(as_metrics(found), indent=2, allow_nan=False) + "\n"
    for name, text in (("comparison.md", markdown(found)), ("comparison.json", told)):
        write_text(output / name, text.encode("utf-8", "backslashreplace").decode())
        written.append(output / name)
    return written


def markdown(found: Found) -> str:
    """The comparison as Markdown: table, verdicts, the other metrics, and what was compared."""
    lines = ["# Comparison", ""]
    lines += _markdown_table(_rows(found, found.main))
    lines += ["", *(f"- {_escaped(text)}" for text in sentences(found))]
    for _, _, judged in found.margins:
        lines.append(f"- {'passed' if judged.passed else 'FAILED'}: {_escaped(judged.words)}")
    rest = [c for c in found.comparisons if not c.is_main]
    if rest:
        lines += ["", "## Other metrics", ""]
        lines += ["Differences and intervals for reading; they are not tested.", ""]
        lines += _markdown_table([row[:-2] for row in _rows(found, rest)])
    lines += ["", "## Runs", ""]
    runs = [["run", "folder", "model", "evaluated"]]
    for label, run in found.runs.items():
        told = _run(label, run)
        model = " + ".join(str(told[key]) for key in ("model", "adapter") if told[key])
        runs.append([label, str(run.folder), model, str(told["finished"] or "")])
    lines += _markdown_table(runs)
    if found.despite:
        lines += ["", f"Compared despite: {_escaped(', '.join(found.despite))}."]
    lines += ["", *(f"- {_escaped(note)}" for note in found.notes)] if found.notes else []
    return "\n".join(lines) + "\n"


def _rows(found: Found, comparisons: Sequence[Comparison]) -> list[list[str]]:
    head = ["task", "metric", "reference", "run", "value", "value", "difference"]
    percent = f"{100 * (1 - found.level):g} % interval"
    rows = [[*head, percent, "p corrected", "verdict"]]
    for c in comparisons:
        p = "" if c.p_corrected is None else chance(c.p_corrected).removeprefix("= ")
        first, other = (value(c, number) for number in c.values)
        names = [c.task, c.metric, c.reference, c.other]
        rows.append([*names, first, other, change(c), interval(c), p, c.verdict or ""])
    return rows


def _run(label: str, run: EvaluatedRun) -> dict[str, Any]:
    tasks = run.record["evaluation"]["tasks"]
    scores = sorted((name, str(told.get("scores_digest"))) for name, told in tasks.items())
    model = run.record.get("model")
    model = model if isinstance(model, dict) else {}
    return {
        "name": label,
        "folder": str(run.folder),
        "digest": sha256(json.dumps(scores).encode()).hexdigest(),
        **{
            name: None if told is None else str(told)
            for name, told in (
                ("model", model.get("path")),
                ("adapter", model.get("adapter")),
                ("model_digest", model.get("digest")),
                ("finished", run.record.get("finished")),
            )
        },
    }


def same_model_notes(runs: Mapping[str, EvaluatedRun]) -> list[str]:
    """Which runs are of one model, as their records say."""
    by_digest: dict[tuple[str, str], list[str]] = {}
    for label, run in runs.items():
        told = _run(label, run)
        if told["model_digest"]:
            key = (str(told["model_digest"]), str(told["adapter"]))  # one base, several adapters
            by_digest.setdefault(key, []).append(label)
    return [
        f"{' and '.join(labels)} are of the same model"
        for labels in by_digest.values()
        if len(labels) > 1
    ]


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _escaped(text: str) -> str:
    one_line = " ".join(text.split())
    for sign in ("\\", "|", "`", "*", "_", "<", "[", "]"):
        one_line = one_line.replace(sign, "\\" + sign)
    return one_line
