"""Images that are not mounted through FUSE: one unpacked copy per node and user.

Without FUSE and without a setuid installation Apptainer unpacks the whole image at every start and
throws the copy away afterwards: gigabytes for each of a job's tasks. Here the first start unpacks
and the others use its copy.
"""

from __future__ import annotations

import os
import stat

from _llm.errors import LLMError
from _llm.image_digest import file_identity, unchanged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _llm.apptainer import Apptainer
    from _llm.lookup import Image

FUSE_DEVICE = "/dev/fuse"
# Contents of a SIF are compressed to a quarter or more of their size.
SIZE_FACTOR = 4
ADMINISTRATOR = f"an administrator: modprobe fuse && chmod 0666 {FUSE_DEVICE}"


def runnable_path(
    image: Image,
    apptainer: Apptainer,
    local: str,
    notices: list[str],
    outlives_signals: bool = False,
) -> str:
    """Return the path to start `image` from: the image itself, or its unpacked copy on this node.

    local: this user's folder on the node. outlives_signals: the program has to live on when Slurm
    signals every process of its step, which kills the one behind a FUSE mount; so a copy it is.
    Raises LLMError where a copy is needed and cannot be made.
    """
    if os.path.isdir(image.path) or is_privileged(apptainer):
        return image.path
    if can_use_fuse() and not outlives_signals:
        return image.path
    why = (
        "a program with --requeue has to outlive signals to the whole job, which end FUSE mounts"
        if can_use_fuse()
        else f"{FUSE_DEVICE} is missing or closed to you. Faster starts: {ADMINISTRATOR}"
    )
    folder = os.path.join(local, "images")
    status = os.stat(image.path)
    # What a site requires was checked of the file with this very status.
    stem = os.path.basename(image.path)[:40]  # for people; a name has 255 bytes at most
    copy = os.path.join(folder, f"{stem}-{file_identity(status)}")
    if not os.path.isdir(copy):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _unpack_once(image.path, status, apptainer, copy, why)
        notices.append(f"the image was unpacked once for this node, to {copy}: {why}")
    return copy


def can_use_fuse() -> bool:
    """Say whether this user may mount through FUSE here."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def is_privileged(apptainer: Apptainer) -> bool:
    """Say whether this Apptainer lets the kernel mount images, without a process behind them."""
    if os.geteuid() == 0 and "--userns" not in apptainer.exec_flags:
        return True
    return is_setuid(apptainer.path)


def is_setuid(program: str) -> bool:
    """Say whether an Apptainer is a setuid installation, which needs no user namespace."""
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(program)))
    for folder in ("libexec/apptainer", "lib/x86_64-linux-gnu/apptainer", "libexec/singularity"):
        try:
            starter = os.stat(os.path.join(prefix, folder, "bin", "starter-suid"))
        except OSError:
            continue
        if starter.st_uid == 0 and starter.st_mode & stat.S_ISUID:
            return True
    return False


def _unpack_once(
    path: str, status: os.stat_result, apptainer: Apptainer, copy: str, why: str
) -> None:
    import fcntl

    # The lock is the kernel's: it goes with the process that holds it, however that ends.
    with open(f"{copy}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(copy):
            _unpack(path, status, apptainer, copy, why)


def _unpack(
    path: str, status: os.stat_result, apptainer: Apptainer, copy: str, why: str
) -> None:
    import shutil
    import subprocess

    size = status.st_size
    free = shutil.disk_usage(os.path.dirname(copy)).free
    if free < size * SIZE_FACTOR:
        raise LLMError(
            f"the image {path} cannot be used on this node",
            f"an unpacked copy needs about {size * SIZE_FACTOR / 2**30:.1f} GiB in "
            f"{os.path.dirname(copy)}, where {free / 2**30:.1f} GiB are free; it is needed because "
            + why,
            f"export LLM_LOCAL_DIR=/with/room; or {ADMINISTRATOR}",
        )
    temporary = f"{copy}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # left by one that was killed; we hold the lock
    command = [apptainer.path, "-q", "build", *apptainer.exec_flags, "--sandbox", temporary, path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        shutil.rmtree(temporary, ignore_errors=True)
        raise LLMError(
            f"the image {path} cannot be unpacked to {os.path.dirname(copy)}",
            "\n       ".join(done.stderr.strip().splitlines()[-5:]),
            f"the copy is needed because {why}",
        )
    if not unchanged(path, status):
        shutil.rmtree(temporary, ignore_errors=True)
        raise LLMError(
            f"the image {path} was replaced or changed while it was unpacked",
            "the copy could hold something else than what was checked",
            "start it again; `make image` never changes an image file",
        )
    os.rename(temporary, copy)
