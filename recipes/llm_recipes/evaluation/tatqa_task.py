"""TAT-QA from a local file: the items of the task llm_tatqa, and how its answers are scored.

    llm-run python recipes/evaluate/harness.py --model FOLDER --tasks llm_tatqa \\
        --task-data tatqa=tatqa_dataset_dev.json --output runs/base

The scores are by the official rules, as those of recipes/evaluate/qa.py, which can also break them
down and show single answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_recipes.dataset_files import Row, data_files, missing_source, read_rows
from llm_recipes.errors import LLMError
from llm_recipes.evaluation.task_data import in_memory
from llm_recipes.evaluation.tatqa_scores import gold_of, score
from llm_recipes.examples import Example
from llm_recipes.prompts import raise_some
from llm_recipes.tatqa import parse_context, read_answer


def questions(tatqa_file: str | None = None, **_: Any) -> dict[str, Any]:
    """The questions of a file, each with its context's table and text.

    Args:
        tatqa_file: TAT-QA's own JSON with answers, such as tatqa_dataset_dev.json.

    Raises:
        LLMError, ExceptionGroup: If it is not given or not there, holds no question, or bad ones.
    """
    if not tatqa_file:
        why = "nothing is downloaded while tasks run"
        fix = (
            "harness.py: --task-data tatqa=tatqa_dataset_dev.json; lm_eval itself:\n"
            """--metadata '{"tatqa_file": "tatqa_dataset_dev.json"}'; the file is part of\n"""
            "https://nextplusplus.github.io/TAT-QA (CC BY 4.0)"
        )
        raise LLMError("the task llm_tatqa needs TAT-QA's file", why, fix)
    path = Path(tatqa_file).expanduser()
    if not path.exists():
        raise missing_source(tatqa_file)
    items: list[dict[str, Any]] = []
    faults: list[LLMError] = []
    for file in data_files(path):
        for row in read_rows(file):
            if isinstance(row, LLMError):
                faults.append(row)
                continue
            examples = list(parse_context(row, needs_answer=True))
            faults += [found for found in examples if isinstance(found, LLMError)]
            if all(isinstance(found, Example) for found in examples):
                items += _items(row, examples)  # type: ignore[arg-type]
    raise_some(faults, "use the file as it is published, with answers")
    if not items:
        raise LLMError(f"{path} holds no questions", fix="name tatqa_dataset_dev.json")
    return in_memory({"test": items})


def _items(row: Row, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Items of one context. context: its uid, by which questions belong together."""
    return [
        {
            "uid": example.id,
            "context": example.context,
            "prompt": example.prompt.whole_text,
            "response": example.response,
            # As JSON: a column has one type, and an answer is a number, a text or a list.
            "gold": json.dumps(asked),
        }
        for example, asked in zip(examples, row.values["questions"], strict=True)
    ]


def scores(item: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """Exact match, F1 and whether the scale is right, of an answer's first line."""
    spans, scale = read_answer(answers[0].strip().split("\n")[0])
    found = score(gold_of(json.loads(item["gold"])), spans, scale)
    return {"exact_match": found.exact_match, "f1": found.f1, "scale": found.scale}
