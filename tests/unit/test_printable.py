"""Texts of others, for a terminal."""

from __future__ import annotations

from _llm.printable import LONGEST_NAME, escaped, shown


def test_nothing_moves_the_cursor_or_forges_a_line() -> None:
    assert escaped("a\x1b[2Jb\nok: c\u202e\udcff") == r"a\x1b[2Jb\nok: c\u202e\udcff"
    assert escaped("it's; ü 日本 😀") == "it's; ü 日本 😀"


def test_a_name_is_no_longer_than_names_are() -> None:
    assert shown("a\n" + "b" * 300) == r"a\n" + "b" * (LONGEST_NAME - 3)
