"""The end of a completion: stop tokens, stop strings across tokens, limits, streamed text."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from llm_recipes.stopping import Row


class ByteTokenizer:
    """Tokens are UTF-8 bytes; 0 is special."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(token for token in token_ids if token).decode("utf-8", "replace")


class FallbackTokenizer(ByteTokenizer):
    """As transformers decodes SentencePiece's bytes: all of a run, or nothing of it."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        try:
            return bytes(token for token in token_ids if token).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(token_ids)


def encoded(text: str) -> list[int]:
    """Its bytes; "\\udce6" is half a character, the byte e6."""
    return list(text.encode("utf-8", "surrogateescape"))


def row(
    text: str,
    stop: tuple[str, ...] = (),
    context: int | None = None,
    max_new_tokens: int = 99,
    prompt: str = "Q: ",
) -> tuple[Row, list[str]]:
    """A row that was given the text byte by byte until it ended, and the streamed pieces."""
    limits = SimpleNamespace(
        max_new_tokens=max_new_tokens, stop=stop, stop_token_ids={0}, context=context
    )
    pieces: list[str] = []
    found = Row(0, encoded(prompt), ByteTokenizer(), limits, pieces.append)
    for token in encoded(text):
        found.append(token)
        if found.finish_reason:
            break
    return found, pieces


@pytest.mark.parametrize("stop", [("END",), ("END", "never"), ("ü END",), ("END of", "END")])
def test_stop_string_ends_and_is_cut_off(stop: tuple[str, ...]) -> None:
    found, pieces = row("Grüße ü END of it", stop)
    expected = "Grüße " if stop == ("ü END",) else "Grüße ü "
    assert (found.text(), found.finish_reason) == (expected, "stop")
    assert "".join(pieces) == expected


def test_stop_string_after_long_text_is_found_at_once() -> None:
    found, _ = row("x" * 80 + "STOP" + "y", ("STOP",))
    assert (found.finish_reason, len(found.generated)) == ("stop", 84)


def test_stop_string_of_the_prompt_does_not_count() -> None:
    found, _ = row("a\nb", ("Q:",), max_new_tokens=3)
    assert (found.text(), found.finish_reason) == ("a\nb", "length")


def test_stop_string_of_a_prompt_that_ends_within_a_character_does_not_count() -> None:
    # The first bytes turn the prompt's end into another text: 日 is e6 97 a5.
    found, _ = row("\udc97\udca5ok", ("Q:",), prompt="Q:\udce6", max_new_tokens=4)
    assert (found.finish_reason, len(found.generated)) == ("length", 4)


def test_stop_token_counts_and_has_no_text() -> None:
    found, pieces = row("ab\0c")
    assert (found.text(), found.finish_reason, len(found.generated)) == ("ab", "stop", 3)
    assert "".join(pieces) == "ab"


def test_half_characters_are_not_shown() -> None:
    found, pieces = row("a€b\0")
    assert pieces == ["a", "€", "b"]
    assert found.text() == "a€b"


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_half_a_character_leaves_those_before_it(missing: int) -> None:
    ids = list("안é😀".encode())[:-missing]
    limits = SimpleNamespace(max_new_tokens=len(ids), stop=(), stop_token_ids={0}, context=None)
    pieces: list[str] = []
    found = Row(0, [], FallbackTokenizer(), limits, pieces.append)
    for token in ids:
        found.append(token)
    assert found.text() == "안é" + "\ufffd" * (4 - missing) == "".join(pieces)
    assert pieces[:2] == ["안", "é"]


def test_what_looked_like_a_stop_string_is_shown_later() -> None:
    found, pieces = row("EN route\0", ("END",))
    assert found.text() == "EN route" == "".join(pieces)
    assert pieces[0] == "EN "


def test_the_beginning_of_a_stop_string_waits_for_the_rest_of_a_character() -> None:
    found, pieces = row("a日本b", ("日本",))
    assert (found.text(), found.finish_reason) == ("a", "stop")
    assert pieces == ["a"]
    _, pieces = row("a日曜\0", ("日本",))
    assert pieces == ["a", "日曜"]


@pytest.mark.parametrize(("context", "expected"), [(None, 5), (6, 3), (4, 1), (100, 5)])
def test_limits(context: int | None, expected: int) -> None:
    found, _ = row("abcdefgh", context=context, max_new_tokens=5)
    assert (len(found.generated), found.finish_reason) == (expected, "length")
