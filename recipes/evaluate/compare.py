"""Compare evaluated models: better, worse, or no detectable difference, and how sure that is.

    llm-run python recipes/evaluate/compare.py --run runs/base --run runs/lora --output comparison
    llm-run python recipes/evaluate/compare.py --run runs/base --run runs/q4 \\
        --fail-if-worse --margin 0.01

The runs are folders that harness.py or qa.py have written. They are compared item by item, so they
must be of the same items, asked and scored in the same way; otherwise this says what differs.
docs/evaluation-comparison.md tells which test is taken when, and why.

OUTPUT gets comparison.md, comparison.json and run.json, whose "metrics" are what comparison.json
holds:
    level, tests      of the tests; so many were corrected for (Holm)
    reference         label of the run that the others are compared with
    runs              name (label), folder, digest (of all scores), model, adapter, model_digest,
                      finished
    despite, notes    conditions that were let pass; what else one has to know
    comparisons       one a pair, task and metric: see Comparison in evaluation/verdict.py; those
                      with is_main have p, p_corrected, verdict and sentence, others only intervals
    margins           with --fail-if-worse: task, reference, other, margin, passed, sentence
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.evaluation.comparison_report import Found
    from llm_recipes.evaluation.run import EvaluatedRun

RECIPE = "evaluate/compare"
RECORD = "run.json"
WORSE = 1  # exit status


def compare(
    run: list[str],
    against: str | None = None,
    all_pairs: bool = False,
    names: list[str] | None = None,
    task: list[str] | None = None,
    metric: str | None = None,
    level: float = 0.05,
    despite: list[str] | None = None,
    output: Path | None = None,
    fail_if_worse: bool = False,
    margin: list[str] | None = None,
) -> int:
    """Compare evaluated models: better, worse, or no detectable difference, and how sure that is.

    Args:
        run: Folder of an evaluation, repeat the option; the others are compared with the first.
        against: Name or folder of the run that the others are compared with; null: the first.
        all_pairs: Compare each run with each other one.
        names: Names for the runs, one for each in their order; null: those of their folders.
        task: Task to compare, repeat the option; null: all that runs have in common.
        metric: Metric that decides, where a task has it; null: each task's main one.
        level: Probability of a false difference among all tests together; intervals have 1 - level.
        despite: Condition that may differ, such as chat_template; repeat the option.
        output: Folder for comparison.md, comparison.json and run.json; null: only what is printed.
        fail_if_worse: Exit with 1 unless each run is shown to be less than --margin worse.
        margin: In the metric's own unit, 0.01 is one point of a share; TASK=M for a single task.
    """
    settings = dict(locals())
    from llm_recipes.evaluation.run_labels import label_runs, reference_of

    faults = []
    if not 0 < level < 0.5:
        faults.append(LLMError(f"--level {level} is not possible", "it is between 0 and 0.5"))
    margins = read_margins(margin or [], fail_if_worse, faults)
    if output is not None:
        from llm_recipes.output_folder import check_output_folder

        output = output.expanduser().absolute()
        faults += faults_of(lambda: check_output_folder(output, RECORD, RECIPE, "comparison"))
    runs = label_runs([Path(path) for path in run], names, faults)
    reference = reference_of(runs, against, faults)
    raise_all(faults)
    pairs = pairs_of(list(runs), reference, all_pairs)
    tasks = choose_tasks(runs, pairs, task)
    found = examine(settings, runs, reference, pairs, tasks)
    found = with_margins(found, margins)
    show(found)
    if output is not None:
        write(settings, found, output)
    return WORSE if any(not judged.passed for _, _, judged in found.margins) else 0


def read_margins(
    texts: Sequence[str], wanted: bool, faults: list[LLMError]
) -> dict[str | None, float]:
    """Margins by task, None for all others; what is wrong is added to the faults."""
    import math

    margins: dict[str | None, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            margin = float(number)
        except ValueError:
            margin = math.nan
        if not (math.isfinite(margin) and margin >= 0):
            why = "expected a number from 0 in the metric's own unit, or TASK=M"
            faults.append(LLMError(f"--margin {text} is no margin", why, "such as 0.01"))
        margins[name if equals else None] = margin
    if wanted and not texts:
        why = "no number of items can show that nothing at all was lost"
        fix = "such as --margin 0.01, which is one point of a share; 0: it must be better"
        faults.append(LLMError("--fail-if-worse needs --margin", why, fix))
    if texts and not wanted:
        fix = "--fail-if-worse, or leave --margin out"
        faults.append(LLMError("--margin is of use only with --fail-if-worse", fix=fix))
    return margins


def pairs_of(labels: Sequence[str], reference: str, all_pairs: bool) -> list[tuple[str, str]]:
    """Pairs to compare: the reference and each other one, or all; the reference comes first."""
    ordered = [reference, *(label for label in labels if label != reference)]
    firsts = ordered[:-1] if all_pairs else [reference]
    return [(a, b) for place, a in enumerate(firsts) for b in ordered[place + 1 :]]


def choose_tasks(
    runs: Mapping[str, EvaluatedRun], pairs: Sequence[tuple[str, str]], asked: list[str] | None
) -> list[str]:
    """Tasks to compare.

    Raises:
        LLMError, ExceptionGroup: If an asked one is not there, or runs have none in common.
    """
    import difflib

    from llm_recipes.evaluation.comparability import common_tasks

    common = common_tasks(list(runs.values()))
    faults = []
    for name in asked or []:
        if name not in common:
            near = difflib.get_close_matches(name, common, 1)
            fix = f"did you mean {near[0]}?" if near else f"in common: {', '.join(common)}"
            faults.append(LLMError(f"--task {name} is not in two of the runs", fix=fix))
    raise_all(faults)
    tasks = [name for name in common if not asked or name in asked]
    for first, other in pairs:
        if not any(name in runs[first].tasks and name in runs[other].tasks for name in tasks):
            why = "; ".join(f"{k} has {', '.join(runs[k].tasks) or 'none'}" for k in (first, other))
            what = f"{other} can't be compared with {first}: they have no task in common"
            faults.append(LLMError(what, why, "evaluate one of them again with the other's tasks"))
    raise_all(faults)
    return tasks


def examine(
    settings: Mapping[str, Any],
    runs: Mapping[str, EvaluatedRun],
    reference: str,
    pairs: Sequence[tuple[str, str]],
    tasks: Sequence[str],
) -> Found:
    """Check that the runs can be compared, and compare them.

    Raises:
        LLMError, ExceptionGroup: Every reason why they can't.
    """
    from llm_recipes.evaluation.comparability import comparison_faults, used_despite
    from llm_recipes.evaluation.comparing import (
        Table,
        compare_runs,
        metric_faults,
        score_faults,
    )
    from llm_recipes.evaluation.comparison_report import Found, same_model_notes

    despite, metric = settings["despite"] or [], settings["metric"]
    faults = comparison_faults(runs, pairs, tasks, despite)
    faults += metric_faults(runs, pairs, tasks, metric)
    table = Table(runs)
    faults += score_faults(table, tasks, metric)
    raise_all(faults)
    notes = same_model_notes(runs)
    if settings["task"] is None:
        for label, run in runs.items():
            alone = [name for name in run.tasks if name not in tasks]
            notes += [f"only in {label}, not compared: {', '.join(alone)}"] if alone else []
    used, unused = used_despite(runs, pairs, tasks, despite)
    notes += [f"--despite {name} was not needed: nothing differs in it" for name in unused]
    comparisons = compare_runs(table, pairs, tasks, metric, settings["level"])
    return Found(runs, reference, settings["level"], comparisons, (), used, notes)


def with_margins(found: Found, margins: Mapping[str | None, float]) -> Found:
    """Judge each comparison with a verdict by its margin.

    Raises:
        LLMError, ExceptionGroup: If a margin is of no task, or a task has none.
    """
    from dataclasses import replace

    from llm_recipes.evaluation.verdict import judge_margin

    if not margins:
        return found
    tasks = list(dict.fromkeys(c.task for c in found.main))
    faults = [
        LLMError(
            f"--margin {name}={number:g} is of no task here", fix=f"one of: {', '.join(tasks)}"
        )
        for name, number in margins.items()
        if name is not None and name not in tasks
    ]
    if None not in margins and any(name not in margins for name in tasks):
        without = ", ".join(name for name in tasks if name not in margins)
        faults.append(LLMError("some tasks have no margin", without, "--margin M for all others"))
    raise_all(faults)
    judged = []
    for c in found.main:
        margin = margins.get(c.task, margins.get(None, 0.0))
        judged.append((c, margin, judge_margin(c, margin)))
    return replace(found, margins=judged)


def show(found: Found) -> None:
    """Print table, verdicts and margins."""
    from llm_recipes.evaluation.comparison_report import sentences, table

    print(table(found))
    print()
    for line in sentences(found):
        print(line)
    if found.despite:
        print(f"compared despite: {', '.join(found.despite)}")
    if found.margins:
        print()
    for _, _, judged in found.margins:
        print(f"{'passed' if judged.passed else 'FAILED'}: {judged.words}")
    for note in found.notes:
        say(note)


def write(settings: Mapping[str, Any], found: Found, output: Path) -> None:
    """Write comparison.md, comparison.json and the record.

    The record comes first and says so: if the disk is full, the folder is still a comparison's.
    """
    from llm_recipes.evaluation.comparison_report import as_metrics, write_comparison
    from llm_recipes.evaluation.run import SCORES
    from llm_recipes.files import write_fault
    from llm_recipes.record import add_input, start_record, write_record

    record = start_record(RECIPE, settings, "cpu", deterministic=True)
    folders = [run.folder for run in found.runs.values()]
    add_input(record, "data", [folder / SCORES for folder in folders], list(map(str, folders)))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(output, error) from error
    write_record(output / RECORD, record, "running")
    written = write_comparison(found, output)
    record["metrics"] = as_metrics(found)
    names = [path.name for path in written]
    write_record(output / RECORD, record, "complete", results=names)
    say(f"written: {', '.join(str(path) for path in written)}")


if __name__ == "__main__":
    run_recipe(compare)
