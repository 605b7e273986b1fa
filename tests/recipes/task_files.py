"""Tasks for lm-eval of every output type, with their data in files beside them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from conftest import RECIPES

HARNESS = RECIPES / "evaluate" / "harness.py"

WORDS = ["value", "object", "class", "module", "name", "é", "statement", "list"]
TEXT = "The import statement, in its basic form, is executed in two steps. "
NAMES = ("choose", "say", "read", "complete")
GROUPED = ("both", "say", "read")  # all of them, two in a group
ANSWER = {"until": ["\n"], "max_gen_toks": 6}


def harness_function() -> Callable[..., int]:
    """The recipe's function, in this process: importing lm-eval takes seconds."""
    specification = importlib.util.spec_from_file_location("harness_recipe", HARNESS)
    assert specification is not None and specification.loader is not None
    recipe = importlib.util.module_from_spec(specification)
    sys.modules["harness_recipe"] = recipe  # dataclasses look there
    specification.loader.exec_module(recipe)
    function: Callable[..., int] = recipe.evaluate
    return function


def write_task(path: Path, rows: list[dict[str, Any]], **config: Any) -> None:
    """A task in a YAML file and its documents as JSON Lines."""
    data = path.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    config = {"task": path.stem, "metadata": {"version": 1.5}, **config}
    path.write_text(yaml.safe_dump({**source, "test_split": "test", **config}))


def write_tasks(folder: Path, lm: Any) -> Path:
    """A task of each type; half of the answers are the model's own, and so right."""
    from lm_eval.api.instance import Instance

    folder.mkdir()
    questions = [
        {"question": f"What is a {word}?", "answer": number % 3, "of": f"topic {number // 2}"}
        for number, word in enumerate(WORDS)
    ]
    write_task(
        folder / "choose.yaml",
        questions,
        output_type="multiple_choice",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_target="answer",
        doc_to_choice=["an object", "a name that is bound", "nothing"],
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
        num_fewshot=2,
        fewshot_split="test",
        metadata={"version": 1.5, "cluster": "of", "groups": ["answer"]},
    )
    prompts = [f"A {word} is" for word in WORDS]
    answers = lm.generate_until(
        [
            Instance("generate_until", {}, (prompt, ANSWER), 0, ("say", number, 1))
            for number, prompt in enumerate(prompts)
        ]
    )
    write_task(
        folder / "say.yaml",
        [
            {"prompt": prompt, "answer": answer if number % 2 else answer + "!"}
            for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="answer",
        generation_kwargs=ANSWER,
        metric_list=[{"metric": "exact_match"}, {"metric": "bleu"}],
    )
    write_task(
        folder / "read.yaml",
        [{"text": text} for text in ("The value of the expression.", TEXT * 40, "é ü 漢字 🙂")],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    write_task(
        folder / "complete.yaml",
        [{"before": f"The {word}", "after": " is"} for word in WORDS],
        output_type="loglikelihood",
        doc_to_text="{{before}}",
        doc_to_target="{{after}}",
        target_delimiter="",
        metric_list=[{"metric": "acc"}, {"metric": "perplexity"}],
    )
    # A group of two of them.
    acc = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    group = {"group": "both", "task": ["choose", "complete"], "aggregate_metric_list": [acc]}
    (folder / "both.yaml").write_text(yaml.safe_dump({**group, "metadata": {"version": 3}}))
    return folder


def metrics(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers of lm-eval's results, standard errors too."""
    return {
        task: {name: value for name, value in row.items() if "," in name}
        for task, row in results["results"].items()
    }
