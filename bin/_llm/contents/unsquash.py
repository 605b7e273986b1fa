"""The unsquashfs program: where it is, and an image's files unpacked for as long as they are read.

Nothing is mounted and nothing of the image is run, so any user can look into any image here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from _llm import sif
from _llm.apptainer import find_apptainer, find_program, private_folder
from _llm.errors import LLMError
from _llm.images.staging import remove_stale, remove_tree
from _llm.lookup import SIF_MAGIC, SIF_MAGIC_AT, SQUASHFS_MAGIC
from _llm.printable import escaped

if TYPE_CHECKING:
    from _llm.contents.listing import Entry

HOME = Path(__file__).resolve().parents[3]
# What unpacking needs besides the files themselves, in bytes.
MARGIN = 256 << 20


def find_unsquashfs() -> str:
    """Path of unsquashfs: beside Apptainer, whose packages bring it along, else on PATH.

    Raises LLMError where there is none.
    """
    folders = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    with contextlib.suppress(LLMError):
        program = find_apptainer(os.environ, str(HOME)).path
        folders[:0] = [os.path.dirname(program), *_upstream(os.path.dirname(program))]
    private = os.path.join(private_folder(str(HOME)), "bin")
    folders += [private, *_upstream(private)]
    found = find_program("unsquashfs", os.pathsep.join(folders))
    if not found:
        raise LLMError("unsquashfs is missing", "it reads an image's files; Apptainer's own "
                       "packages bring it along",
                       "an administrator installs the package squashfs-tools; or, in a checkout: "
                       "make setup")
    return found


def _upstream(programs: str) -> list[str]:
    """Where Apptainer's unprivileged installer keeps its helpers."""
    return [os.path.join(os.path.realpath(programs), "..", platform.machine(), "utils", "bin")]


def squashfs_offset(image_file: str) -> int:
    """Where an image's squashfs begins, in bytes; 0 for a bare one.

    Raises LLMError for a file that is no image, is cut off, or holds no such file system.
    """
    return squashfs_range(image_file)[0]


def squashfs_range(image_file: str) -> tuple[int, int]:
    """Offset and size of an image's squashfs, in bytes. Raises LLMError as squashfs_offset does."""
    try:
        with open(image_file, "rb") as file:
            head = file.read(SIF_MAGIC_AT + len(SIF_MAGIC))
        if head[:4] == SQUASHFS_MAGIC:
            return 0, os.path.getsize(image_file)
        for item in sif.read_objects(image_file):
            if item.type == sif.PARTITION:
                with open(image_file, "rb") as file:
                    file.seek(item.offset)
                    if file.read(4) == SQUASHFS_MAGIC:
                        return item.offset, item.size
        raise LLMError(f"{image_file} holds no squashfs that can be read", "an image may be "
                       "encrypted, or hold another file system",
                       "use an image that `make image` built")
    except sif.DamagedError as error:
        raise damaged(image_file, str(error)) from None
    except OSError as error:
        raise LLMError(f"the image {image_file} cannot be read", error.strerror or str(error),
                       f"ls -l '{image_file}'") from None


def damaged(image_file: str, why: str) -> LLMError:
    """The mistake of an image file that is not whole."""
    return LLMError(f"{image_file} is damaged or no image", why, "build or copy it again")


def knows_option(option: str) -> bool:
    """Whether this unsquashfs has an option: newer versions have more, and print a longer help."""
    return option.encode() in _help_text()


@functools.cache
def _help_text() -> bytes:
    text = b""
    for word in ("-help-all", "-help"):
        done = subprocess.run([find_unsquashfs(), word], capture_output=True, check=False,
                              stdin=subprocess.DEVNULL, env={**os.environ, "PAGER": "cat"})
        text += done.stdout + done.stderr
    return text.replace(b"[", b"").replace(b"]", b"")


