"""Held-out Python documentation: the items of the tasks llm_pydocs and llm_pydocs_choice.

    python -m llm_recipes.evaluation.pydocs_task      # prints how many there are, and one

It is the part that recipes/data/tiny.py keeps from training, without what repeats a text that it
does train on: a paragraph of it, or 13 words in a row (Brown et al. 2020, appendix C). Another
Python carries slightly other documentation, and so other items.
"""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from llm_recipes.evaluation.task_data import in_memory
from llm_recipes.tiny_corpus import natural_documents, split_documents

SHARED_WORDS = 13
ENDINGS = 4
FEWEST_WORDS = 12  # of a paragraph that is cut: six to go on from, and six to tell apart
SEED = 0


def texts(**_: Any) -> dict[str, Any]:
    """Documents to be predicted: excerpts of a few hundred characters."""
    return in_memory({"test": [{"text": text} for text in held_out_documents()]})


def choices(**_: Any) -> dict[str, Any]:
    """Beginnings of paragraphs, each with four endings of which one is its own.

    document: number of the text that the paragraph is of; those of one text are not independent.
    """
    return in_memory({"test": make_choices(held_out_documents())})


@functools.cache
def held_out_documents() -> tuple[str, ...]:
    """The held-out documents that repeat nothing of the training text; takes seconds."""
    training, held_out = split_documents(natural_documents())
    paragraphs = {line for text in training for line in text.split("\n")}
    runs = {run for text in held_out for run in word_runs(text)}
    seen = {run for text in training for run in word_runs(text) if run in runs}
    return tuple(
        text
        for text in held_out
        if paragraphs.isdisjoint(text.split("\n")) and seen.isdisjoint(word_runs(text))
    )


def word_runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every 13 words that follow each other."""
    words = text.split()
    return (tuple(words[n : n + SHARED_WORDS]) for n in range(len(words) - SHARED_WORDS + 1))


def make_choices(documents: Sequence[str]) -> list[dict[str, Any]]:
    """Items of all paragraphs that are long enough; each place is right as often as the others.

    The wrong endings are other documents' with about the same length, and the right one is the
    shortest of the four as often as the longest: its length tells nothing.
    """
    halves = [
        (number, *_halves(paragraph))
        for number, text in enumerate(documents)
        for paragraph in text.split("\n")
        if len(paragraph.split()) >= FEWEST_WORDS
    ]
    rng = random.Random(SEED)
    places, shorter = _balanced(len(halves), rng), _balanced(len(halves), rng)
    items = []
    for (number, beginning, ending), place, below in zip(halves, places, shorter, strict=True):
        others = {end for other, _, end in halves if other != number} - {ending}
        wrong = _nearest(ending, sorted(others, key=_by_length), below)
        rng.shuffle(wrong)
        endings = [*wrong[:place], ending, *wrong[place:]]
        items.append(
            {"document": number, "beginning": beginning, "endings": endings, "gold": place}
        )
    return items


def _halves(paragraph: str) -> tuple[str, str]:
    words = paragraph.split()
    half = len(words) // 2
    return " ".join(words[:half]), " ".join(words[half:])


def _balanced(count: int, rng: random.Random) -> list[int]:
    """Numbers below four in a random order, each as often as the others."""
    numbers = [n % ENDINGS for n in range(count)]
    rng.shuffle(numbers)
    return numbers


def _nearest(ending: str, others: list[str], below: int) -> list[str]:
    """Three of the others, sorted by length: `below` of them shorter, as far as there are."""
    position = bisect.bisect(others, _by_length(ending), key=_by_length)
    start = min(max(0, position - below), len(others) - (ENDINGS - 1))
    return others[start : start + ENDINGS - 1]


def _by_length(text: str) -> tuple[int, str]:
    return len(text), text


def main() -> None:
    """Print how many items there are, and a choice."""
    documents = held_out_documents()
    found = make_choices(documents)
    print(f"{len(documents)} documents, {len(found)} choices")
    print(found[0])


if __name__ == "__main__":
    main()
