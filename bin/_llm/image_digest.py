"""The digest that names what an image holds, kept in the user's cache so that it costs nothing.

    llm-run sh -c 'echo $LLM_IMAGE_DIGEST'

A digest is read from the whole file, once for all nodes that share the cache folder. Afterwards
it is a look at the file's status and at one small file: part of every start of llm-run, so nothing
that is slow to import is imported for it.
"""

from __future__ import annotations

import os
import sys

from _llm.errors import LLMError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

FOLDER = "image-digests"
# Bytes of a file that takes more than about a second to read and hash.
LARGE_BYTES = 300 << 20
DIGEST_LENGTH = len("sha256:") + 64


def cached_digest(path: str, cache: str, local: str = "") -> str:
    """Return the payload digest of an image, `sha256:` and 64 digits; "" for an unpacked folder.

    path: of the image. cache: the user's cache folder. local: one on this node, for the lock that
    lets one of many tasks read. Raises LLMError where the image is damaged or changes while it is
    read, and where the cache folder can't be written.
    """
    real = os.path.realpath(path)
    status = _status(real)
    if os.path.isdir(real):
        return ""
    file = kept_file(cache, FOLDER, status)
    known = _read(file, real, status)
    if known:
        return known

    def read() -> str:
        return _read(file, real, status) or _learn(real, cache)

    return with_lock(local, "image-digests.lock", read)


def file_identity(status: os.stat_result) -> str:
    """Return a name for a file's content as far as its status tells.

    Not the device: a shared file system has another number on each node. So what is kept under
    this name says of which path it is, or of which device.
    """
    numbers = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(f"{number:x}" for number in numbers)


def with_lock(local: str, name: str, step: Callable[[], T]) -> T:
    """Return what `step` does, which of all processes of this user and node one does at a time.

    local: this user's folder on the node, "" for no lock. The lock is the kernel's: it goes with
    the process that holds it, however that ends.
    """
    if not local:
        return step()
    import contextlib
    import fcntl

    with contextlib.ExitStack() as stack:
        # On a disk that is full or knows no locks each reads for itself.
        with contextlib.suppress(OSError):
            lock = stack.enter_context(open(os.path.join(local, name), "w", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        return step()


def unchanged(path: str, before: os.stat_result) -> bool:
    """Say whether a file is still the one whose status was `before`."""
    now = _status(path)
    return (now.st_dev, file_identity(now)) == (before.st_dev, file_identity(before))


def kept_file(cache: str, folder: str, status: os.stat_result) -> str:
    """Return where something that is known of a file is kept in the cache."""
    return os.path.join(cache, folder, f"{file_identity(status)}-{os.geteuid():x}")


def read_kept(file: str) -> list[str]:
    """Return the lines of a small file of the cache, none where there is no good one.

    What others have put into a folder that they may write to does not count. Elsewhere the owner
    tells nothing: some network file systems show another one.
    """
    try:
        with open(file, encoding="utf-8") as stream:
            is_own = os.fstat(stream.fileno()).st_uid == os.geteuid()
            if is_own or not os.stat(os.path.dirname(file)).st_mode & 0o022:
                return stream.read().split("\n")
            return []
    except (OSError, ValueError):
        return []


def keep(cache: str, file: str, text: str) -> None:
    """Write a small file of the cache. Raises LLMError where it can't be written."""
    from _llm.files import write_text

    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise LLMError(
            f"the cache folder {cache} cannot be written",
            error.strerror or str(error),
            "choose another one: export LLM_CACHE_DIR=/path/with/room",
        ) from None


def note_reading(path: str, size: int, purpose: str) -> None:
    """Tell the user why nothing happens for seconds, if it is seconds."""
    if size >= LARGE_BYTES:
        print(f"llm-run: note: reading {path} once for its {purpose}", file=sys.stderr, flush=True)


def is_same_file(device: str, path: str, real: str, status: os.stat_result) -> bool:
    """Say whether something kept under a file's identity, of this device and path, is about it."""
    return device == f"{status.st_dev:x}" or path == _one_line(real)


def owner_line(real: str, status: os.stat_result) -> str:
    """Return device and path of a file in a line, for is_same_file."""
    return f"{status.st_dev:x} {_one_line(real)}"


def _one_line(path: str) -> str:
    return path.encode("unicode_escape").decode()


def _read(file: str, real: str, status: os.stat_result) -> str:
    digest, owner, *_ = [*read_kept(file), "", ""]
    device, _, path = owner.partition(" ")
    is_digest = len(digest) == DIGEST_LENGTH and digest.startswith("sha256:")
    return digest if is_digest and is_same_file(device, path, real, status) else ""


def _learn(real: str, cache: str) -> str:
    from _llm.sif import DamagedError, payload_digest

    # Whoever makes or drops another link to the file changes its status, and nothing else.
    for _ in range(2):
        before = _status(real)
        note_reading(real, before.st_size, "digest")
        try:
            digest = payload_digest(real)
        except DamagedError as error:
            if not unchanged(real, before):
                continue
            raise LLMError(
                f"the image {real} is cut off or damaged", str(error), "build or copy it again"
            ) from None
        except OSError as error:
            raise LLMError(
                f"the image {real} cannot be read", error.strerror or str(error), f"ls -l '{real}'"
            ) from None
        if unchanged(real, before):
            file = kept_file(cache, FOLDER, before)
            keep(cache, file, f"{digest}\n{owner_line(real, before)}\n")
            return digest
    raise LLMError(
        f"the image {real} changes while it is read",
        "somebody writes to it; `make image` never does",
        "wait until it is whole, or copy it to a new name and move it there",
    )


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise LLMError(
            f"the image {path} cannot be read", error.strerror or str(error), f"ls -l '{path}'"
        ) from None
