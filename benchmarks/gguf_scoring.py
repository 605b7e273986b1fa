"""Scoring multiple-choice questions: beginnings that sequences share computed once, or each time.

    llm-run python benchmarks/gguf_scoring.py --output build/benchmarks/gguf_scoring.json

A model of 0.54 B random parameters scores questions of three forms: solved examples in front of
all, long endings, and single letters. `score_all` gets them together, and one by one, in turn; the
ratio of the times. Loading counts in neither.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from gguf_models import VOCABULARY, make_model

from llm_recipes.cli import run_recipe

if TYPE_CHECKING:
    from llm_recipes.gguf.model import GgufContext
    from llm_recipes.gguf.scoring import Request

HOME = Path(__file__).resolve().parents[1]
# tokens of examples that all questions share, of a question, of each of its choices
FORMS = {
    "5 examples, 4 choices": (500, 60, 8),
    "4 endings": (0, 80, 25),
    "4 letters": (0, 80, 1),
}
CHOICES = 4


def benchmark(
    shape: str = "0.5b",
    type: str = "Q4_K_M",
    folder: Path = HOME / "build/benchmarks/gguf",
    questions: int = 8,
    rounds: int = 3,
    at_once: int = 8,
    threads: int | None = None,
    output: Path | None = None,
) -> int:
    """Time scoring together and one by one.

    Args:
        shape: Of the model: 0.5b, 1.1b, or tiny to try the program.
        type: Quantization type.
        folder: Where models are kept.
        questions: Of each form, with 4 choices each.
        rounds: Pairs of measurements.
        at_once: Sequences at once.
        threads: Null: as many as cores were granted.
        output: JSON file for the results; null: none.
    """
    from llm_recipes.device import choose_device, device_name
    from llm_recipes.files import write_text
    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.model import ContextSettings, GgufModel
    from llm_recipes.gguf.threads import granted_threads

    file = read_gguf(make_model(shape, type, folder))
    count = threads or granted_threads().prompt
    room = ContextSettings(1024, at_once, threads=count, prompt_threads=count)
    forms = []
    with GgufModel.load(file) as model, model.context(room) as context:
        for name in FORMS:
            requests = make_requests(name, questions)
            pairs = [
                (seconds(together, context, requests), seconds(one_by_one, context, requests))
                for _ in range(rounds)
            ]
            ratios = [alone / shared for shared, alone in pairs]
            row = {"form": name, "ratio": statistics.median(ratios), "ratios": ratios}
            row["together_s"] = statistics.median(shared for shared, _ in pairs)
            row["one_by_one_s"] = statistics.median(alone for _, alone in pairs)
            print(f"{name}: {row['ratio']:.1f} times as fast together", flush=True)
            forms.append(row)
    result: dict[str, Any] = {
        "benchmark": "gguf_scoring",
        "parameters": file.parameters,
        "type": type,
        "cpu": device_name(choose_device("cpu")),
        "threads": count,
        "at_once": at_once,
        "questions": questions,
        "rounds": rounds,
        "load_average": os.getloadavg()[0],
        "forms": forms,
    }
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(result, indent=2) + "\n")
    return 0


def make_requests(form: str, questions: int) -> list[Request]:
    """Random tokens in the form of questions with choices."""
    shared, question, choice = FORMS[form]
    chance = random.Random(0)
    examples = chance.choices(range(3, VOCABULARY), k=shared)
    requests: list[Request] = []
    for _ in range(questions):
        asked = examples + chance.choices(range(3, VOCABULARY), k=question)
        for _ in range(CHOICES):
            ids = asked + chance.choices(range(3, VOCABULARY), k=choice)
            requests.append((ids, len(asked)))
    return requests


def together(context: GgufContext, requests: list[Request]) -> None:
    """All requests in one call."""
    from llm_recipes.gguf.scoring import score_all

    assert len(list(score_all(context, requests))) == len(requests)


def one_by_one(context: GgufContext, requests: list[Request]) -> None:
    """Each request alone."""
    from llm_recipes.gguf.scoring import score

    for ids, first in requests:
        score(context, ids, first)


def seconds(
    work: Callable[[GgufContext, list[Request]], None],
    context: GgufContext,
    requests: list[Request],
) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work(context, requests)
    return time.perf_counter() - start


if __name__ == "__main__":
    run_recipe(benchmark)
