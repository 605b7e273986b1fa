"""The folder of answered questions: is it done already, is it ours, write what was found.

record = begin(folder, RECIPE, settings, device, made_with, found)
print(finish(folder, record, found, answered))

FOLDER/answers.jsonl      what the model wrote; answers.run.json beside it
FOLDER/predictions.json   {uid: [answer, scale]}
FOLDER/results.txt        the table
FOLDER/scores/, run.json  as llm_recipes.evaluation.run says
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_recipes.cli import Terminated
from llm_recipes.errors import LLMError
from llm_recipes.evaluation import predictions, tatqa_scores, text_scores
from llm_recipes.evaluation.asking import Answered
from llm_recipes.evaluation.evaluation_folder import record_unfinished
from llm_recipes.evaluation.judging import count_faults
from llm_recipes.evaluation.questions import Question, Questions
from llm_recipes.evaluation.run import RECORD, digest, read_run, write_tasks
from llm_recipes.files import write_fault, write_text
from llm_recipes.output_folder import check_output_folder
from llm_recipes.record import add_input, read_record, start_record, write_record
from llm_recipes.say import say

RESULTS, ANSWERS = "results.txt", "answers.jsonl"


def evaluated_with(
    answers_made_with: Mapping[str, Any],
    settings: Mapping[str, Any],
    found: Questions,
    asked: Sequence[Question],
) -> dict[str, Any]:
    """All that the results depend on."""
    return {
        **answers_made_with,
        "data": found.digest,
        "questions": digest([one.example.id for one in asked]),
        "scoring": tatqa_scores.VERSION if found.are_tatqa else text_scores.VERSION,
        "group_by": settings["group_by"] or [],
        "golds_column": settings["golds_column"],
    }


def kept_results(folder: Path, made_with: Mapping[str, Any]) -> str | None:
    """The table of an earlier run with these settings; None if there is none that is whole."""
    record = read_record(folder / RECORD) or {}
    if record.get("status") != "complete" or record.get("made_with") != made_with:
        return None
    try:
        read_run(folder)
        return (folder / RESULTS).read_text(encoding="utf-8").rstrip("\n")
    except (LLMError, OSError, ValueError):
        return None


@contextmanager
def begun(
    folder: Path,
    recipe: str,
    settings: Mapping[str, Any],
    device: str,
    made_with: Mapping[str, Any],
    found: Questions,
    repeatable: bool,
    inputs: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """The record of a run that begins, in a folder that is new or of an earlier run.

    repeatable: the same command gives the same bytes. inputs: what is read besides the questions.
    If the run doesn't get to its end, the record says so, unless it is that of an earlier one.

    Raises:
        LLMError: If it holds something else, or can't be written.
    """
    check_output_folder(folder, RECORD, recipe, "run of questions")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(folder, error) from error
    _check_kind(folder, made_with, settings["overwrite"])
    record = start_record(recipe, settings, device, deterministic=repeatable)
    for part, path in {"data": found.path, **inputs}.items():
        add_input(record, part, path)
    record["made_with"] = dict(made_with)
    record["data"] = {
        "path": found.path,
        "digest": found.digest,
        "rows": len(found.questions),
        "bad_rows": found.bad,
    }
    # The folder is ours from now on, whatever ends this run.
    if read_record(folder / RECORD) is None:
        write_record(folder / RECORD, record, "running")
    status = "failed"
    try:
        yield record
        status = "complete"
    except (KeyboardInterrupt, Terminated):
        status = "interrupted"
        raise
    finally:
        if status != "complete":
            record_unfinished(folder, record, status)


def finish(folder: Path, record: dict[str, Any], found: Questions, answered: Answered) -> str:
    """Write predictions, scores and the record; returns the table.

    Raises:
        LLMError: If the folder can't be written or is full.
    """
    from llm_recipes.evaluation.question_results import question_task, result_table

    task = question_task(found, answered.judged, answered.seen, answered.conditions)
    faults = count_faults(answered.judged)
    table = result_table(task, faults)
    given = {one.question.example.id: one.prediction for one in answered.judged}
    predictions.write_predictions(folder / predictions.FILE, given)
    write_text(folder / RESULTS, table + "\n")
    write_tasks(folder, [task], record)
    record["model"] = answered.model
    shares = {name: metric.value for name, metric in task.metrics.items()}
    counts = {"questions": len(answered.judged), "unread": faults}
    record["metrics"] = {**answered.metrics, **counts, **shares}
    names = [predictions.FILE, RESULTS]
    names += [one["scores"] for one in record["evaluation"]["tasks"].values()]
    names += [ANSWERS] if (folder / ANSWERS).is_file() else []
    write_record(folder / RECORD, record, "complete", results=names)
    say(f"written: {folder}")
    return table


def table_of(found: Questions, answered: Answered) -> str:
    """The table of results that are not kept."""
    from llm_recipes.evaluation.question_results import question_task, result_table

    task = question_task(found, answered.judged, answered.seen, answered.conditions)
    return result_table(task, count_faults(answered.judged))


def _check_kind(folder: Path, made_with: Mapping[str, Any], overwrite: bool) -> None:
    """A model's answers and a file's are not mixed, nor two files'.

    What else differs is seen where the answers are continued.
    """
    earlier = (read_record(folder / RECORD) or {}).get("made_with")
    if overwrite or not isinstance(earlier, dict):
        return
    before, now = (one.get("predictions") for one in (earlier, made_with))
    if before != now:
        told = [f"the predictions {one}" if one else "a model's answers" for one in (before, now)]
        why = f"it was {told[0]} and is {told[1]}"
        fix = "choose another --output, or --overwrite"
        raise LLMError(f"{folder} holds the results of other answers", why, fix)
