"""A task that a tiny model learns in a hundred steps and can't guess: 3 is added to each of five
digits, tens dropped ("27981" -> "50214"). One answer in 100,000 is right by chance.

    from llm_recipes.digits_task import answer, draw_task
    task = draw_task(seed=0, seen=set())  # what is tuned on, and what is evaluated
    answer("27981")                       # "50214"

No evaluated item is a tuned one in another order: sets of digits belong to one side or the other.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice

INSTRUCTION = "Add 3 to each digit."
ADDED, LENGTH, DIGITS = 3, 5, "0123456789"
EVALUATED_SHARE = 0.3  # of the sets of digits


@dataclass(frozen=True)
class Task:
    """Items of both sides: the digits that are asked about, for example "27981"."""

    tuning: tuple[str, ...]
    evaluation: tuple[str, ...]


def answer(item: str) -> str:
    """What is right: each digit and 3, without tens."""
    return "".join(str((int(digit) + ADDED) % 10) for digit in item)


def without_order(item: str) -> str:
    """The item's set of digits: "27981" -> "12789"."""
    return "".join(sorted(item))


def draw_task(seed: int, seen: Collection[str], tuning: int = 2400, evaluation: int = 1000) -> Task:
    """Draw distinct items for both sides; fewer where there are no more.

    Args:
        seed: Another number draws others.
        seen: Sets of digits, sorted, that are in no question and no answer of them.
        tuning: Items to learn from.
        evaluation: Items that are only asked.
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


def pretraining_texts(natural: Sequence[str], steps: int, seed: int = 0) -> Iterator[str]:
    """All texts, and some more, that recipes/data/tiny.py learns from in so many steps.

    Args:
        natural: Those of `tiny_corpus.natural_documents`.
        steps: Training steps.
        seed: Of the order of the texts.
    """
    from llm_recipes.tiny_corpus import split_documents, training_documents
    from llm_recipes.tiny_training import BATCH_BLOCKS, BLOCK_TOKENS

    training, _ = split_documents(list(natural))
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


def alpaca_lines(items: Iterable[str]) -> str:
    """The items as JSON Lines with instruction, input and output, as sft.py and qa.py read them."""
    rows = ({"instruction": INSTRUCTION, "input": i, "output": answer(i)} for i in items)
    return "".join(json.dumps(row) + "\n" for row in rows)
