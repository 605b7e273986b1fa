"""Is an image file whole? The header of a SIF says where each of its parts ends.

Format: https://github.com/apptainer/sif/blob/main/pkg/sif/sif.go (global header, 128 bytes; then
descriptors of 585 bytes; little endian, without padding).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable

from _llm.lookup import SIF_MAGIC, SIF_MAGIC_AT

HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
DESCRIPTOR = struct.Struct("<i?IIIqqq")
DESCRIPTOR_BYTES = 585
MOST_DESCRIPTORS = 4096
TAIL_BYTES = 1 << 16
PIECE_BYTES = 1 << 22


class DamagedError(Exception):
    """An image file that is cut off or whose header makes no sense."""


def expected_size(path: str) -> int:
    """Bytes that a SIF must have at least, by its header.

    Raises DamagedError when the header is damaged, OSError when the file can't be read.
    """
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise DamagedError("its header is cut off")
        fields = HEADER.unpack(head)
        total, offset = fields[8], fields[9]
        if not 0 <= total <= MOST_DESCRIPTORS or offset < HEADER.size:
            raise DamagedError("its header makes no sense")
        file.seek(offset)
        table = file.read(total * DESCRIPTOR_BYTES)
    if len(table) < total * DESCRIPTOR_BYTES:
        raise DamagedError("its list of parts is cut off")
    end = 0
    for number in range(total):
        _, used, _, _, _, start, size, _ = DESCRIPTOR.unpack_from(table, number * DESCRIPTOR_BYTES)
        if used:
            end = max(end, start + size)
    if not end:
        raise DamagedError("its header names no parts")
    return end


def check_whole(path: str) -> int:
    """Return the size of an image file in bytes, after a look at its header and its end.

    A bare squashfs has another header and is taken as it is. Raises DamagedError or OSError.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        is_sif = file.read(SIF_MAGIC_AT + len(SIF_MAGIC))[SIF_MAGIC_AT:] == SIF_MAGIC
    expected = expected_size(path) if is_sif else size
    if size < expected:
        raise DamagedError(f"it has {size} bytes of {expected}")
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
