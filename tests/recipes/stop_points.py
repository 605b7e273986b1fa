"""Stop a run between the steps of its end: `python stop_points.py FILE WHEN OPTION...` is killed.

A run's end gives two files their names, the record and the output, and removes the partial file.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The file, and whether the run is stopped before or after something is done to it.
POINTS = [
    ("a.run.json", "before"),
    ("a.run.json", "after"),
    ("a.jsonl", "after"),
    ("a.jsonl.partial", "after"),
]
SetAttribute = Callable[[Any, str, Any], None]


def stop_at(file: str, when: str, stop: Callable[[], None], put: SetAttribute = setattr) -> None:
    """Make this process call `stop` once a file of this name is about to be, or has been, made."""
    replace, unlink = os.replace, Path.unlink

    def replacing(source: Path, target: Path) -> None:
        if when == "before" and target.name == file:
            stop()
        replace(source, target)
        if when == "after" and target.name == file:
            stop()

    def unlinking(path: Path, missing_ok: bool = False) -> None:
        was_there = path.exists()
        unlink(path, missing_ok)
        if path.name == file and was_there:
            stop()

    put(os, "replace", replacing)
    put(Path, "unlink", unlinking)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "inference"))
    from generate import generate

    from llm_recipes.cli import run_recipe

    stop_at(sys.argv[1], sys.argv[2], lambda: os.kill(os.getpid(), signal.SIGKILL))
    run_recipe(generate, sys.argv[3:])
