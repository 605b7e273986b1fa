"""Whether a folder may be written: it is new, or an earlier run of the same recipe made it.

from llm_recipes.made_folder import check_output, made_again
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.folders import write_errors
from llm_recipes.record import read_record

RECORD = "run.json"


def check_output(folder: Path, recipe: str, overwrite: bool) -> None:
    """See that writing the folder loses nothing that another program or a user has put there.

    Raises:
        LLMError: If it is there and is not replaced.
    """
    with write_errors(folder):  # a closed folder above it
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            kind = "a link" if folder.is_symlink() else "a file"
            what = f"{folder} is {kind}"
            raise LLMError(what, "the output is a folder", "choose another --output")
        if not folder.exists() or not any(folder.iterdir()):
            return
    record = read_record(folder / RECORD) or {}
    metrics = record.get("metrics")
    made = metrics.get("files") if isinstance(metrics, dict) else None
    if record.get("recipe") != recipe or not isinstance(made, list):
        why = "something else made it, which --overwrite doesn't replace either"
        raise LLMError(f"{folder} exists", why, "choose another --output")
    foreign = sorted({path.name for path in folder.iterdir()} - {*made, RECORD})
    if foreign:
        what = f"{folder} holds files that {recipe} has not made"
        raise LLMError(what, ", ".join(foreign[:8]), "move them away, or choose another --output")
    if not overwrite:
        fix = "--overwrite replaces it, or choose another --output"
        raise LLMError(f"{folder} exists", f"{recipe} made it earlier, from something else", fix)


def made_again(folder: Path, made_with: Mapping[str, Any]) -> bool:
    """Whether the folder is what a run with these settings would make."""
    record = read_record(folder / RECORD) or {}
    metrics = record.get("metrics")
    files = metrics.get("files") if isinstance(metrics, dict) else None
    return (
        record.get("status") == "complete"
        and record.get("made_with") == made_with
        and isinstance(files, list)
        and all((folder / str(name)).exists() for name in files)
    )


def check_space(folder: Path, needed: int) -> None:
    """See that a folder that is to be made finds the bytes it needs.

    Raises:
        LLMError: If the file system has less left; quotas show only while writing.
    """
    with write_errors(folder):
        there = existing_parent(folder)
        free = shutil.disk_usage(there).free
    if free < needed:
        what = f"no space left to write {folder}"
        why = f"{needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free"
        raise LLMError(what, why, f"free space in {there}, or choose another --output")


def existing_parent(path: Path) -> Path:
    """The path, or the folder that is there already, in which it would be made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def folder_files(folder: Path) -> list[str]:
    """Names of all that is in the folder but the record, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)
