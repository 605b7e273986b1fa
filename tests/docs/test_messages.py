"""docs/troubleshooting.md quotes the programs' messages as they are, and leaves none out."""

from __future__ import annotations

import re
import sys

import pytest
from documents import HOME, first_cells
from messages import error_messages, is_same, python_texts, shell_texts, source_errors, source_texts

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the recipes are written for the image's Python, 3.11"
)
TEXT = (HOME / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [
    (line, message)
    for line, cell in first_cells(TEXT, "message")
    for message in re.findall(r"`([^`]+)`", cell)
]


def unknown_messages(quoted: list[tuple[int, str]], texts: set[str]) -> list[str]:
    """Quoted messages that no program says."""
    return [
        f"docs/troubleshooting.md:{line}: {message}"
        for line, message in quoted
        if not any(is_same(message, text) for text in texts)
    ]


def test_messages_of_the_manual_occur_in_the_code() -> None:
    assert len(QUOTED) > 100
    unknown = unknown_messages(QUOTED, source_texts(HOME))
    assert not unknown, "\n".join(["no program says:", *unknown])


def test_every_error_is_in_the_manual() -> None:
    messages = [message for _, message in QUOTED]
    missing = [
        f"{file}: {error}"
        for error, file in source_errors(HOME).items()
        if not any(is_same(message, error) for message in messages)
    ]
    assert not missing, "\n".join(["add a row to docs/troubleshooting.md for each:", *missing])


@pytest.mark.parametrize(
    "wrong", ["no Aptainer found", "the image '…' is not build yet", "… is no Debian packet"]
)
def test_a_misquoted_message_is_found(wrong: str) -> None:
    assert unknown_messages([(1, wrong)], source_texts(HOME))


def test_messages_are_read_from_source() -> None:
    source = """
def check(path, several):
    what = f"{path} is {'no' if several else 'the'} image"
    if several:
        raise LLMError(what, "why it is so")
    raise LLMError(f"cannot read {path!r}{path}" if path else "nothing to read", fix="x")
"""
    assert error_messages(source) == {"… is … image", "cannot read …", "nothing to read"}
    assert "why it is so" in python_texts(source)
    assert shell_texts('echo "tool: $1 is no ${kind:-thing}" >&2') >= {"… is no …"}
