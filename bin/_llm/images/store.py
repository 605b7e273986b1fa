"""The archive of a build's inputs: each file by its SHA-256, checked when it comes and when used.

    ARCHIVE/3f/3f9c2a…/torch-2.13.0-….whl

Archives that a site shares are looked at first and never written to; what is fetched goes to the
user's own, in the cache folder. Names are kept because pip reads them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from _llm.debian import sha256_of
from _llm.errors import LLMError

INCOMING = ".incoming"
DAMAGED = "damaged"
STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Store:
    """Where inputs are kept. own: written to; shared: read only, looked at first; old: the folder
    of Debian packages that earlier versions filled, whose files are taken over."""

    own: Path
    shared: tuple[Path, ...] = ()
    old: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """All of them in the order in which they are looked at."""
        return (*self.shared, self.own)


def make_store(cache: Path, shared: Iterable[str]) -> Store:
    """Return the store of a cache folder, with a site's archives.

    Raises LLMError for an archive that is not there: without it a build would quietly fetch.
    """
    folders = [Path(os.path.abspath(folder)) for folder in shared]
    gone = [str(folder) for folder in folders if not folder.is_dir()]
    if gone:
        raise LLMError(f"the archive {', '.join(gone)} is not a folder",
                       "LLM_ARCHIVE_DIR or [container] archive of the site profile names it",
                       "correct the name, or make archive ARCHIVE=FOLDER")
    return Store(cache / "archive", tuple(folders), cache / "debian")


def place_of(folder: Path, sha256: str) -> Path:
    """The folder in an archive that holds the file with this hash."""
    return folder / sha256[:2] / sha256


def names_of(store: Store, sha256: str) -> list[str]:
    """Names under which a file is kept, without looking into it; empty where it is not there."""
    found: dict[str, None] = {}
    for folder in store.folders:
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(place_of(folder, sha256)))
            found.update(dict.fromkeys(name for name in names if not name.startswith(".")))
    return list(found)


def find(store: Store, sha256: str, name: str = "") -> Path | None:
    """Return the file with this hash, its content checked, None where no archive has it.

    name: only a file of that name, "" for any. A damaged file is moved aside where that is allowed,
    and named, and the next archive is asked.
    """
    for folder in store.folders:
        place = place_of(folder, sha256)
        try:
            names = sorted(os.listdir(place))
        except OSError:
            continue
        for found in names:
            if found.startswith(".") or found != (name or found):
                continue
            if is_intact(place / found, sha256):
                return place / found
            set_aside(store, place / found)
    return take_over(store, sha256, name)


def is_intact(path: Path, sha256: str) -> bool:
    """Whether a file can be read and has this hash."""
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False


def set_aside(store: Store, path: Path) -> None:
    """Say that a file is damaged, and move it out of the way in the user's own archive."""
    print(f"image: {path} is damaged: its SHA-256 is not the one that its folder names", flush=True)
    if store.own in path.parents:
        aside = store.own / DAMAGED / f"{path.name}.{time.time_ns()}"
        with contextlib.suppress(OSError):
            aside.parent.mkdir(exist_ok=True)
            os.replace(path, aside)


def take_over(store: Store, sha256: str, name: str) -> Path | None:
    """Move a Debian package from the folder of earlier versions into the archive."""
    if not store.old or not name:
        return None
    old = store.old / sha256[:2] / f"{sha256}.deb"
    if not old.is_file() or not is_intact(old, sha256):
        return None
    try:
        return add(store, old, sha256, name)
    except LLMError:
        return old


def add(store: Store, part: Path, sha256: str, name: str) -> Path:
    """Give a complete, checked file its place in the user's own archive."""
    target = place_of(store.own, sha256) / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(part, 0o444)
        os.replace(part, target)
    except OSError as error:
        raise not_writable(store.own, error) from None
    return target


def incoming(store: Store) -> Path:
    """The folder for files that are under way; what killed programs left there is removed."""
    folder = store.own / INCOMING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise not_writable(store.own, error) from None
    for part in folder.glob(".part-*"):
        with contextlib.suppress(OSError):
            if is_left(part):
                part.unlink()
    return folder


def is_left(part: Path) -> bool:
    """Whether nobody writes a temporary file any more: its process on this host ended, or it is a
    day old."""
    fields = part.name.rsplit("-", 2)
    here = fields[0] == f".part-{os.uname().nodename}" and fields[1].isdigit()
    return (here and not os.path.exists(f"/proc/{fields[1]}")) or (
        time.time() - part.stat().st_mtime > STALE_SECONDS)


def not_writable(folder: Path, error: OSError) -> LLMError:
    """The error of an archive that takes no files."""
    room = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return LLMError(f"{folder} takes no files: {error.strerror or error}",
                    "what a build fetches is kept there",
                    f"LLM_CACHE_DIR=/path/{'with/room' if room else 'of/your/own'} make image; "
                    "make archive: another ARCHIVE")


def everything(folder: Path) -> list[tuple[str, Path]]:
    """Every file of an archive as (hash, path), sorted; contents are not looked at."""
    found = []
    for path in folder.glob("??/" + "?" * 64 + "/*"):
        if path.is_file() and not path.name.startswith("."):
            found.append((path.parent.name, path))
    return sorted(found)
