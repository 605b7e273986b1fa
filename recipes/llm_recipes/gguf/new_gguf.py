"""The GGUF that a conversion makes: whether it may be written, and where until it is whole.

from llm_recipes.gguf.new_gguf import check_output, made_again, new_gguf
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.files import open_locked, write_fault
from llm_recipes.gguf.file import SHARD, gguf_digest, read_gguf
from llm_recipes.record import file_hashes, read_record, record_path, write_record

RECIPE = "quantized/convert"
NOT_COMPARED = "it was never compared with transformers"


def check_output(path: Path, overwrite: bool) -> None:
    """See that the name suits a GGUF and nothing is lost by writing it.

    Raises:
        LLMError: If it does not, or there is such a file and it is not to be replaced.
    """
    if os.path.isdir(path):
        raise LLMError(f"{path} is a folder", fix=f"name a file: --output {path / 'model.gguf'}")
    if path.suffix != ".gguf":
        fix = f"--output {path}.gguf"
        raise LLMError(f"{path} is no name of a GGUF", "it does not end in .gguf", fix)
    if SHARD.match(path.name):
        why = "llama.cpp would look for the others"
        raise LLMError(f"{path} is the name of one shard of several", why, "choose another name")
    if os.path.lexists(path) and not overwrite:
        record = read_record(record_path(path)) or {}
        ours = record.get("recipe") == RECIPE
        why = "it was made of another model, with other settings, or changed since" if ours else ""
        raise LLMError(
            f"{path} is there already", why, "--overwrite replaces it, or choose another --output"
        )


def made_again(path: Path, made_with: Mapping[str, Any]) -> bool:
    """Whether the file is what a run with these settings would make."""
    record = read_record(record_path(path)) or {}
    if record.get("status") != "complete" or record.get("made_with") != made_with:
        return False
    try:
        return gguf_digest(read_gguf(path)) == record.get("output_digest")
    except (LLMError, ExceptionGroup):
        return False


def doubt_of(record: Mapping[str, Any]) -> str:
    """Why a file with this record may not answer as transformers does; empty if it was seen to."""
    metrics = record.get("metrics") or {}
    found = metrics.get("agreement")
    if not found:
        return NOT_COMPARED
    if found.get("logprob_difference") is None:
        return "it was accepted although it computes no numbers"
    share, limit = found.get("same_but_ties") or 0, found.get("limit") or 1
    if share < limit:
        return f"it was accepted although only {share:.2%} of its likeliest tokens are the same"
    return ""


@contextlib.contextmanager
def new_gguf(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder; what still has it when the block ends is removed.

    The folder is made.

    Raises:
        LLMError: If the folder can't be written, or another process is writing the same file.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(path, error) from error
    with open_locked(partial):
        try:
            yield partial
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def merged_folder(path: Path) -> Iterator[Path]:
    """A folder beside the output for a merged model, removed when the block ends.

    Only in a block of `new_gguf`: its lock keeps others from this folder too.
    """
    folder = path.with_name(f".{path.name}.merged")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # what a kill left
        try:
            folder.mkdir()
        except OSError as error:
            raise write_fault(folder, error) from error
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(partial: Path, path: Path, record: dict[str, Any], status: str = "complete") -> None:
    """Give a whole file its name, with its record.

    Raises:
        LLMError: If that fails; an older file of this name is then unchanged.
    """
    record["output_digest"] = record["model"]["digest"] = gguf_digest(read_gguf(partial))
    found = file_hashes(partial.parent, [partial.name])
    record["results"] = {path.name: found[partial.name]}
    # The record first: a file that lacks it could not be told from somebody else's.
    write_record(record_path(path), record, status)
    try:
        os.replace(partial, path)
    except OSError as error:
        raise write_fault(path, error) from error


def disagreeing_name(path: Path) -> Path:
    """Where a file is kept that is not to be used: `model.disagrees.gguf` of model.gguf.

    An earlier one is replaced if it was made here.
    """
    number = 1
    while True:
        ending = ".disagrees" if number == 1 else f".disagrees-{number}"
        kept = path.with_name(f"{path.stem}{ending}.gguf")
        record = read_record(record_path(kept)) or {}
        if not os.path.lexists(kept) or record.get("recipe") == RECIPE:
            return kept
        number += 1
