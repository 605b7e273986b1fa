"""Write files so that nothing half-written is ever seen and nothing written is lost.

from llm_recipes.files import write_text
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from llm_recipes.errors import LLMError


def write_text(path: Path, text: str) -> None:
    """Replace a file: written to a temporary name in the same folder, flushed, renamed.

    Raises:
        LLMError: If the folder cannot be written or is full; an existing file is then unchanged.
    """
    with staged_text(path, text):
        pass


@contextlib.contextmanager
def staged_text(path: Path, text: str) -> Iterator[None]:
    """Write a text under a temporary name; if the block ends without an error, it gets its own.

    Raises:
        LLMError: If the folder cannot be written or is full; an existing file is then unchanged.
    """
    refuse_device(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_fault(path, error) from error
        yield
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise write_fault(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a closed folder: the error above says so
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def open_locked(path: Path, busy: str | None = None) -> Iterator[FileIO]:
    """A file for appending that no other process has open so.

    Args:
        path: What a result is written to at first, or a file that is there to be locked.
        busy: What it means that another process has it; None: it writes that file.

    Raises:
        LLMError: If another process has it, or it cannot be written.
    """
    try:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed below, after its errors
    except OSError as error:
        raise write_fault(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems know no locks; only a taken lock is a reason to stop.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                fix = "wait for it, or choose another --output"
                what = f"another process is writing {path}" if busy is None else busy
                raise LLMError(what, fix=fix) from None
        yield file


def refuse_device(path: Path) -> None:
    """See that a file would take the place of a file alone.

    Raises:
        LLMError: If it would be that of a device or a pipe, as root's `--output /dev/null` is.
    """
    is_other = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    if is_other or path.absolute().parent == Path("/dev"):
        why = "a device or a pipe would be replaced by a file"
        raise LLMError(f"{path} is no place for a file", why, "choose another place with --output")


def write_fault(path: Path, error: OSError) -> LLMError:
    """What it means for a user that writing this path failed."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = f"free space in {path.parent} (df -h, quota) and give the same command again"
        return LLMError(f"no space left to write {path}", reason, fix)
    if error.errno == errno.ENOENT and not path.parent.exists():
        return LLMError(
            f"cannot write {path}", "its folder does not exist", f"mkdir -p {path.parent}"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason = "it, or a folder above it, is a file"
    return LLMError(f"cannot write {path}", reason, "choose another place with --output")
