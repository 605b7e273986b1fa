"""Big files on their way into a release and out of it: copied, hashed, given their name when whole.

Nothing here follows a link, and what was begun leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _llm.errors import LLMError
from _llm.files import share_blocks

PIECE_BYTES = 1 << 22
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EVERY_S = 0.5

Progress = Callable[[int, int], None]


def progress_line(title: str) -> Progress:
    """Return a function that shows how far `title` is, in place, on a terminal only."""
    last = [0.0]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] >= EVERY_S and sys.stderr.isatty():
            last[0] = now
            print(f"\r{title} {done / max(total, 1):4.0%} \r", end="", file=sys.stderr, flush=True)

    return show


def open_regular(path: Path) -> int:
    """Open a file for reading; a link or anything that is no file raises OSError."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return number


def read_small(path: Path, most: int) -> bytes:
    """Return a whole file, but no more than `most` + 1 bytes of it."""
    with open(open_regular(path), "rb") as file:
        return file.read(most + 1)


def sha256_of(path: Path, progress: Progress | None = None) -> tuple[str, int]:
    """Return SHA-256 and size of a file."""
    with open(open_regular(path), "rb") as file:
        return _hash(file, os.fstat(file.fileno()).st_size, progress)


def _hash(file: object, size: int, progress: Progress | None,
          write: Callable[[bytes], object] | None = None) -> tuple[str, int]:
    digest, done = hashlib.sha256(), 0
    while piece := file.read(PIECE_BYTES):  # type: ignore[attr-defined]
        digest.update(piece)
        if write:
            write(piece)
        done += len(piece)
        if progress:
            progress(done, size)
    return digest.hexdigest(), done


def copy_file(source: Path, target: Path, progress: Progress | None = None,
              link: bool = False) -> tuple[str, int]:
    """Make the new file `target` of `source` and return SHA-256 and size of what is there now.

    Blocks are shared where the file system can; else it is a hard link if `link`, else a copy.
    Raises OSError; an incomplete target is removed.
    """
    with open(open_regular(source), "rb") as old:
        size = os.fstat(old.fileno()).st_size
        new = open(target, "xb")  # noqa: SIM115 - closed below
        try:
            with new:
                if share_blocks(old.fileno(), new.fileno()):
                    os.fsync(new.fileno())
                    return sha256_of(target, progress)
                if not link:
                    found = _hash(old, size, progress, new.write)
                    new.flush()
                    os.fsync(new.fileno())
                    return found
            target.unlink()
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:  # another file system, somebody else's file, or no links at all
                return copy_file(source, target, progress)
            return sha256_of(target, progress)  # not of what `old` was: names can be moved
        except BaseException:
            with contextlib.suppress(OSError):
                target.unlink()
            raise


def write_bytes(path: Path, data: bytes, epoch: int, mode: int = 0o644) -> tuple[str, int]:
    """Write a new file with a fixed time; return its SHA-256 and size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(mode)
    os.utime(path, (epoch, epoch))
    return hashlib.sha256(data).hexdigest(), len(data)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a power cut."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(number)
    finally:
        os.close(number)


def check_room(folder: Path, need: int, fix: str) -> None:
    """Raise LLMError where the file system of `folder`, or of the nearest above, lacks room."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < need:
        raise LLMError(f"{folder} has {gib(free)} free, and {gib(need)} are needed",
                       "nothing was written", fix)


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


@contextmanager
def explain_full(folder: Path, fix: str) -> Iterator[None]:
    """Turn a full disk or quota into an LLMError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise LLMError(f"there is no room left in {folder}", error.strerror or str(error),
                       fix) from None
