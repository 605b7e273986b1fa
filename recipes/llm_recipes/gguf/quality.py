"""What a quantization costs: perplexity, and the distance of its predictions from the source's.

    from llm_recipes.gguf.quality import Evaluation, evaluate, evaluate_source

llama-perplexity reads a text in pieces and predicts the second half of each. The source's
predictions (log-probabilities of the whole vocabulary, 16 bits each) go into a file, with which
those of each quantization are compared token by token: the mean KL divergence says how far they
are apart, far more precisely than two perplexities, whose errors are those of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.gguf.file import GgufFile
from llm_recipes.gguf.importance import BATCH, CONTEXT, Engine
from llm_recipes.gguf.watched_programs import Command, run_watched
from llm_recipes.progress import Progress

FEWEST_TOKENS = 100  # below, llama-perplexity makes no statistics
NUMBER = r"(-?nan|-?inf|-?[\d.]+(?:e[+-]?\d+)?)"
ESTIMATE = re.compile(rf"Final estimate: PPL = {NUMBER} \+/- {NUMBER}")
SOURCE_PIECE = re.compile(r"\[(\d+)\]")
PIECE = re.compile(r"^ *(\d+) {4,}[\d.]+ ±", re.MULTILINE)


@dataclass(frozen=True)
class Evaluation:
    """How models are measured. text: a file. context: tokens of a piece. chunks: pieces."""

    text: Path
    context: int
    chunks: int
    engine: Engine

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return self.chunks * predicted(self.context)

    def base_bytes(self, vocabulary: int) -> int:
        """Size of the file of the source's predictions, as perplexity.cpp writes it."""
        numbers = 2 * ((vocabulary + 1) // 2) + 4
        return 20 + 4 * self.chunks * self.context + 2 * numbers * self.tokens


@dataclass(frozen=True)
class Quality:
    """How a model predicts a text; errors are standard errors of the mean over its tokens.

    log_ratio: ln(perplexity / the source's). kl_mean, kl_99, kl_max: KL divergence from the
    source, nats a token: mean, 99th percentile, largest. same_top: share of tokens whose likeliest
    prediction is the source's.
    """

    perplexity: float
    perplexity_error: float
    log_ratio: float = 0.0
    log_ratio_error: float = 0.0
    kl_mean: float = 0.0
    kl_mean_error: float = 0.0
    kl_99: float = 0.0
    kl_max: float = 0.0
    same_top: float = 1.0
    same_top_error: float = 0.0


def piece_size(file: GgufFile) -> int:
    """Tokens of a piece: as usual, or all that the model can see."""
    return min(CONTEXT, file.context_length or CONTEXT)


def predicted(context: int) -> int:
    """Tokens that are predicted of a piece: those that have half of it before them."""
    return context - 1 - context // 2


def evaluate_source(file: GgufFile, how: Evaluation, base: Path) -> Quality:
    """Perplexity of the model that others are compared with; its predictions go into a file.

    Raises:
        LLMError: If memory or the disk is too small.
    """
    text = _run(file, how, base, SOURCE_PIECE, [])
    found = ESTIMATE.search(text)
    if found is None:
        raise _no_result(file, text)
    wanted = how.base_bytes(file.vocabulary)
    written = base.stat().st_size if base.exists() else 0
    if written != wanted:
        why = f"{base} has {written} bytes of {wanted}: llama-perplexity doesn't notice a full disk"
        fix = "free space there, --scratch FOLDER with more, or fewer --chunks"
        raise LLMError("the source's predictions could not be kept", why, fix)
    return Quality(float(found[1]), _error(found[2]))


def evaluate(file: GgufFile, how: Evaluation, base: Path) -> Quality:
    """Compare a model's predictions with those that `evaluate_source` has kept.

    Raises:
        LLMError: If memory is too small, or llama-perplexity fails.
    """
    text = _run(file, how, base, PIECE, ["--kl-divergence"])
    try:
        perplexity = _pair(text, r"Mean PPL\(Q\) +: +")
        ratio = _pair(text, r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +: +")
        divergence = _pair(text, r"Mean +KLD: +")
        top = _pair(text, r"Same top p: +")
        quantile, largest = _one(text, r"99\.0% +KLD: +"), _one(text, r"Maximum KLD: +")
    except LookupError:
        raise _no_result(file, text) from None
    return Quality(
        *perplexity,
        *ratio,
        *divergence,
        kl_99=quantile,
        kl_max=largest,
        same_top=top[0] / 100,
        same_top_error=top[1] / 100,
    )


def _run(
    file: GgufFile, how: Evaluation, base: Path, piece: re.Pattern[str], options: list[str]
) -> str:
    # Without --no-escape the two characters \n of a text in LaTeX, JSON or C would be a new line.
    arguments = ["llama-perplexity", "-m", str(file.path), "-f", str(how.text), "--no-escape"]
    arguments += ["-c", str(how.context), "-b", str(max(1, BATCH // how.context) * how.context)]
    arguments += ["--chunks", str(how.chunks), "--kl-divergence-base", str(base), *options]
    with Progress(f"measuring {file.path.stem}", how.chunks, "pieces of text") as progress:
        return run_watched(Command([*arguments, *how.engine.arguments]), _advance(progress, piece))


def _advance(progress: Progress, piece: re.Pattern[str]) -> Callable[[str], None]:
    def take(text: str) -> None:
        for _ in piece.findall(text):
            progress.advance()

    return take


def _pair(text: str, label: str) -> tuple[float, float]:
    found = re.search(rf"{label}{NUMBER} ± +{NUMBER}", text)
    if found is None:
        raise LookupError(label)
    return float(found[1]), _error(found[2])


def _one(text: str, label: str) -> float:
    found = re.search(label + NUMBER, text)
    if found is None:
        raise LookupError(label)
    return float(found[1])


def _error(text: str) -> float:
    """An error; the root of what rounding made less than 0 is 0."""
    value = float(text)
    return 0.0 if math.isnan(value) else value


def _no_result(file: GgufFile, text: str) -> LLMError:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = ("failed", "error", "unable", "inconsistent", "you need")
    said = [line for line in lines if any(word in line.lower() for word in words)]
    why = (said or lines or ["it said nothing"])[-1]
    fix = "a smaller model or more memory, if that is the cause; --no-quality leaves this out"
    return LLMError(f"llama-perplexity has not measured {file.path}", why, fix)
