"""Is an image file whole? The header of a SIF says where each of its parts ends (_llm/sif.py)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from _llm.lookup import SIF_MAGIC, SIF_MAGIC_AT
from _llm.sif import PIECE_BYTES, DamagedError, read_objects

__all__ = ["DamagedError", "check_whole", "checksum"]

TAIL_BYTES = 1 << 16


def check_whole(path: str) -> int:
    """Return the size of an image file in bytes, after a look at its header and its end.

    A bare squashfs has another header and is taken as it is. Raises DamagedError or OSError.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        is_sif = file.read(SIF_MAGIC_AT + len(SIF_MAGIC))[SIF_MAGIC_AT:] == SIF_MAGIC
    if is_sif:
        read_objects(path)
    with open(path, "rb") as file:
        # A disk or server that lost a part says so when it is read.
        file.seek(max(0, size - TAIL_BYTES))
        while file.read(PIECE_BYTES):
            pass
    return size


def checksum(path: str, stage: Callable[[str], None]) -> str:
    """SHA-256 of a whole file."""
    found = hashlib.sha256()
    size, done = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            found.update(piece)
            done += len(piece)
            stage(f"reading {path} ({done / max(size, 1):.0%})")
    return found.hexdigest()
