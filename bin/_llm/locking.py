"""Two of the same kind at once: the second waits for the first, and says so."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_one(path: Path, program: str = "image", what: str = "build") -> Iterator[bool]:
    """Hold a lock file; wait, and say so, while another process holds it.

    program, what: who says so, and what is under way. Gives False where the file system knows no
    locks (Lustre without `flock`, NFS without lockd): it goes on, and two at once are each other's
    second copy.
    """
    try:
        stream = open(path, "a")  # noqa: SIM115 - closed below
    except PermissionError:
        if not path.exists():
            raise
        stream = open(path)  # noqa: SIM115 - a colleague's
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{program}: another {what} is under way ({path}); waiting for it", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            print(f"{program}: note: no locks on this file system ({path}: {error.strerror})",
                  flush=True)
            yield False
            return
        yield True
