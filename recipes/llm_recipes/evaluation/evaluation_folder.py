"""The folder of an evaluation: is it done already, may it be written, write it as a whole.

    if evaluated_already(folder, made_with): ...
    check_output_free(folder, RECIPE, made_with, overwrite)
    with new_evaluation(folder, record) as staging: ...

An evaluation that was interrupted leaves only its record, which says so; results come all at once.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.files import write_fault
from llm_recipes.folders import new_folder
from llm_recipes.made_folder import (
    RECORD,
    check_output,
    existing_parent,
    folder_files,
    made_again,
)
from llm_recipes.record import read_record, write_record
from llm_recipes.say import say

CODE_SUFFIXES = (".yaml", ".yml", ".py")
SHOWN = 60  # characters of a value in messages


def evaluated_already(folder: Path, made_with: Mapping[str, Any]) -> bool:
    """Whether the folder is what an evaluation with these settings would find.

    The data and task files that it has read must be what they were.
    """
    if not made_again(folder, made_with):
        return False
    data = (read_record(folder / RECORD) or {}).get("data")
    files = data.get("files") if isinstance(data, dict) else None
    return isinstance(files, dict) and all(
        file_digest(Path(path)) == digest for path, digest in files.items()
    )


def check_output_free(
    folder: Path, recipe: str, made_with: Mapping[str, Any], overwrite: bool
) -> None:
    """See that writing the folder loses nothing.

    Args:
        folder: Of the results.
        recipe: Which writes it.
        made_with: All that the results depend on.
        overwrite: Replace another evaluation that is there.

    Raises:
        LLMError: If it holds another evaluation, with what differs, or something else.
    """
    record = read_record(folder / RECORD) or {}
    ours = record.get("recipe") == recipe
    if ours and record.get("status") == "complete" and not overwrite:
        earlier = record.get("made_with")
        told = list(_differences(earlier if isinstance(earlier, dict) else {}, made_with))
        why = "; ".join(told) or "files that it has read have changed since"
        fix = "choose another --output; --overwrite replaces it"
        raise LLMError(f"{folder} holds another evaluation", why, fix)
    unfinished = ours and record.get("status") != "complete"
    check_output(folder, recipe, overwrite or unfinished)
    above = existing_parent(folder.parent)
    if not os.access(above, os.W_OK | os.X_OK):
        raise write_fault(folder, PermissionError(errno.EACCES, f"{above} is closed to you"))


@contextmanager
def new_evaluation(folder: Path, record: dict[str, Any]) -> Iterator[Path]:
    """A folder for results, which takes the other's place with its record once all is written.

    Raises:
        LLMError: If it can't be written or is full.
    """
    with new_folder(folder) as staging:
        yield staging
        record["metrics"]["files"] = folder_files(staging)
        files = [str(path.relative_to(staging)) for path in staging.glob("*/*.jsonl")]
        write_record(staging / RECORD, record, "complete", results=files)


def record_unfinished(folder: Path, record: dict[str, Any], status: str) -> None:
    """Write the record of an evaluation that did not get to its end, unless results are there."""
    if (read_record(folder / RECORD) or {}).get("status") == "complete":
        return
    record["metrics"].setdefault("files", [])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / RECORD, record, status)
    except OSError as error:
        say(f"no record of this run: {write_fault(folder, error)}")
    except LLMError as fault:  # it must not hide what ended the run
        say(f"no record of this run: {fault}")


def file_digests(paths: Iterable[Path]) -> dict[str, str]:
    """Digests of files, by their absolute paths; those that can't be read are left out."""
    found = {str(path.absolute()): file_digest(path) for path in paths}
    return {path: digest for path, digest in sorted(found.items()) if digest}


def file_digest(path: Path) -> str:
    """SHA-256 of a file; empty if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def code_digest(folder: Path) -> str:
    """What a folder's tasks are made of: names and contents of its YAML and Python files."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in CODE_SUFFIXES:
            found.update(os.fsencode(path.relative_to(folder)) + b"\0")
            found.update(file_digest(path).encode())
    return found.hexdigest()


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*earlier, *now}):
        if earlier.get(name) != now.get(name):
            option = name.replace("_", " ")
            yield f"{option}: {_short(earlier.get(name))} there, {_short(now.get(name))} now"


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
