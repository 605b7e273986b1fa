"""Ask a model all questions, or take the answers from a file, and judge them.

answered = ask_all(model, questions, Path("answers.jsonl"), "evaluate/qa", overwrite=False)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_recipes.answering import Job, answer_prompts
from llm_recipes.errors import LLMError
from llm_recipes.evaluation.answering_model import AnsweringModel
from llm_recipes.evaluation.judging import (
    Judged,
    Prediction,
    judge,
    judge_prediction,
    missing,
)
from llm_recipes.evaluation.questions import Question, Questions
from llm_recipes.evaluation.run import digest
from llm_recipes.prompts import Style, encode, render_text
from llm_recipes.record import read_record, record_path
from llm_recipes.say import say

SHOWN = 5  # ids in a message


@dataclass(frozen=True)
class Answered:
    """Judged answers. seen: the text of each prompt by the question's id. conditions: of the task.

    model, metrics: the record's parts.
    """

    judged: list[Judged]
    seen: Mapping[str, str]
    conditions: Mapping[str, str]
    model: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What a model sees of questions. too_long: ids of those that it can't see as a whole."""

    style: Style
    texts: Mapping[str, str]
    too_long: frozenset[str]
    template: str


def ask_all(
    model: AnsweringModel,
    asked: Sequence[Question],
    path: Path,
    recipe: str,
    overwrite: bool,
    config: Mapping[str, Any] | None = None,
) -> Answered:
    """Answers of a model to all questions; those that the file has already are not asked again.

    Args:
        model: Which answers.
        asked: The questions.
        path: JSON Lines, as recipes/inference/generate.py writes them.
        recipe: Its name in the record beside that file.
        overwrite: Start anew, whatever is there.
        config: All options of that recipe, for that record.

    Raises:
        LLMError, ExceptionGroup: If other settings made the file, it can't be written, the prompts
            don't fit the model, or the engine fails.
    """
    seen = what_is_seen(model, asked)
    model = model.with_style(seen.style)
    prompts = [one.example.prompt for one in asked if one.example.id not in seen.too_long]
    settings = {**model.plan.settings, "output": path, "overwrite": overwrite}
    made_with, inputs, repeatable = model.made_with(), model.inputs(), model.is_repeatable()
    answer_prompts(
        Job(
            recipe,
            settings,
            made_with,
            model.device,
            model.session,
            inputs,
            repeatable,
            config,
        ),
        prompts,
    )
    record = read_record(record_path(path)) or {}
    judged = judged_answers(path, asked)
    told = conditions(model.plan.settings, seen)
    return Answered(
        judged, seen.texts, told, record.get("model") or {}, record.get("metrics") or {}
    )


def judged_answers(path: Path, asked: Sequence[Question]) -> list[Judged]:
    """What a file of answers is worth; questions without an answer were too long for the model."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    answers = {row["id"]: (row["completion"], row["finish_reason"]) for row in rows}
    return [
        judge(one, *answers[one.example.id])
        if one.example.id in answers
        else missing(one, "too long")
        for one in asked
    ]


def what_is_seen(model: AnsweringModel, asked: Sequence[Question]) -> Seen:
    """The prompts as the model sees them, in the style of its training.

    Raises:
        LLMError: If they don't fit the style, or all are longer than the model can see.
    """
    from llm_recipes.training_examples import example_style

    system = model.plan.settings["system"]
    with model.reading() as (tokenizer, context):
        style = example_style(model.plan.settings["prompt_style"], tokenizer, asked[0].example)
        texts = {
            one.example.id: render_text(one.example.prompt, tokenizer, style, system)
            for one in asked
        }
        ids = encode(list(texts.values()), tokenizer)
        lengths = {key: len(tokens) for key, tokens in zip(texts, ids, strict=True)}
        template = tokenizer.chat_template if style == "chat" else ""
    too_long = frozenset(
        key for key, count in lengths.items() if context is not None and count >= context
    )
    if too_long:
        longest = max(lengths.values())
        why = f"the longest has {longest:,} tokens, and the model can see {context} with the answer"
        if len(too_long) == len(asked):
            fix = "use a model with a longer context"
            raise LLMError("all questions are too long for the model", why, fix)
        say(f"warning: {len(too_long):,} of {len(asked):,} questions are not asked: {why}")
    return Seen(style, texts, too_long, template or "")


def conditions(settings: Mapping[str, Any], seen: Seen) -> dict[str, str]:
    """What must be the same for two runs to be the same measurement."""
    sampling = "greedy"
    if settings["temperature"] > 0:
        names = ("temperature", "top_p", "seed")
        sampling = ", ".join(f"{name} {settings[name]}" for name in names)
    return {
        "prompt_style": seen.style,
        "chat_template": digest(seen.template.strip()) if seen.template else "",
        "system": digest(settings["system"]) if settings["system"] else "",
        "max_new_tokens": str(settings["max_new_tokens"]),
        "stop": json.dumps(settings["stop"]) if settings["stop"] else "",
        "sampling": sampling,
    }


def judge_predictions(
    found: Questions, asked: Sequence[Question], given: Mapping[str, Prediction], path: Path
) -> Answered:
    """What somebody else's answers are worth; those that are missing are wrong.

    Raises:
        LLMError: If none of them is an answer to these questions.
    """
    ids = {question.example.id for question in found.questions}
    unknown = [uid for uid in given if uid not in ids]
    absent = [one.example.id for one in asked if one.example.id not in given]
    if len(absent) == len(asked):
        why = f"it has ids such as {_some(unknown)}; the questions such as {_some(absent)}"
        fix = "name the --data that these answers are of"
        raise LLMError(f"{path} has no answer to a question of {found.path}", why, fix)
    if unknown:
        say(f"warning: {len(unknown):,} predictions are of no question: {_some(unknown)}")
    if absent:
        say(f"warning: {len(absent):,} questions have no prediction: {_some(absent)}")
    judged = [
        judge_prediction(one, given[one.example.id]) if one.example.id in given else missing(one)
        for one in asked
    ]
    told = {"prompt_style": "unknown: predictions from a file"}
    return Answered(judged, {one.example.id: "" for one in asked}, told, {}, {})


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (" …" if len(ids) > SHOWN else "")
