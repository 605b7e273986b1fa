"""Ask a model questions and score its answers: TAT-QA, or any file of questions with answers.

    llm-run python recipes/evaluate/qa.py --model FOLDER --data tatqa_dataset_dev.json \\
        --output runs/base
    llm-run python recipes/evaluate/qa.py --model FOLDER --adapter out \\
        --data tatqa_dataset_dev.json --output runs/lora
    llm-run python recipes/evaluate/qa.py --data tatqa_dataset_dev.json --sid 100 \\
        --beside runs/base --beside runs/lora
    llm-run python recipes/evaluate/qa.py --data tatqa_dataset_dev.json \\
        --predictions sample_prediction.json

Exact match, F1 and scale by TAT-QA's official rules; for other files exact match and F1 of words.
OUTPUT gets answers.jsonl, predictions.json ({uid: [answer, scale]}), scores/ and run.json, which
compare.py and report.py read. A run that was stopped goes on with the same command. With --sid
single questions are shown, with the answers of several models beside each other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.examples import Columns, DataOptions
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.evaluation.answering_model import AnsweringModel
    from llm_recipes.evaluation.judging import Judged, Prediction
    from llm_recipes.evaluation.questions import Question, Questions
    from llm_recipes.evaluation.run import EvaluatedRun

RECIPE = "evaluate/qa"
ANSWERS = "answers.jsonl"


def qa(
    data: str,
    model: str | None = None,
    adapter: str | None = None,
    output: Path | None = None,
    predictions: Path | None = None,
    sid: list[str] | None = None,
    beside: list[Path] | None = None,
    format: Literal["auto", "dolly", "alpaca", "tatqa", "messages", "columns"] = "auto",
    prompt_column: str | None = None,
    response_column: str | None = None,
    input_column: str | None = None,
    context_column: str | None = None,
    golds_column: str | None = None,
    group_by: list[str] | None = None,
    skip_bad: bool = False,
    prompt_style: Literal["auto", "raw", "chat", "alpaca"] = "auto",
    system: str | None = None,
    max_new_tokens: int = 128,
    stop: list[str] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    overwrite: bool = False,
    device: str = "auto",
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    trust_remote_code: bool = False,
    gpu_layers: int | Literal["auto", "all"] = "auto",
    threads: int | Literal["auto"] = "auto",
) -> int:
    """Ask a model questions and score its answers: TAT-QA, or any file of questions with answers.

    Args:
        data: File, folder, or a hub's dataset (OWNER/NAME) with questions and answers.
        model: Model folder, a hub's name (OWNER/NAME), or a GGUF file; null: the adapter's base, or
            nothing is asked.
        adapter: PEFT adapter (folder or hub's name), merged into the model; null: none.
        output: Folder for answers, predictions, scores and the record; null: only for --sid and
            --predictions, whose results are printed.
        predictions: Score this file of answers, {uid: [answer, scale]}, in place of a model's.
        sid: Show these questions: a number from 0, a list (3,7,12), a range (10-20), or ids; with a
            model only they are asked, with --output only they are scored. Repeat the option for
            more.
        beside: Folder of an earlier run, whose answers are shown beside; repeat the option.
        format: What the rows hold; auto: found from the first of them.
        prompt_column: Column of the question; null: prompt or question.
        response_column: Column of the answer; null: response, completion or answer.
        input_column: Column of what the question is about; null: none.
        context_column: Column that says which questions belong together; null: the same input.
        golds_column: Column of further right answers, a text or a list of them; null: none.
        group_by: Column by which results are broken down; repeat the option for several.
        skip_bad: Leave out rows that can't be used.
        prompt_style: raw, chat or alpaca; auto: as in training: the model's chat template, else
            alpaca's form.
        system: System message for chats that have none.
        max_new_tokens: Tokens of an answer at most; one that is cut off there counts as unread.
        stop: Text that ends an answer and is cut off; repeat the option for several.
        temperature: 0 takes the likeliest token each time; 1 samples as the model says.
        top_p: Sample from the likeliest tokens that hold this share of the probability; 1 is off.
        seed: Of the sampling noise.
        batch_size: Questions at once; auto: what fits into memory.
        overwrite: Start anew although the output is there.
        device: auto, cpu, cuda or cuda:N; not for GGUF files.
        dtype: Precision; auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on CPUs.
        compile: CUDA graphs; auto: on a GPU when the run is long enough.
        trust_remote_code: Run Python code that the model brings along, with your rights.
        gpu_layers: Layers on GPUs, for GGUF files; auto: as many as fit.
        threads: CPU threads, for GGUF files; auto: as tuned (tune.py), else what was granted.
    """
    settings = dict(locals())
    columns = Columns(prompt_column, response_column, input_column, context_column)
    options = DataOptions(
        data, format, columns, prompt_style, system, held_out=0.0, skip_bad=skip_bad
    )
    raise_all(faults_of(settings, options))
    from llm_recipes.evaluation.predictions import read_predictions
    from llm_recipes.evaluation.questions import chosen_numbers, read_questions
    from llm_recipes.evaluation.run import read_run

    runs = [read_run(path) for path in beside or []]
    given = None if predictions is None else read_predictions(predictions.expanduser())
    asks = model is not None or adapter is not None
    scores = output is not None or given is not None
    found = read_questions(options, group_by or [], golds_column, say, needs_answer=scores)
    numbers = chosen_numbers(sid, found) if sid else list(range(len(found.questions)))
    asked = [found.questions[number] for number in numbers]
    judged: list[Judged] = []
    name = ""
    if given is not None:
        name = Path(settings["predictions"]).name
        judged = score_predictions(settings, found, asked, given)
    elif asks:
        name, judged = ask(settings, found, asked)
    if sid and (output is None or runs):
        show(asked, name, judged, runs)
    return 0


def faults_of(settings: Mapping[str, Any], options: DataOptions) -> list[LLMError]:
    """Everything about the command line that is wrong whatever the data and the model are."""
    from llm_recipes import examples, generation_options
    from llm_recipes.evaluation.answering_model import FIXED, engine_faults

    o = settings
    asks = o["model"] is not None or o["adapter"] is not None
    faults = examples.option_faults(options)
    generation = {**o, **FIXED, "prompts": o["data"], "output": None}
    faults += generation_options.option_faults(generation)
    if asks:
        faults += engine_faults(o)
    if asks and o["predictions"] is not None:
        why = "either a model answers, or its answers are in a file"
        faults.append(LLMError("--predictions goes without --model", why, "leave one of them out"))
    if asks and o["output"] is None and not o["sid"]:
        why = "answers that took long would be lost"
        fix = "--output FOLDER; or --sid 100 for single questions"
        faults.append(LLMError("--output is missing", why, fix))
    if not asks and o["predictions"] is None and not o["sid"]:
        fix = "--model FOLDER, --predictions FILE, or --sid 100 to show a question"
        why = "no model, no predictions, no --sid"
        faults.append(LLMError("nothing is asked or shown", why, fix))
    if not asks and o["predictions"] is None and o["output"] is not None:
        fix = "--model FOLDER or --predictions FILE; without --output questions are only shown"
        faults.append(LLMError("--output has nothing to hold", "nothing is answered", fix))
    if o["beside"] and not o["sid"]:
        fix = "--sid 100; compare.py compares whole runs"
        faults.append(LLMError("--beside needs --sid", "it shows single questions", fix))
    return faults


def ask(
    settings: dict[str, Any], found: Questions, asked: Sequence[Question]
) -> tuple[str, list[Judged]]:
    """Have a model answer; with an output folder all is kept there. Returns its name, too."""
    from llm_recipes.evaluation.answering_model import open_model
    from llm_recipes.evaluation.asking import ask_all

    model = open_model(settings)
    if settings["output"] is None:
        with tempfile.TemporaryDirectory() as folder:
            answered = ask_all(model, asked, Path(folder) / ANSWERS, RECIPE, overwrite=False)
            return model.name, answered.judged
    output = Path(settings["output"]).expanduser()
    return model.name, evaluate(settings, model, found, asked, output)


def evaluate(
    settings: dict[str, Any],
    model: AnsweringModel,
    found: Questions,
    asked: Sequence[Question],
    output: Path,
) -> list[Judged]:
    """Answer, score and write all into a folder; nothing if that was done before."""
    from llm_recipes.evaluation import qa_folder
    from llm_recipes.evaluation.asking import ask_all, judged_answers

    made_with = qa_folder.evaluated_with(model.made_with(), settings, found, asked)
    table = None if settings["overwrite"] else qa_folder.kept_results(output, made_with)
    if table is not None:
        say(f"nothing to do: {output} has all {len(asked):,} answers and their scores")
        print(table)
        return judged_answers(output / ANSWERS, asked)
    known = model.is_repeatable(), model.inputs()
    run = qa_folder.begun(output, RECIPE, settings, model.device, made_with, found, *known)
    with run as record:
        answered = ask_all(model, asked, output / ANSWERS, RECIPE, settings["overwrite"], settings)
        print(qa_folder.finish(output, record, found, answered))
    return answered.judged


def score_predictions(
    settings: dict[str, Any],
    found: Questions,
    asked: Sequence[Question],
    given: Mapping[str, Prediction],
) -> list[Judged]:
    """Score somebody else's answers; those that are missing are wrong."""
    from llm_recipes.evaluation import qa_folder
    from llm_recipes.evaluation.asking import judge_predictions
    from llm_recipes.evaluation.run import digest

    answered = judge_predictions(found, asked, given, settings["predictions"])
    if settings["output"] is None:
        print(qa_folder.table_of(found, answered))
        return answered.judged
    output = Path(settings["output"]).expanduser()
    own = {"predictions": digest(list(given.items()))}
    made_with = qa_folder.evaluated_with(own, settings, found, asked)
    inputs = {"answers": settings["predictions"]}
    run = qa_folder.begun(output, RECIPE, settings, "", made_with, found, True, inputs)
    with run as record:
        print(qa_folder.finish(output, record, found, answered))
    return answered.judged


def show(
    asked: Sequence[Question], name: str, judged: Sequence[Judged], runs: Sequence[EvaluatedRun]
) -> None:
    """Print questions with the answers that were made now and those of earlier runs."""
    from rich.console import Console

    from llm_recipes.evaluation.side_by_side import given_by, given_now, names_of, show_question

    console = Console(file=sys.stdout, highlight=False)
    names = names_of(runs)
    for number, question in enumerate(asked):
        given = [given_by(run, question, its) for run, its in zip(runs, names, strict=True)]
        if judged:
            given.append(given_now(name, judged[number]))
        show_question(question, given, console)


if __name__ == "__main__":
    run_recipe(qa)
