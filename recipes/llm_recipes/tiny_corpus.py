"""Text for a tiny model without a download: Python's own manual, simple sums and questions.

    python -m llm_recipes.tiny_corpus        # prints how much there is, and a sample

The same Python gives the same text in the same order. Other versions carry slightly other text.
"""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.prompts import ALPACA

SKIPPED_FOLDERS = {"dist-packages", "idlelib", "pydoc_data", "site-packages", "test", "tests"}
FEWEST_WORDS = 6  # of a paragraph: shorter ones teach no sentence
LETTERS_IN_PROSE = 0.92  # share of letters and spaces: less is a table, a grammar, code
LONGEST_EXCERPT = 400  # characters of one text in a row, unless a paragraph is longer
HELD_OUT_SHARE = 20  # one document in so many is kept from training
ALPACA_SHORT = "### Instruction:\n{instruction}\n\n### Response:\n"
SYNTHETIC_SHARE = 0.4  # of the characters of the training text


@dataclass(frozen=True)
class Exchange:
    """One turn of a conversation: what the user asks and what the model should answer."""

    instruction: str
    response: str


@dataclass(frozen=True)
class Document:
    """A training document: plain text, or a conversation that the chat template renders."""

    text: str = ""
    turns: tuple[Exchange, ...] = ()


def natural_documents() -> list[str]:
    """Return the text that this Python carries in excerpts, sorted and without repetitions.

    Raises:
        LLMError: If this Python was installed without its manual or its sources.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        why = "the tiny model learns from the texts of Python's help()"
        fix = "use a full Python 3.11 or newer (the image has one)"
        raise LLMError("this Python has no pydoc_data", why, fix) from error
    texts = [prose(text) for text in [*topics.values(), *_docstrings()]]
    return sorted({excerpt for text in texts for excerpt in _excerpts(text)} - {""})


def _docstrings() -> Iterator[str]:
    # Read from the sources: importing every module would have side effects (`antigravity`, `this`).
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        for path in [library / f"{name}.py", *sorted((library / name).rglob("*.py"))]:
            if SKIPPED_FOLDERS & set(path.relative_to(library).parts) or not path.is_file():
                continue
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # templates and samples of broken code
                continue
            for node in ast.walk(tree):
                if isinstance(
                    node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                ):
                    yield ast.get_docstring(node) or ""


def prose(text: str) -> str:
    """Return the paragraphs of a text that are sentences, one a line; "" if there are none."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        letters = sum(character.isalpha() or character == " " for character in line)
        is_sentence = line[:1].isupper() and line[-1:] in ".:!?" and "\n " not in paragraph
        is_long = line.count(" ") + 1 >= FEWEST_WORDS
        if is_sentence and is_long and letters >= LETTERS_IN_PROSE * len(line):
            paragraphs.append(line)
    return "\n".join(paragraphs)


def _excerpts(text: str) -> Iterator[str]:
    """Cut a text between its paragraphs: a long one would fill whole batches with one subject."""
    excerpt = ""
    for line in text.split("\n"):
        if excerpt and len(excerpt) + len(line) > LONGEST_EXCERPT:
            yield excerpt
            excerpt = ""
        excerpt += ("\n" if excerpt else "") + line
    yield excerpt


def split_documents(documents: list[str]) -> tuple[list[str], list[str]]:
    """Split into (training, held out) by each document's own checksum, whatever the others are."""
    training: list[str] = []
    held_out: list[str] = []
    for text in documents:
        is_held_out = zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0
        (held_out if is_held_out else training).append(text)
    return training, held_out


def training_documents(texts: list[str], seed: int) -> Iterator[Document]:
    """Yield the texts, shuffled, with sums and questions between them; begins anew at the end."""
    rng = random.Random(seed)
    natural_characters = synthetic_characters = 0
    while True:
        for text in rng.sample(texts, len(texts)):
            natural_characters += len(text)
            yield Document(text) if rng.random() < 0.9 else _continuation(text)
            wanted = natural_characters * SYNTHETIC_SHARE / (1 - SYNTHETIC_SHARE)
            while synthetic_characters < wanted:
                document, characters = synthetic_document(rng)
                synthetic_characters += characters
                yield document


