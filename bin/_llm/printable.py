"""Texts from files of others, for a terminal."""

from __future__ import annotations

LONGEST_NAME = 200


def escaped(text: str) -> str:
    """Return a text that can't move the cursor or forge a line: what can't be printed is escaped.

    Undecodable bytes of a file's name are written as `\\udcXX`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(name: str) -> str:
    """Return a name as `escaped` does, and no longer than names are."""
    return escaped(name)[:LONGEST_NAME]
