"""Compare models on the same text: bits per byte, and whether a difference is more than chance.

    from llm_recipes.gguf.comparison import paired_difference, verdict

Perplexity is per token, and a tokenizer with longer tokens makes it larger without being worse;
how many bits a model needs for a byte of the text says the same for every tokenizer. Texts differ
from passage to passage far more than models do: the differences of the same passages are looked
at, and their spread over the passages (a paired bootstrap) says how sure their mean is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.resampling import RESAMPLES, SEED, bootstrap_sums
from llm_recipes.files import write_fault, write_text
from llm_recipes.gguf.file import GgufFile
from llm_recipes.gguf.importance import Engine
from llm_recipes.gguf.model import ContextSettings, GgufModel, Placement
from llm_recipes.gguf.passages import Passage
from llm_recipes.gguf.quality_table import size_text
from llm_recipes.gguf.scoring import score_all
from llm_recipes.gguf.tokenizer import GgufTokenizer
from llm_recipes.progress import Progress

CONFIDENCE = 0.95
SAME_SIZE = 0.1  # sizes that differ by less are called the same
FEW = 30  # passages: with fewer, the interval itself is uncertain
SEQUENCES = 4  # passages at once


@dataclass(frozen=True)
class Scored:
    """How likely a model finds each passage. nats: of each. tokens: of each, in its own."""

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """Of its own tokens."""
        return math.exp(sum(self.nats) / max(1, sum(self.tokens)))

    def bits_per_byte(self, passages: Sequence[Passage]) -> float:
        """Bits that the model needs for a byte of the text."""
        return sum(self.nats) / math.log(2) / sum(passage.bytes for passage in passages)


@dataclass(frozen=True)
class Difference:
    """Bits per byte more than the first model needs, with its interval of 95 % confidence."""

    mean: float
    low: float
    high: float

    @property
    def is_certain(self) -> bool:
        """Whether the interval excludes that there is none."""
        return self.low > 0 or self.high < 0


def prefix_token(tokenizer: GgufTokenizer) -> int:
    """What stands before a passage, so that its first token is predicted as well."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return int(tokenizer("\n", add_special_tokens=False)["input_ids"][0])


def token_ids(tokenizer: GgufTokenizer, content: str) -> list[int]:
    """A passage as the model sees it; `</s>` in it is text."""
    found = tokenizer(content, add_special_tokens=False, split_special_tokens=True)
    return [prefix_token(tokenizer), *found["input_ids"]]


def passages_digest(passages: Sequence[Passage]) -> str:
    """Identity of the passages."""
    return sha256("\0".join(f"{p.start} {p.content}" for p in passages).encode()).hexdigest()


def score_model(
    file: GgufFile, passages: Sequence[Passage], placement: Placement, engine: Engine
) -> Scored:
    """Score every passage with a model.

    Raises:
        LLMError: If it can't be loaded, or memory is too small.
    """
    threads = engine.threads
    with GgufModel.load(file, placement, progress=True) as model:
        requests = [(token_ids(model.tokenizer, passage.content), 1) for passage in passages]
        longest = max(len(ids) for ids, _ in requests)
        room = ContextSettings(longest, SEQUENCES, threads=threads, prompt_threads=threads)
        nats = [0.0] * len(requests)
        progress = Progress(f"scoring {file.path.stem}", len(requests), "passages")
        with model.context(room) as context, progress:
            for number, scores in score_all(context, requests):
                nats[number] = -float(scores.logprobs.sum())
                progress.advance()
    if not all(map(math.isfinite, nats)):
        why = "some of its probabilities are no numbers"
        raise LLMError(f"{file.path} predicts nothing", why, "quantize or convert it again")
    return Scored(tuple(nats), tuple(len(ids) - 1 for ids, _ in requests))


def read_scores(path: Path, key: Mapping[str, Any]) -> Scored | None:
    """Scores that an earlier run has kept; None if there are none of this model and text."""
    try:
        held = json.loads(path.read_bytes())
        if held["made_with"] != key:
            return None
        return Scored(tuple(map(float, held["nats"])), tuple(map(int, held["tokens"])))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_scores(path: Path, key: Mapping[str, Any], scored: Scored) -> None:
    """Keep a model's scores.

    Raises:
        LLMError: If the folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(path.parent, error) from error
    held = {"made_with": key, "nats": scored.nats, "tokens": scored.tokens}
    write_text(path, json.dumps(held) + "\n")


def paired_difference(
    first: Scored, other: Scored, passages: Sequence[Passage], seed: int = SEED
) -> Difference:
    """How many bits per byte more the other model needs than the first, and how sure that is.

    A paired bootstrap (Efron and Tibshirani 1993, chapter 13; Koehn 2004 for texts): the passages
    are drawn anew with repetition many times, and the middle 95 % of the means are the interval.

    Args:
        first: Scores of the first model.
        other: Of the other.
        passages: What both have scored.
        seed: Of the drawing.
    """
    more = (np.array(other.nats) - np.array(first.nats)) / math.log(2)
    sizes = np.array([passage.bytes for passage in passages], dtype=np.float64)
    drawn, drawn_sizes = bootstrap_sums([more, sizes], RESAMPLES, seed)
    low, high = np.quantile(drawn / drawn_sizes, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(float(more.sum() / sizes.sum()), float(low), float(high))


def verdict(
    first: str, other: str, difference: Difference, first_bytes: int, other_bytes: int
) -> str:
    """A comparison in words.

    Args:
        first, other: The models' names.
        difference: Of the other from the first.
        first_bytes, other_bytes: Sizes of their files.
    """
    sizes = f"({size_text(other_bytes)} against {size_text(first_bytes)})"
    ratio = other_bytes / first_bytes
    if abs(ratio - 1) <= SAME_SIZE:
        size, joined = f"at the same size {sizes}", f"at the same size {sizes}"
    else:
        word = "smaller" if ratio < 1 else "larger"
        size = f"and is {abs(ratio - 1):.0%} {word} {sizes}"
        joined = f"{other} is {abs(ratio - 1):.0%} {word} {sizes}"
    interval = f"95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
    if not difference.is_certain:
        return (
            f"no difference of {other} and {first} can be told with this text, {joined}:"
            f" {difference.mean:+.4f} bits per byte, {interval}; more text narrows it"
        )
    half = (difference.high - difference.low) / 2
    better = difference.mean < 0
    return (
        f"{other} is {'better' if better else 'worse'} than {first} {size}:"
        f" {abs(difference.mean):.4f} ± {half:.4f} bits per byte {'fewer' if better else 'more'}"
        f" ({interval})"
    )
