"""Checkpoints of a training run: whole or not there, the newest one, no more than so many.

    from llm_recipes.run_checkpoints import newest_checkpoint, prune_checkpoints, seal_checkpoint

A checkpoint is a folder `checkpoint-STEP`. Its file complete.json is written last, after every
other file is on the disk, and lists them with their sizes: a folder without it, or with a file
missing or shorter, was cut short and is never resumed from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_recipes.files import write_fault, write_text

SEAL = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. facts: what it was sealed with."""

    folder: Path
    step: int
    facts: Mapping[str, Any]


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, as transformers' Trainer names it."""
    return folder / f"checkpoint-{step}"


def seal_checkpoint(folder: Path, facts: Mapping[str, Any]) -> None:
    """Bring every file of a checkpoint to the disk, then say that it is whole.

    Args:
        folder: The checkpoint.
        facts: Kept with it, of types that JSON knows.

    Raises:
        LLMError: If a file cannot be flushed or written.
    """
    sizes = {}
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != SEAL:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    sizes[str(path.relative_to(folder))] = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise write_fault(folder, error) from error
    write_text(folder / SEAL, json.dumps({**facts, "files": sizes}, indent=1) + "\n")


def read_seal(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint was sealed with; None if it is not whole."""
    try:
        seal = json.loads((folder / SEAL).read_bytes())
        files = seal["files"].items()
        whole = all((folder / name).stat().st_size == size for name, size in files)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return seal if whole else None


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """The whole checkpoints in a folder, by step."""
    found = []
    for path, step in _numbered(folder):
        seal = read_seal(path)
        if seal is not None:
            found.append(Checkpoint(path, step, seal))
    return found


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The whole checkpoint of the latest step; None if there is none."""
    found = whole_checkpoints(folder)
    return found[-1] if found else None


def remove_partial_checkpoints(folder: Path) -> list[Path]:
    """Remove checkpoints that were cut short; returns them."""
    partial = [path for path, _ in _numbered(folder) if read_seal(path) is None]
    for path in partial:
        _remove(path)
    return partial


def prune_checkpoints(folder: Path, keep: int, protected: Collection[int] = ()) -> None:
    """Remove the oldest whole checkpoints until `keep` are left; 0 keeps all.

    Args:
        folder: Where the checkpoints are.
        keep: How many stay, besides the protected ones.
        protected: Steps whose checkpoints stay in any case.
    """
    if keep < 1:
        return
    free = [found for found in whole_checkpoints(folder) if found.step not in protected]
    for found in free[:-keep]:
        _remove(found.folder)


def _remove(folder: Path) -> None:
    # Without its seal first: if this is cut short, what is left is no checkpoint.
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _numbered(folder: Path) -> list[tuple[Path, int]]:
    if not folder.is_dir():
        return []
    found = [
        (path, int(match[1]))
        for path in folder.iterdir()
        if (match := NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return sorted(found, key=lambda pair: pair[1])
