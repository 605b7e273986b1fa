"""A conversation: what stays in it, what is forgotten, and what does not end it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llm_recipes.chat import converse  # noqa: E402
from llm_recipes.decoding import Completion, Decoder, Request  # noqa: E402
from llm_recipes.errors import LLMError  # noqa: E402


class Letters:
    """A token a letter; a message is its text and a bar."""

    bos_token_id = None
    chat_template: str | None = "letters"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        return "".join(message["content"] + "|" for message in messages)


class Fake:
    """A decoder that answers with `a`s, as many as it may; memory runs out for long questions."""

    def __init__(
        self, context: int | None, most_tokens: int = 10**6, new: int = 4, answer: int = 10**6
    ) -> None:
        self.device = torch.device("cpu")
        self.settings = SimpleNamespace(max_new_tokens=new, context=context)
        self.most_tokens = most_tokens
        self.answer = answer
        self.seen: list[str] = []

    def forget_cache(self) -> None:
        pass

    def complete(
        self, requests: Sequence[Request], on_text: Callable[[str], None]
    ) -> Iterator[Completion]:
        [request] = requests
        self.seen.append("".join(map(chr, request.token_ids)))
        on_text("a")
        if len(request.token_ids) > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        room = (self.settings.context or 10**6) - len(request.token_ids)
        length = min(self.settings.max_new_tokens, room, self.answer)
        on_text("a" * (length - 1))
        reason = "stop" if length == self.answer else "length"
        yield Completion(request, (0,) * length, "a" * length, reason)


def talk(
    fake: Fake, *lines: str, monkeypatch: pytest.MonkeyPatch, tokenizer: Letters | None = None
) -> list[str]:
    """What the decoder was asked."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert converse(cast(Decoder, fake), tokenizer or Letters(), "auto", None) == 0
    return fake.seen


def test_history(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = talk(Fake(None), "one", "two", "/reset", "three", monkeypatch=monkeypatch)
    assert asked == ["one|", "one|aaaa|two|", "three|"]


def test_room_is_kept_for_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # "one|aaaa|two|" has 13 tokens: it fits into 16, but not with an answer of 4.
    asked = talk(Fake(16), "one", "two", monkeypatch=monkeypatch)
    assert asked == ["one|", "two|"]
    shown = capsys.readouterr()
    assert "forgot its start" in shown.err
    assert "cut off" not in shown.err
    assert shown.out == "aaaa\naaaa\n"


def test_a_large_limit_does_not_forget_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    # 64 new tokens never fit: a fourth of 40 is kept for the answer.
    asked = talk(Fake(40, new=64, answer=3), "x" * 20, "y", "z", "?", monkeypatch=monkeypatch)
    assert asked[1] == "x" * 20 + "|aaa|y|"
    assert asked[2] == "y|aaa|z|"
    assert asked[3] == "y|aaa|z|aaa|?|"


def test_an_answer_without_room_is_said_to_be_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(Fake(12), "x" * 9, monkeypatch=monkeypatch)
    shown = capsys.readouterr()
    assert shown.out == "aa\n"
    assert "(cut off: the model can see 12 tokens" in shown.err


def test_a_question_that_is_too_long_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = talk(Fake(20), "x" * 30, "one", "two", monkeypatch=monkeypatch)
    assert asked == ["one|", "one|aaaa|two|"]
    assert "(too long: 31 tokens of 20)" in capsys.readouterr().err


def test_lack_of_memory_does_not_end_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = talk(Fake(None, 15), "one", "x" * 20, "two", monkeypatch=monkeypatch)
    assert asked[2] == "one|aaaa|two|"
    shown = capsys.readouterr()
    assert shown.out == "aaaa\na\naaaa\n"
    assert shown.err.count("\n") == 1
    assert "(memory ran out with a single prompt of 30 tokens" in shown.err


def test_a_base_model_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, fake = Letters(), Fake(None)
    tokenizer.chat_template = None
    with pytest.raises(LLMError, match="the model knows no chat"):
        talk(fake, "one", monkeypatch=monkeypatch, tokenizer=tokenizer)
    assert fake.seen == []
