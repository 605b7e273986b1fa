"""Files, beyond the standard library: written whole or not at all, walked without gaps."""

from __future__ import annotations

import contextlib
import os

# ioctl(2): https://man7.org/linux/man-pages/man2/ioctl_ficlonerange.2.html
FICLONE = 0x40049409


def write_text(path: str, text: str, mode: int | None = None) -> None:
    """Write a whole file or nothing, whoever else writes it. Raises OSError.

    mode: its permissions, None for what the umask leaves. The temporary name begins with a dot,
    because in some folders each other name means something (a module's version).
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def share_blocks(old: int, new: int) -> bool:
    """Let a new, empty file share an open one's blocks until one of them is written.

    Takes no time and no room. False where the file system can't.
    """
    import fcntl

    try:
        fcntl.ioctl(new, FICLONE, old)
    except OSError:
        return False
    return True


def raise_error(error: OSError) -> None:
    """For os.walk, which leaves out a folder that can't be read if it is not told otherwise."""
    raise error