def run_unsquashfs(words: Sequence[str], image_file: str) -> bytes:
    """Run unsquashfs on an image's squashfs and return what it printed.

    words: its options. Raises LLMError with its last words where it fails.
    """
    offset = squashfs_offset(image_file)
    # LC_ALL, TZ: its listing is read here.
    env = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", "PAGER": "cat"}
    done = subprocess.run(
        [find_unsquashfs(), "-no-progress", "-offset", str(offset), *words,
         os.path.abspath(image_file)],
        capture_output=True, check=False, env=env, stdin=subprocess.DEVNULL)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise damaged(image_file, "unsquashfs: " + ("\n       ".join(words) or "it gave no reason"))
    return done.stdout


@contextmanager
def unpacked(image_file: str) -> Iterator[Path]:
    """Give the folder of an image's files, readable, and remove it afterwards.

    An image that is a folder is given as it is. Raises LLMError where the disk has no room.
    """
    if os.path.isdir(image_file):
        yield Path(image_file)
        return
    from _llm.contents.listing import list_files  # which needs this module

    parent = temporary_folder()
    remove_stale(parent)
    entries = list_files(image_file)
    need = unpacked_size(entries) + MARGIN
    free = shutil.disk_usage(parent).free
    if free < need:
        raise LLMError(f"{parent} has {free / 2**30:.1f} GiB free, the unpacked image needs "
                       f"{need / 2**30:.1f}", "its files are compared or listed there",
                       "LLM_BUILD_DIR=/path/with/room and the same command again")
    # Named as builds' folders are, so that one that was killed is removed by the next.
    folder = Path(tempfile.mkdtemp(prefix=f"llm-build-{os.getuid()}-{os.getpid()}-", dir=parent))
    try:
        tree = folder / "tree"
        # What can't be made here, such as a device or another's file, is no error.
        lenient = [word for word in ("-ignore-errors", "-no-exit-code") if knows_option(word)]
        run_unsquashfs(["-quiet", "-no-xattrs", *lenient, "-dest", str(tree)], image_file)
        make_readable(tree)
        check_complete(tree, entries, image_file)
        yield tree
    finally:
        make_readable(folder)
        remove_tree(folder)


def temporary_folder() -> Path:
    """Where images are unpacked: LLM_BUILD_DIR, else TMPDIR, else /var/tmp."""
    folder = Path(os.environ.get("LLM_BUILD_DIR") or os.environ.get("TMPDIR") or "/var/tmp")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise LLMError(f"the folder {folder} is not a writable folder", "LLM_BUILD_DIR or TMPDIR "
                       "names it; images are unpacked there",
                       "LLM_BUILD_DIR=/path/on/a/local/disk and the same command again")
    return folder.absolute()


def unpacked_size(entries: Mapping[str, Entry]) -> int:
    """Bytes that the files of an image take on a disk, about."""
    block = 4096
    return sum(-(-entry.size // block) * block + block for entry in entries.values())


def check_complete(tree: Path, entries: Mapping[str, Entry], image_file: str) -> None:
    """Raise LLMError unless every regular file was unpacked whole: unsquashfs was told to go on."""
    for path, entry in entries.items():
        if entry.type != "-":
            continue
        try:
            size = os.lstat(os.path.join(tree, path.lstrip("/"))).st_size
        except OSError:
            size = -1
        if size != entry.size:
            raise LLMError(f"{image_file} could not be unpacked completely",
                           f"{escaped(path)} has {max(size, 0)} bytes of {entry.size}: the disk "
                           "is full, or the image is damaged",
                           "LLM_BUILD_DIR=/path/with/room and the same command again")


def make_readable(tree: Path) -> None:
    """Let this user read every file of a tree and enter every folder, where it is theirs."""
    for folder, folders, names in os.walk(tree):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                mode = os.lstat(path).st_mode
                want = 0o700 if stat.S_ISDIR(mode) else 0o400
                if mode & want != want and not stat.S_ISLNK(mode):
                    os.chmod(path, stat.S_IMODE(mode) | want)
