"""Paragraphs of `Field: value` lines, as Debian's control files and Python's METADATA have them.

Format: https://www.debian.org/doc/debian-policy/ch-controlfields.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Field (lower case) -> value of each paragraph; continued lines keep their breaks."""
    for block in re.split(r"\n[ \t]*\n", text):
        record = dict(headers(block))
        if record:
            yield record


def headers(text: str) -> Iterator[tuple[str, str]]:
    """(field in lower case, value) of a paragraph; continued lines keep their breaks.

    Lines that begin with # are comments.
    """
    key, lines = "", [""]
    for line in text.replace("\r\n", "\n").split("\n"):
        if line[:1] in (" ", "\t"):
            lines.append(line)
            continue
        if line.startswith("#"):
            continue
        if key:
            yield key, "\n".join(lines)
        before, colon, value = line.partition(":")
        key, lines = (before.strip().lower() if colon else ""), [value.strip()]
    if key:
        yield key, "\n".join(lines)
