"""SHA-256 over all bytes of models, adapters and data, in the background, each file only once.

    reading = Reading([Path("models/tiny")])     # a thread reads
    digests, missing = reading.wait(30.0)        # ["sha256:…"] or [None], and why

Of a file it is the SHA-256 of its bytes. Of a folder it is that of what `sha256sum -z` prints for
its files, sorted by their bytes: 64 digits, two spaces, the name in the folder, a zero byte. What a
file had is kept in the user's cache by (device, inode, size, mtime_ns, ctime_ns): 140 GB are read
at the first run, and not again until something about a file changes.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from llm_recipes.folders import user_cache

# What a model's folder is made of; run records and pictures beside it are not.
MODEL_SUFFIXES = (
    *(".safetensors", ".bin", ".pth", ".pt", ".gguf"),
    *(".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"),
)
MODEL_MARKS = ("config.json", "adapter_config.json", "params.json")
RECORD = re.compile(r"(.*\.)?run\.json", re.DOTALL)
PIECE_BYTES = 1 << 20
# File systems' clocks go in steps: what was written a moment ago may change again unseen.
FRESH_NS = 2_000_000_000
NICENESS = 10  # the run's own threads go first
OF_A_THREAD = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
SIGNALS = signal.valid_signals() - OF_A_THREAD
KEPT = re.compile(rb"(\d+) (\d+) (\d+) ([0-9a-f]{64})\n")

_one_at_a_time = threading.Lock()


class Reading:
    """Digests of files and folders that a thread reads; nothing waits for it but `wait`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._found: list[str | None] = [None] * len(paths)
        self._missing = "it was not read to its end"
        self._thread = threading.Thread(target=self._read, args=(list(paths),), daemon=True)
        # Signals are the run's: it may hold them back, and then none may come in through here.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def wait(self, seconds: float) -> tuple[list[str | None], str | None]:
        """What was found after so many seconds at most; and, if a digest is missing, why."""
        self._thread.join(seconds)
        found = list(self._found)
        return found, (self._missing if None in found else None)

    def is_done(self, seconds: float) -> bool:
        """Whether everything was looked at, after so many seconds at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _read(self, paths: Sequence[Path]) -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux: of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        with _one_at_a_time:
            for number, path in enumerate(paths):
                try:
                    self._found[number] = content_digest(path)
                except OSError as error:
                    name = error.filename or path
                    self._missing = f"cannot read {name}: {error.strerror or error}"
                except Exception as error:  # a record's field is no reason to end a thread loudly
                    self._missing = f"{type(error).__name__}: {error}"


def content_digest(path: Path) -> str:
    """`sha256:` and 64 digits: the identity of a file's or a folder's content.

    Raises:
        OSError: If a file cannot be read, changes while it is read, or is no regular file.
    """
    if not path.is_dir():
        return f"sha256:{cached_sha256(path)}"
    lines = hashlib.sha256()
    named = [(os.fsencode(file.relative_to(path)), file) for file in files_of(path)]
    for name, file in sorted(named):
        lines.update(f"{cached_sha256(file)}  ".encode() + name + b"\0")
    return f"sha256:{lines.hexdigest()}"


def files_of(folder: Path) -> list[Path]:
    """The files that a folder's content is made of: those directly in it.

    Of a model's or an adapter's: weights, settings and tokenizer. Hidden files, run records and
    what is no regular file don't count; links do, as the files they lead to.

    Raises:
        OSError: If it cannot be read.
    """
    is_model = any((folder / mark).is_file() for mark in MODEL_MARKS)
    return [
        file
        for file in folder.iterdir()
        if file.name[:1] != "."
        and (file.suffix in MODEL_SUFFIXES or not is_model)
        and RECORD.fullmatch(file.name) is None
        and file.is_file()
    ]


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read only if the cache has it not.

    Raises:
        OSError: If it cannot be read, changes while it is read, or is no regular file.
    """
    for _ in range(2):
        before = os.stat(path)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        kept = _recall(before)
        if kept is not None:
            return kept
        found = file_sha256(path)
        now = time.time_ns()
        after = os.stat(path)
        if _key(before) == _key(after):
            if now - max(after.st_mtime_ns, after.st_ctime_ns) > FRESH_NS:
                _keep(after, found)
            return found
    raise OSError(errno.EBUSY, "it changes while it is read", str(path))


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes; other threads go on meanwhile.

    Raises:
        OSError: If it cannot be read.
    """
    found, piece = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(piece):
            found.update(piece[:count])
    return found.hexdigest()


def _key(status: os.stat_result) -> tuple[int, ...]:
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def _cache_file(status: os.stat_result) -> Path:
    return user_cache("digests") / f"file-{status.st_dev:x}-{status.st_ino:x}"


def _recall(status: os.stat_result) -> str | None:
    """What the cache has of a file that is still the same."""
    with contextlib.suppress(OSError, RuntimeError):
        kept = KEPT.fullmatch(_cache_file(status).read_bytes())
        if kept and tuple(map(int, kept.groups()[:3])) == _key(status)[2:]:
            return kept[4].decode()
    return None


def _keep(status: os.stat_result, digest: str) -> None:
    """Remember a digest; a cache that is full or closed is none."""
    try:
        file = _cache_file(status)
    except RuntimeError:  # no home folder
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    size, modified, changed = _key(status)[2:]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(f"{size} {modified} {changed} {digest}\n", encoding="ascii")
        os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
