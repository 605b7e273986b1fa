"""When a completion ends, and its text: stop tokens, stop strings, limits; streaming.

from llm_recipes.stopping import Row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

CONTEXT_TOKENS = (
    4  # prompt tokens decoded along with a completion: SentencePiece drops a first space
)
UNFINISHED = "\ufffd"  # what half of a UTF-8 character decodes to
LONGEST_CHARACTER = 4  # bytes of UTF-8


class Limits(Protocol):
    """The part of the decode settings that ends a completion."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens a completion at most."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end it and are cut off."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end it."""

    @property
    def context(self) -> int | None:
        """Tokens that the model can see."""


class Row:
    """One sequence of a running batch, on the host.

    index: its place in the batch. generated: token ids so far. limit: at most so many.
    finish_reason: empty while it runs, then `stop` or `length`.
    """

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        tokenizer: Any,
        limits: Limits,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.index = index
        self.prompt_length = len(prompt)
        self.generated: list[int] = []
        self.finish_reason = ""
        room = limits.max_new_tokens if limits.context is None else limits.context - len(prompt)
        self.limit = max(1, min(limits.max_new_tokens, room))
        self._limits = limits
        self._tokenizer = tokenizer
        self._before = list(prompt[-CONTEXT_TOKENS:])
        self._on_text = on_text
        self._shown = 0
        # A token can be one byte of a stop string; a few more for the text before it.
        self._tail = max((len(text.encode()) for text in limits.stop), default=0) + CONTEXT_TOKENS

    def append(self, token: int) -> None:
        """Add a generated token and decide whether it was the last."""
        self.generated.append(token)
        if token in self._limits.stop_token_ids or self._ends_in_stop_string():
            self.finish_reason = "stop"
        elif len(self.generated) >= self.limit:
            self.finish_reason = "length"
        if self._on_text is not None:
            self._stream()

    def text(self) -> str:
        """The completion without special tokens, cut before the first stop string."""
        text = self._whole_characters(self._decoded(self.generated, self._before))
        found = [text.find(stop) for stop in self._limits.stop if stop in text]
        return text[: min(found)] if found else text

    def _decoded(self, token_ids: list[int], before: list[int]) -> str:
        known: str = self._tokenizer.decode(before, skip_special_tokens=True)
        whole: str = self._tokenizer.decode(before + token_ids, skip_special_tokens=True)
        if whole.startswith(known):
            return whole[len(known) :]
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _whole_characters(self, text: str) -> str:
        """The text with the characters before an unfinished one.

        Where SentencePiece writes characters as bytes, transformers' decoder gives up a whole run
        of them if its last is not complete.
        """
        if not text.endswith(UNFINISHED):
            return text
        stem = text.rstrip(UNFINISHED)
        for count in range(1, LONGEST_CHARACTER):
            shorter = self._decoded(self.generated[:-count], self._before)
            if not shorter.endswith(UNFINISHED) and len(shorter) > len(stem):
                return shorter + UNFINISHED * count
        return text

    def _ends_in_stop_string(self) -> bool:
        if not self._limits.stop:
            return False
        tail = self.generated[-self._tail :]
        before = self.generated[: -self._tail][-CONTEXT_TOKENS:] or self._before
        text = self._decoded(tail, before)
        return any(stop in text for stop in self._limits.stop)

    def _stream(self) -> None:
        assert self._on_text is not None
        text = self.text()
        end = len(text)
        if not self.finish_reason:
            finished = text.rstrip(UNFINISHED)
            end = len(finished) - self._possible_stop(finished)
        if end > self._shown:
            self._on_text(text[self._shown : end])
            self._shown = end

    def _possible_stop(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        for length in range(max((len(s) for s in self._limits.stop), default=0), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._limits.stop):
                return length
        return 0
