"""All sections of a report, of records that were read.

from llm_recipes.evaluation.report.sections import make_report
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_recipes.evaluation.report.answers import answers
from llm_recipes.evaluation.report.blocks import Report
from llm_recipes.evaluation.report.collect import Run
from llm_recipes.evaluation.report.comparisons import comparisons
from llm_recipes.evaluation.report.provenance import provenance
from llm_recipes.evaluation.report.quantization import quantization
from llm_recipes.evaluation.report.results import results
from llm_recipes.evaluation.report.speed import speed
from llm_recipes.evaluation.report.summary import summary
from llm_recipes.evaluation.report.training import training


def make_report(
    title: str,
    runs: Sequence[Run],
    notes: Sequence[str],
    output: Path,
    items: int,
    chosen: Sequence[str],
) -> Report:
    """Everything, in the order in which it is read.

    Args:
        title: Of the whole.
        runs: What it is about.
        notes: Records that can't be used, with the reason.
        output: Folder of the report, absolute: links start there.
        items: Answers at most.
        chosen: Items whose answers are shown instead.

    Raises:
        LLMError: If a chosen item isn't there.
    """
    found = [
        summary(runs, notes),
        comparisons(runs),
        results(runs),
        training(runs),
        quantization(runs),
        speed(runs),
        answers(runs, items, chosen),
        provenance(runs, output),
    ]
    return Report(title, tuple(section for section in found if section is not None))
