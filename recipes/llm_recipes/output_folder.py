"""Folders that a recipe fills with results over several runs: is it one, does another one fill it?

    from llm_recipes.output_folder import check_output_folder, measuring_alone
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.files import open_locked, write_fault
from llm_recipes.record import read_record


def check_output_folder(output: Path, record: str, recipe: str, kind: str) -> None:
    """See that a folder is new, or an earlier one of the same recipe.

    Args:
        output: The folder.
        record: Name of the record in it.
        recipe: The recipe's name in the record.
        kind: What its runs are called, such as sweep.

    Raises:
        LLMError: If it holds something else.
    """
    fix = "choose another --output"
    if output.exists() and not output.is_dir():
        raise LLMError(f"{output} is a file", "the output is a folder", fix)
    if not output.is_dir():
        return
    present = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    if present and (read_record(output / record) or {}).get("recipe") != recipe:
        why = f"it holds {', '.join(present[:5])}, and no record of a {kind}"
        raise LLMError(f"{output} is not the folder of a {kind}", why, fix)


@contextlib.contextmanager
def measuring_alone(lock: Path, kind: str, what: object) -> Iterator[None]:
    """Keep other processes from measuring the same at the same time.

    Args:
        lock: A file, which is made with its folder.
        kind: What the processes are called, such as sweep.
        what: They measure.

    Raises:
        LLMError: If one does, or the folder can't be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(lock.parent, error) from error
    with open_locked(lock, f"another {kind} is measuring {what}"):
        yield
