"""Write a folder so that nobody ever sees half of it.

with new_folder(Path("models/tiny")) as staging:
    model.save_pretrained(staging)
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_recipes.files import write_fault


def user_cache(name: str) -> Path:
    """Folder of this name for what can be made again: in LLM_CACHE_DIR, else the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = os.environ.get("LLM_CACHE_DIR") or os.path.join(cache, "llm")
    return Path(root).expanduser() / name


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`, which takes its place if all goes well.

    A folder that is there already is replaced as a whole; whoever calls this has checked that
    nothing in it is worth keeping. On any error, Ctrl-C included, it stays as it was.

    Args:
        folder: The folder to make; those above it are made too.

    Raises:
        LLMError: If it cannot be written.
    """
    staging = None
    try:
        with write_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
            yield staging
            _flush_for_readers(staging)
            _replace(folder, staging)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Say what it means for a user that a library could not write into a folder.

    Raises:
        LLMError: For the operating system's errors, in whatever form they come.
    """
    try:
        yield
    except OSError as error:
        raise write_fault(folder, error) from error
    except Exception as error:
        failed = _as_os_error(error)
        if failed is None:
            raise
        raise write_fault(folder, failed) from error


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in the folder by its name, sorted; folders are left out."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _as_os_error(error: Exception) -> OSError | None:
    """The operating system's error that safetensors and tokenizers (Rust) report as a text.

    torch.save only says that writing failed.
    """
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    torch_failed = isinstance(error, RuntimeError) and "failed writing file" in str(error)
    return OSError(errno.EIO, f"torch: {error}".split("\n")[0]) if torch_failed else None


def _flush_for_readers(folder: Path) -> None:
    # mkdtemp and some libraries make files that only their owner may read: models are shared.
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.rglob("*"):
        mode = (0o777 if path.is_dir() else 0o666) & ~umask
        if stat.S_IMODE(path.stat().st_mode) != mode:  # else digests of it stay known (ctime)
            path.chmod(mode)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _replace(folder: Path, staging: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        staging.rename(folder)  # takes an empty folder's place too; fails if it has filled since
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
    try:
        folder.rename(aside)
        try:
            staging.rename(folder)
        except BaseException:
            aside.rename(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
