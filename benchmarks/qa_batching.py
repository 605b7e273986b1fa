"""How many questions a second qa.py answers in batches, against one by one, on a CPU.

    llm-run python benchmarks/qa_batching.py --model FOLDER --output qa_batching.json

Questions in TAT-QA's form, each on a table, by the session that qa.py uses, with --batch-size auto
and 1 in turn; loading counts in neither. Random numbers in the tables; as many new tokens for each
question, so that both do the same work.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes" / "evaluate"))

from llm_recipes.cli import run_recipe

if TYPE_CHECKING:
    from llm_recipes.evaluation.answering_model import AnsweringModel
    from llm_recipes.prompts import Prompt

BATCHES: tuple[Any, ...] = ("auto", 1)
YEARS = ("2019", "2018", "2017")
NAMES = ("Sales", "Costs", "Profit", "Taxes")


def benchmark(
    model: str,
    questions: int = 96,
    new_tokens: int = 16,
    rounds: int = 3,
    output: Path | None = None,
) -> None:
    """Time batches and single questions in turn.

    Args:
        model: Model folder, or a GGUF file.
        questions: Of one table each.
        new_tokens: Tokens of an answer, exactly.
        rounds: Pairs of measurements.
        output: JSON file for the results; null: none.
    """
    from llm_recipes.evaluation.questions import read_questions
    from llm_recipes.examples import DataOptions
    from llm_recipes.files import write_text

    seconds: dict[str, list[float]] = {str(batch): [] for batch in BATCHES}
    answers: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "tables.json"
        data.write_text(json.dumps(make_contexts(questions)))
        found = read_questions(DataOptions(str(data), held_out=0.0), (), None, lambda text: None)
        prompts = [question.example.prompt for question in found.questions]
        for number in range(rounds + 1):
            for batch in BATCHES:
                opened = open_for(model, str(data), new_tokens, batch)
                took, texts, tokens = answer_all(opened, prompts)
                if number:  # the first round warms up
                    seconds[str(batch)].append(took)
                answers[str(batch)] = texts
    ratios = [one / many for many, one in zip(seconds["auto"], seconds["1"], strict=True)]
    rates = {name: questions / statistics.median(took) for name, took in seconds.items()}
    result: dict[str, Any] = {
        "benchmark": "qa_batching",
        "model": Path(model).name,
        "device": opened.device,
        "questions": questions,
        "prompt_tokens": tokens,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "batched_questions_per_s": rates["auto"],
        "single_questions_per_s": rates["1"],
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "same_answers": sum(map(str.__eq__, answers["auto"], answers["1"])),
        "load_average": os.getloadavg()[0],
    }
    print(
        f"{rates['auto']:.1f} questions/s in batches, {rates['1']:.1f} one by one: "
        f"{result['ratio']:.1f} times as many; {result['same_answers']} of {questions} answers "
        "are the same"
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(result, indent=2) + "\n")


def make_contexts(questions: int) -> list[dict[str, Any]]:
    """Tables of random numbers, with one question on each."""
    chance = random.Random(0)
    contexts = []
    for number in range(questions):
        rows = [["", *YEARS]]
        rows += [[name, *(f"${chance.randrange(1000, 9999):,}" for _ in YEARS)] for name in NAMES]
        asked = {
            "uid": f"q{number}",
            "question": f"What are {chance.choice(NAMES)} in {chance.choice(YEARS)}?",
            "answer": ["1"],
            "answer_type": "span",
            "answer_from": "table",
            "scale": "thousand",
        }
        table = {"uid": f"t{number}", "table": rows}
        contexts.append({"table": table, "paragraphs": [], "questions": [asked]})
    return contexts


def open_for(model: str, data: str, new_tokens: int, batch: Any) -> AnsweringModel:
    """The model as qa.py opens it, going on after its end token."""
    from dataclasses import replace
    from inspect import signature

    from qa import qa

    from llm_recipes.evaluation.answering_model import open_model

    settings = {name: option.default for name, option in signature(qa).parameters.items()}
    given = {"model": model, "data": data, "max_new_tokens": new_tokens, "batch_size": batch}
    opened = open_model({**settings, **given})
    plan = replace(opened.plan, settings={**opened.plan.settings, "ignore_eos": True})
    return replace(opened, plan=plan)


def answer_all(opened: AnsweringModel, prompts: list[Prompt]) -> tuple[float, list[str], int]:
    """Seconds without loading, the answers in order, and the prompts' tokens."""
    missing = [(prompt.key, 0) for prompt in prompts]
    with opened.session(prompts, missing) as session:
        start = time.perf_counter()
        found = {done.request.prompt_id: done.text for done in session.completions()}
        took = time.perf_counter() - start
        tokens = sum(len(request.token_ids) for request in session.requests)
    return took, [found[prompt.key] for prompt in prompts], tokens


if __name__ == "__main__":
    run_recipe(benchmark)
