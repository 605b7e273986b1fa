"""A task that a tiny model learns in a hundred steps and can't guess: 3 is added to each of five
digits, tens dropped ("27981" -> "50214"). One answer in 100,000 is right by chance.

    task = draw_task(seed=0, seen=set())  # what is tuned on, and what is evaluated
    write_alpaca(task.tuning, path)
    correct(model_folder, adapter, task.evaluation)

No evaluated item is a tuned one in another order: sets of digits belong to one side or the other.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice
from pathlib import Path
from types import ModuleType

from conftest import RECIPES

INSTRUCTION = "Add 3 to each digit."
ADDED, LENGTH, DIGITS = 3, 5, "0123456789"
EVALUATED_SHARE = 0.3  # of the sets of digits
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Task:
    """Items of both sides: the digits that are asked about, for example "27981"."""

    tuning: tuple[str, ...]
    evaluation: tuple[str, ...]


def answer(item: str) -> str:
    return "".join(str((int(digit) + ADDED) % 10) for digit in item)


def without_order(item: str) -> str:
    return "".join(sorted(item))


def draw_task(
    seed: int, seen: Collection[str], tuning: int = 2400, evaluation: int = 1000
) -> Task:
    """Draw distinct items for both sides.

    seen: sets of digits, sorted, that are in no question and no answer of them.
    """
    rng = random.Random(seed)
    sets = ["".join(digits) for digits in combinations_with_replacement(DIGITS, LENGTH)]
    evaluated = set(rng.sample(sets, round(EVALUATED_SHARE * len(sets))))
    sides: tuple[list[str], list[str]] = ([], [])
    wanted = (tuning, evaluation)
    for number in rng.sample(range(10**LENGTH), 10**LENGTH):
        item = f"{number:0{LENGTH}}"
        if without_order(item) in seen or without_order(answer(item)) in seen:
            continue
        side = int(without_order(item) in evaluated)
        if len(sides[side]) < wanted[side]:
            sides[side].append(item)
        if (len(sides[0]), len(sides[1])) == wanted:
            break
    return Task(tuple(sides[0]), tuple(sides[1]))


def pretraining_texts(natural: list[str], steps: int, seed: int = 0) -> Iterator[str]:
    """All texts, and some more, that tiny.py learns from in so many steps.

    natural: those of `natural_documents`.
    """
    from llm_recipes.tiny_corpus import split_documents, training_documents
    from llm_recipes.tiny_training import BATCH_BLOCKS, BLOCK_TOKENS

    training, _ = split_documents(natural)
    fewest_tokens = 3  # of a document: BOS, a piece of text, EOS
    most = steps * BATCH_BLOCKS * BLOCK_TOKENS // fewest_tokens
    for document in islice(training_documents(training, seed), most):
        yield document.text
        for turn in document.turns:
            yield from (turn.instruction, turn.response)


def digits_in(text: str) -> set[str]:
    """Numbers of a text, and what a sum of it has on its left, in any order: "2 + 3" -> "23"."""
    found = set(re.findall(r"\d+", text))
    found |= {re.sub(r"\D", "", sum_) for sum_ in re.findall(r"\d+(?:\s*\+\s*\d+)+", text)}
    return {without_order(number) for number in found}


def write_alpaca(items: Sequence[str], path: Path) -> Path:
    rows = ({"instruction": INSTRUCTION, "input": i, "output": answer(i)} for i in items)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def correct(model: Path, adapter: Path | None, items: Sequence[str]) -> int:
    """How many items are answered exactly and ended by the model itself, greedily."""
    import torch

    from llm_recipes.decoding import Decoder, DecodeSettings, Request
    from llm_recipes.model_folder import find_model
    from llm_recipes.models import load_model
    from llm_recipes.prompts import Prompt, render
    from llm_recipes.sampling import Sampling

    loaded = load_model(find_model(str(model)), adapter, torch.device("cpu"), torch.float32, False)
    tokenizer = loaded.tokenizer
    ends = frozenset({tokenizer.eos_token_id})
    decoder = Decoder(loaded.model, tokenizer, DecodeSettings(10, Sampling(), stop_token_ids=ends))
    prompts = [Prompt(item, INSTRUCTION, input=item) for item in items]
    requests = [Request(str(p.id), 0, tuple(render(p, tokenizer, "auto"))) for p in prompts]
    return sum(
        done.finish_reason == "stop" and done.text == answer(done.request.prompt_id)
        for start in range(0, len(requests), 250)
        for done in decoder.complete(requests[start : start + 250])
    )


def bounds(right: int, count: int) -> tuple[float, float]:
    """Two-sided exact 95 % interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(right, count).proportion_ci(CONFIDENCE, "exact")
    return float(interval.low), float(interval.high)


def load_recipe(name: str) -> ModuleType:
    """A recipe as a module, such as "finetune/sft": a process of its own takes seconds to start."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), RECIPES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for theirs
    spec.loader.exec_module(module)
    return module
