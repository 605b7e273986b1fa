"""Arithmetic, generated exactly: the items of the tasks llm_arithmetic_*.

    python -m llm_recipes.evaluation.arithmetic_task      # prints an item of each

The questions are those that Brown et al. 2020 (GPT-3, section 3.9.1) describe, which lm-eval's
`arithmetic_1dc`, `arithmetic_2da` and so on download; none is asked twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from llm_recipes.evaluation.task_data import in_memory
from llm_recipes.tiny_corpus import sum_text

ITEMS = 2000  # of each task, as in the paper
SOLVED = 64  # more items, for solved examples in front of a question
WORDS = {"a": "plus", "s": "minus", "m": "times"}
SIGNS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
}
OPERATIONS = {"a": SIGNS["+"], "s": SIGNS["-"], "m": SIGNS["*"]}
KINDS = ("1dc", "2da", "2ds", "2dm", "3da", "3ds", "4da", "4ds", "5da", "5ds")
Item = dict[str, str]


def single_digit_sums(**_: Any) -> dict[str, Any]:
    """The 100 sums of two digits, as recipes/data/tiny.py writes them: "2 + 3 = 5"."""
    items = []
    for left in range(10):
        for right in range(10):
            question, _sign, answer = sum_text(left, right).rpartition(" = ")
            items.append({"question": f"{question} =", "answer": f" {answer}"})
    return in_memory({"test": items})


def questions(kind: str, **_: Any) -> dict[str, Any]:
    """Items of a kind, and solved ones that are none of them.

    Args:
        kind: Digits, d, and the operation: a, s, m or c (a composite of three digits).
    """
    items = draw(kind, ITEMS + SOLVED)
    return in_memory({"test": items[:ITEMS], "solved": items[ITEMS:]})


def draw(kind: str, count: int) -> list[Item]:
    """So many distinct items of a kind, the same ones every time."""
    rng = random.Random(f"llm_arithmetic_{kind}")
    if kind == "1dc":
        return [_composite(number) for number in rng.sample(range(9000), count)]
    digits, operation = int(kind[0]), kind[2]
    numbers = 10**digits
    pairs = (divmod(number, numbers) for number in rng.sample(range(numbers**2), count))
    return [
        _item(f"{left} {WORDS[operation]} {right}", OPERATIONS[operation](left, right))
        for left, right in pairs
    ]


def _composite(number: int) -> Item:
    """The item of a number below 9000: three digits and two signs, such as 6+(4*8)."""
    signs, digits = divmod(number, 1000)
    first, second = list(SIGNS)[signs // 3], list(SIGNS)[signs % 3]
    a, b, c = digits // 100, digits // 10 % 10, digits % 10
    return _item(f"{a}{first}({b}{second}{c})", SIGNS[first](a, SIGNS[second](b, c)))


def _item(asked: str, answer: int) -> Item:
    return {"question": f"Question: What is {asked}?\nAnswer:", "answer": f" {answer}"}


def main() -> None:
    """Print an item of each kind."""
    for kind in KINDS:
        item = draw(kind, 1)[0]
        print(f"{kind}: {item['question']}{item['answer']}")


if __name__ == "__main__":
    main()
