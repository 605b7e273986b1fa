"""Passages of a text, and what differences between models on them are worth: no model is needed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np

from llm_recipes.errors import LLMError
from llm_recipes.gguf.comparison import (
    Difference,
    Scored,
    paired_difference,
    prefix_token,
    read_scores,
    verdict,
    write_scores,
)
from llm_recipes.gguf.evaluation_text import length_faults, make_text, read_text
from llm_recipes.gguf.passages import Passage, cut, fit, spread

WORDS = [
    "river",
    "bank",
    "mountain",
    "Größe",
    "naïve",
    "山の上",
    "stone,",
    "Light;",
    "answer.",
    "question?",
    "end!",
]


def prose(paragraphs: int, words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return "\n\n".join(" ".join(rng.choices(WORDS, k=words)) for _ in range(paragraphs))


@pytest.mark.parametrize(
    "text",
    [
        prose(40, 30),
        prose(3, 900),
        "x" * 5000,
        "山" * 3000,
        "\r\n\r\n a \n \t\n b\n\n\n" + prose(5, 80),
        "one line",
        "",
        " \n\n \n",
    ],
)
def test_passages_are_the_text_at_their_bytes(text: str) -> None:
    passages = cut(text, 400)
    data = text.encode()
    end = 0
    for passage in passages:
        assert 0 < passage.bytes <= 400
        assert passage.start >= end
        assert not data[end : passage.start].strip()  # only white space is left out
        end = passage.start + passage.bytes
        assert data[passage.start : end].decode() == passage.content == passage.content.strip()
    assert not data[end:].strip()


def test_paragraphs_stay_together() -> None:
    text = "First one.\n\nSecond one.\n\n" + "word " * 100
    assert cut(text, 100)[0].content == "First one.\n\nSecond one."
    long = cut("A sentence that ends. " * 30, 100)
    assert all(passage.content.endswith(".") for passage in long)


def test_a_large_text_without_paragraphs_is_cut_in_time() -> None:
    assert len(cut("word " * 200_000)) >= 1000  # looking at all of it for each cut takes minutes


def test_halves_what_a_model_cannot_see() -> None:
    passages = cut(prose(6, 60), 400)
    halved = fit(passages, lambda content: len(content) <= 90)
    assert all(len(passage.content) <= 90 for passage in halved)
    data = prose(6, 60).encode()
    for passage in halved:
        found = data[passage.start : passage.start + passage.bytes].decode()
        assert found == passage.content
    letters = [c for p in passages for c in p.content if not c.isspace()]
    assert letters == [c for p in halved for c in p.content if not c.isspace()]
    assert fit(passages, lambda content: False) == []


def test_spread_takes_from_everywhere() -> None:
    passages = [Passage(n, str(n)) for n in range(100)]
    assert spread(passages, 0) == spread(passages, 100) == passages
    chosen = [passage.start for passage in spread(passages, 4)]
    assert chosen == [12, 37, 62, 87]
    assert len(set(spread(passages, 99))) == 99


def scores_of(bits: list[float]) -> Scored:
    return Scored(tuple(b * math.log(2) for b in bits), tuple(10 for _ in bits))


def test_bits_per_byte_and_perplexity() -> None:
    passages = [Passage(0, "a" * 50), Passage(52, "é" * 75)]  # 50 and 150 bytes
    scored = scores_of([100.0, 300.0])
    assert scored.bits_per_byte(passages) == pytest.approx(2.0)
    assert scored.perplexity == pytest.approx(2 ** (400 / 20))


def test_paired_difference_sees_what_the_spread_of_texts_hides() -> None:
    rng = np.random.default_rng(1)
    passages = [Passage(n, "x" * 100) for n in range(80)]
    easy_or_hard = rng.normal(200, 60, 80)
    first = scores_of(list(easy_or_hard))
    better = scores_of(list(easy_or_hard - 2 + rng.normal(0, 3, 80)))
    found = paired_difference(first, better, passages)
    assert found == paired_difference(first, better, passages)  # the same each time
    assert found.is_certain and found.low < found.mean < found.high < 0
    assert found.mean == pytest.approx(-0.02, abs=0.01)
    # As the normal distribution has it: 1.96 standard errors on each side.
    half = (found.high - found.low) / 2
    assert half == pytest.approx(1.96 * 3 / math.sqrt(80) / 100, rel=0.25)
    same = scores_of(list(easy_or_hard + rng.normal(0, 3, 80)))
    assert not paired_difference(first, same, passages).is_certain
    assert paired_difference(first, first, passages) == Difference(0.0, 0.0, 0.0)


def test_long_passages_weigh_more() -> None:
    passages = [Passage(0, "x" * 300), Passage(400, "x" * 100)]
    first, other = scores_of([300, 100]), scores_of([330, 90])
    assert paired_difference(first, other, passages).mean == pytest.approx(20 / 400)


def test_intervals_hold_what_they_promise() -> None:
    """95 % intervals miss the true difference in about 5 % of texts."""
    rng = np.random.default_rng(2)
    passages = [Passage(n, "x" * 10) for n in range(40)]
    missed = 0
    for _ in range(100):
        first = scores_of([0.0] * 40)
        other = scores_of(list(rng.normal(1.0, 2.0, 40)))
        found = paired_difference(first, other, passages)
        missed += not found.low <= 0.1 <= found.high
    assert 1 <= missed <= 15  # 5 expected; bootstrap intervals are a little narrow


def test_verdicts_in_words() -> None:
    better = verdict("small", "large", Difference(-0.03, -0.04, -0.02), 10**9, 102 * 10**7)
    assert better == (
        "large is better than small at the same size (1.02 GB against 1 GB):"
        " 0.0300 ± 0.0100 bits per byte fewer (95 % interval -0.0400 to -0.0200)"
    )
    worse = verdict("a", "b", Difference(0.03, 0.02, 0.04), 2 * 10**9, 10**9)
    assert worse.startswith(
        "b is worse than a and is 50% smaller (1 GB against 2 GB): 0.0300 ± 0.0100"
    )
    assert "bits per byte more" in worse
    unsure = verdict("a", "b", Difference(0.001, -0.01, 0.02), 10**9, 3 * 10**9)
    assert unsure.startswith(
        "no difference of b and a can be told with this text, b is 200% larger"
    )


def test_scores_are_kept_and_damaged_ones_are_not_taken(tmp_path: Path) -> None:
    path, key = tmp_path / "scores" / "a.json", {"model": "m", "passages": "p"}
    assert read_scores(path, key) is None
    scored = Scored((1.25, 3.5), (4, 5))
    write_scores(path, key, scored)
    assert read_scores(path, key) == scored
    assert read_scores(path, {**key, "model": "another"}) is None
    path.write_text(path.read_text()[:20])
    assert read_scores(path, key) is None


@dataclass
class Tokenizer:
    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **_options: object) -> dict[str, list[int]]:
        assert text == "\n"
        return {"input_ids": [13]}


def test_what_stands_before_a_passage() -> None:
    assert prefix_token(Tokenizer(0, 2)) == 0  # type: ignore[arg-type]
    assert prefix_token(Tokenizer(None, 2)) == 2  # type: ignore[arg-type]
    assert prefix_token(Tokenizer(None, None)) == 13  # type: ignore[arg-type]


def test_texts_that_are_none(tmp_path: Path) -> None:
    for name, content, words in (
        ("empty.txt", b" \n", "is empty"),
        ("latin.txt", "Größe".encode("latin-1"), "is no text"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LLMError, match=words):
            read_text(str(tmp_path / name), held_out=True)
    with pytest.raises(LLMError, match="cannot read the text"):
        read_text(str(tmp_path), held_out=True)
    with pytest.raises(LLMError, match="cannot read the text"):
        read_text(str(tmp_path / "none"), held_out=True)
    assert length_faults(make_text("short.txt", "x"), 1023, 512)[0].why.startswith("it has 1023")
    assert not length_faults(make_text("enough.txt", "x"), 1024, 512)


def test_pythons_documentation_is_in_two_parts() -> None:
    held_out, training = read_text("python", True), read_text("python", False)
    assert held_out.name != training.name
    assert 10_000 < held_out.bytes < training.bytes / 10
    paragraphs = set(training.content.split("\n\n"))
    assert not paragraphs & set(held_out.content.split("\n\n"))
