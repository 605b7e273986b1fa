"""Files of settings, read and checked value by value: all that is wrong in one is said at once.

from llm_recipes.meta.settings import Checks, read_object
values = read_object(Path("params.json"))
wrong = Checks(values)
wrong.number("dim", int)
wrong.lines  # a line each
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from llm_recipes.architecture import read_json
from llm_recipes.errors import LLMError
from llm_recipes.stored_weights import unreadable

LARGEST_FILE = 1 << 20  # bytes; Meta's params.json has a few hundred


class Checks:
    """Collects what is wrong with the values of a file. values: by key; lines: the faults."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.lines: list[str] = []

    def number(self, key: str, kind: type, *, optional: bool = False, largest: float = inf) -> None:
        """The value must be a number above 0; whole if kind is int; optional: null or absent."""
        value = self.values.get(key)
        wanted = "a whole number above 0" if kind is int else "a number above 0"
        if value is None:
            if not optional:
                self.lines.append(f"{key} is missing: {wanted}")
        elif type(value) not in ((int,) if kind is int else (int, float)) or not 0 < value < inf:
            self.lines.append(f"{key} is {shown(value)}, not {wanted}")
        elif value > largest:
            self.lines.append(f"{key} is {shown(value)}, more than {largest:.0f}")


def read_object(path: Path) -> dict[str, Any]:
    """What a file of JSON with one object holds.

    Raises:
        LLMError: If it cannot be read, is no file of settings, or damaged.
    """
    try:
        if path.exists() and not path.is_file():
            raise LLMError(f"cannot read {path}", "it is no file")
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    if size > LARGEST_FILE:
        why = f"it has more than {LARGEST_FILE} bytes"
        raise LLMError(f"{path} is not as it should be", why, "copy it again")
    return read_json(path)


def shown(value: Any) -> str:
    """A value as it stands in the file, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
