"""What counts as the same model: tokens, special tokens, answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_recipes.errors import LLMError
from llm_recipes.gguf import agreement
from llm_recipes.gguf.agreement import (
    EDGE_TEXTS,
    PLAIN_TEXTS,
    Reference,
    compare_scores,
    special_token_differences,
    tokenizer_differences,
    windows_of,
)
from llm_recipes.gguf.file import read_gguf
from llm_recipes.gguf.model import GgufModel
from llm_recipes.gguf.scoring import Scores
from llm_recipes.merging import stored_dtype
from llm_recipes.model_folder import find_model


@pytest.fixture(scope="module")
def tokenizer(tiny_hf: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_hf)


def scores(logprobs: list[float], best: list[int]) -> list[Scores]:
    return [Scores(np.array(logprobs), np.array(best, np.int32))]


def reference(logprobs: list[float], *ties: int) -> list[Reference]:
    """What transformers says; of each token the same ones are likeliest."""
    return [Reference(np.array(logprobs), np.array([ties] * len(logprobs), np.int32))]


def test_the_same_tokens(tokenizer: Any, tiny_gguf: Path) -> None:
    with GgufModel.load(read_gguf(tiny_gguf)) as model:
        assert tokenizer_differences(tokenizer, model.tokenizer, PLAIN_TEXTS) == []
        assert special_token_differences(tokenizer, model.tokenizer) == []


def test_differences_are_shown_where_they_begin(tokenizer: Any) -> None:
    def other(text: str, **options: Any) -> dict[str, list[int]]:
        ids = list(tokenizer(text, **options)["input_ids"])
        return {"input_ids": [*ids[:3], 7, *ids[4:]] if "def" in text else ids}

    [found] = tokenizer_differences(tokenizer, other, PLAIN_TEXTS | EDGE_TEXTS)
    assert found.kind == "code"
    assert "from token 3 on" in str(found) and "[7, " in str(found) and "def mean" in str(found)


class Changed:
    """A tokenizer of which some things are otherwise."""

    def __init__(self, tokenizer: Any, **changes: Any) -> None:
        self._tokenizer = tokenizer
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        return self._tokenizer(text, **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eos_token_id": 5}, "eos_token_id is 2, and 5 in the GGUF"),
        ({"chat_template": None}, "the chat template is not in the GGUF"),
        ({"chat_template": "{{ messages }}"}, "the chat template is another one"),
    ],
)
def test_lost_special_tokens(tokenizer: Any, changes: dict[str, Any], words: str) -> None:
    [found] = special_token_differences(tokenizer, Changed(tokenizer, **changes))
    assert words in found


def test_a_missing_bos(tokenizer: Any) -> None:
    class WithoutBos(Changed):
        def __call__(self, text: str, **options: Any) -> Any:
            return self._tokenizer(text, **{**options, "add_special_tokens": False})

    [found] = special_token_differences(tokenizer, WithoutBos(tokenizer))
    assert "a text becomes [1, " in found


def test_ends_that_a_chat_needs(tokenizer: Any, tmp_path: Path) -> None:
    class Ends(Changed):
        end_ids = frozenset({2})

    assert agreement.end_token_remarks(tmp_path, Ends(tokenizer)) == []
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    [found] = agreement.end_token_remarks(tmp_path, Ends(tokenizer))
    assert repr(tokenizer.decode([5])) in found


def test_a_text_is_cut_into_windows(tokenizer: Any) -> None:
    windows = windows_of(PLAIN_TEXTS["code"] * 9, tokenizer, count=100, length=33)
    assert [len(window) for window in windows] == [33, 33, 33, 5]
    assert {window[0] for window in windows} == {tokenizer.bos_token_id}
    assert sum(len(window) - 1 for window in windows) == 100
    without = Changed(tokenizer, bos_token_id=None)
    windows = windows_of(PLAIN_TEXTS["code"] * 9, without, count=100, length=33)
    assert sum(len(window) - 1 for window in windows) == 100
    with pytest.raises(LLMError, match="too short"):
        windows_of("Hello", tokenizer, count=100, length=33)


def test_agreement_is_a_share_of_tokens() -> None:
    wanted = reference([-1.0] * 200, 3, 3)
    found = compare_scores(scores([-1.5] * 200, [3] * 198 + [4, 4]), wanted, "f16")
    assert found.holds and found.same_top == found.same_but_ties == 0.99
    assert found.logprob_difference == pytest.approx(0.5)
    assert found.perplexity == pytest.approx(math.exp(1.5))
    lower = scores([-1.0] * 200, [3] * 197 + [4, 4, 4])
    assert not compare_scores(lower, wanted, "bf16").holds
    assert compare_scores(lower, wanted, "q8_0").holds
    tied = compare_scores(lower, reference([-1.0] * 200, 3, 4), "bf16")
    assert tied.holds and (tied.same_top, tied.same_but_ties) == (0.985, 1.0)


def test_near_ties() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.96, 4.94, 5.0001], [9.0, 1.0, 1.0, 1.0, 1.0]])
    found = agreement._reference(torch.cat([logits, logits[:1]]), torch.tensor([0, 3, 0]))
    assert set(found.ties[0]) == {1, 2, 4} and found.ties[0][0] == 4
    assert set(found.ties[1]) == {0}
    assert found.logprobs == pytest.approx(
        [float(logits[0].log_softmax(0)[3]), float(logits[1].log_softmax(0)[0])], rel=1e-4
    )


def test_what_computes_no_numbers_does_not_agree() -> None:
    found = compare_scores(scores([math.nan] * 4, [0] * 4), reference([-1.0] * 4, 0), "f16")
    assert not found.holds
    assert found.as_record()["perplexity"] is None


def test_the_same_answers(tiny_hf: Path, tiny_gguf: Path, tokenizer: Any) -> None:
    windows = windows_of(agreement.default_text(2000), tokenizer, count=300, length=256)
    folder = find_model(str(tiny_hf))
    wanted = agreement.transformers_scores(folder.path, stored_dtype(folder), windows)
    found = agreement.gguf_scores(tiny_gguf, windows, threads=1)
    same = compare_scores(found, wanted, "f32")
    assert same.holds and same.tokens == 300
    assert same.logprob_difference < 1e-3
    shifted = compare_scores(found[::-1], wanted[::-1], "f32")
    assert shifted.same_top == same.same_top
    others = [Scores(one.logprobs[::-1], one.best[::-1]) for one in found]
    assert not compare_scores(others, wanted, "f32").holds


def test_too_little_memory_is_said(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read_gguf(tiny_gguf)
    assert agreement.memory_lacking(10**6, file) == ""
    monkeypatch.setattr(agreement, "free_host_bytes", lambda: 10**6)
    assert "0.001 GB are free" in agreement.memory_lacking(10**6, file)