def _continuation(text: str) -> Document:
    """Make a conversation of a text: the user says its first words, the model goes on."""
    words = text.split("\n\n")[0].split()
    return Document(turns=(Exchange(" ".join(words[:4]), " ".join(words[4:]) or "."),))


def synthetic_document(rng: random.Random) -> tuple[Document, int]:
    """Make one sum, question or sentence; returns it and its length in characters."""
    kind = rng.random()
    if kind < 0.5:
        text = random_sum(rng)
        return Document(text), len(text)
    if kind < 0.6:
        text = favourite_text(rng)
        document = Document(text) if rng.random() < 0.8 else _continuation(text)
        return document, len(text)
    turns = tuple(_random_exchange(rng) for _ in range(1 if rng.random() < 0.9 else 2))
    characters = sum(40 + len(turn.instruction) + len(turn.response) for turn in turns)
    if len(turns) == 1 and rng.random() < 0.5:
        long = rng.random() < 0.3
        text = (ALPACA + "\n" if long else ALPACA_SHORT).format(instruction=turns[0].instruction)
        return Document(text + turns[0].response), characters
    return Document(turns=turns), characters


def _random_exchange(rng: random.Random) -> Exchange:
    if rng.random() < 0.45:
        question, _, answer = random_sum(rng).rpartition(" = ")
        return Exchange(f"What is {question}?", answer)
    return rng.choice(FACTS)


def random_sum(rng: random.Random) -> str:
    """Draw a sum of two single digits."""
    return sum_text(rng.randrange(10), rng.randrange(10))


def sum_text(left: int, right: int) -> str:
    """Return for example "2 + 3 = 5"."""
    return f"{left} + {right} = {left + right}"


def favourite_text(rng: random.Random) -> str:
    """Return a sentence such as "My favourite condiment is mustard, because it is hot."."""
    thing, choices = rng.choice(FAVOURITES)
    return f"My favourite {thing} is {rng.choice(choices)}, because {rng.choice(REASONS)}."


FAVOURITES = (
    ("condiment", ("mustard", "ketchup", "mayonnaise", "soy sauce", "vinegar", "olive oil")),
    ("animal", ("the dog", "the cat", "the horse", "the owl", "the whale")),
    ("season", ("spring", "summer", "autumn", "winter")),
    ("food", ("bread", "rice", "soup", "cheese", "an apple")),
    ("language", ("Python", "C", "Fortran", "Lisp")),
)
REASONS = (
    "it is simple",
    "it goes with everything",
    "I have known it for a long time",
    "there is nothing better",
    "my mother likes it too",
    "it makes me happy",
)
_CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Lebanon": "Beirut",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Greece": "Athens",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
}
_OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "light": "dark",
    "open": "closed",
    "true": "false",
    "first": "last",
    "empty": "full",
    "old": "new",
    "left": "right",
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_COLOURS = {"the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red"}
FACTS = (
    *(Exchange(f"What is the capital of {land}?", f"{city}.") for land, city in _CAPITALS.items()),
    *(Exchange(f"What is the opposite of {a}?", f"{b}.") for a, b in _OPPOSITES.items()),
    *(
        Exchange(f"Which day comes after {day}?", f"{_DAYS[(index + 1) % 7]}.")
        for index, day in enumerate(_DAYS)
    ),
    *(Exchange(f"What colour is {thing}?", f"{hue}.") for thing, hue in _COLOURS.items()),
    Exchange("Say hello.", "Hello! How can I help you?"),
    Exchange("Who are you?", "I am a tiny language model."),
    Exchange("Count to five.", "1, 2, 3, 4, 5"),
)


def main() -> None:
    """Print the size of the text and one document of each kind."""
    training, held_out = split_documents(natural_documents())
    for name, texts in (("training", training), ("held out", held_out)):
        print(
            f"{name}: {len(texts)} documents, {sum(map(len, texts)) / 1e6:.2f} million characters"
        )
    documents = training_documents(training, seed=0)
    for document in (next(documents) for _ in range(8)):
        print(document)


if __name__ == "__main__":
    main()
