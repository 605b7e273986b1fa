"""Read a SIF: the objects of an image file, and the digest that names what it holds.

    sh bin/_llm/tool.sh image digest --image base

The digest leaves out signatures, the file's own id and all dates, so an image keeps its identity
when it is signed, and when its signature is taken off.

Format: https://github.com/apptainer/sif/blob/main/pkg/sif/sif.go (global header, 128 bytes; then
descriptors of 585 bytes; little endian, without padding).
"""

from __future__ import annotations

import os
import struct

from _llm.lookup import SIF_MAGIC, SIF_MAGIC_AT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

# launch line, magic, version, architecture, id, created, modified, free descriptors, descriptors,
# where they begin, their bytes, where the data begin, their bytes
HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
# type, used, id, group, link, offset, size, size with padding, created, modified, user, group, name
DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
MOST_DESCRIPTORS = 4096
PIECE_BYTES = 1 << 22
# Types of objects.
DEFINITION, PARTITION, SIGNATURE = 0x4001, 0x4004, 0x4005
JSON, SBOM = 0x4006, 0x4009


class DamagedError(Exception):
    """An image file that is cut off or whose header makes no sense."""


class Object:
    """One object of a SIF: its descriptor.

    offset and size: of its data in the file, in bytes. name: as given, "" for none. at: where the
    descriptor itself stands in the file.
    """

    __slots__ = ("at", "group", "id", "link", "name", "offset", "size", "type")

    def __init__(self, table: bytes, number: int, begin: int) -> None:
        position = number * DESCRIPTOR.size
        fields = DESCRIPTOR.unpack_from(table, position)
        self.at = begin + position
        self.type, _, self.id, self.group, self.link, self.offset, self.size = fields[:7]
        self.name = fields[12].split(b"\0", 1)[0].decode(errors="replace")


def read_objects(path: str) -> list[Object]:
    """Return the objects of a SIF in the order of their ids.

    Raises DamagedError for a file that is no SIF or is cut off, OSError where it can't be read.
    """
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if head[SIF_MAGIC_AT : SIF_MAGIC_AT + len(SIF_MAGIC)] != SIF_MAGIC:
            raise DamagedError("it does not begin as a SIF does")
        if len(head) < HEADER.size:
            raise DamagedError("its header is cut off")
        fields = HEADER.unpack(head)
        total, begin = fields[8], fields[9]
        if not 0 <= total <= MOST_DESCRIPTORS or begin < HEADER.size:
            raise DamagedError("its header makes no sense")
        file.seek(begin)
        table = file.read(total * DESCRIPTOR.size)
        size = os.fstat(file.fileno()).st_size
    if len(table) < total * DESCRIPTOR.size:
        raise DamagedError("its list of parts is cut off")
    found = [Object(table, number, begin) for number in range(total)
             if DESCRIPTOR.unpack_from(table, number * DESCRIPTOR.size)[1]]
    if not found:
        raise DamagedError("its header names no parts")
    if any(item.offset < 0 or item.size < 0 for item in found):
        raise DamagedError("its list of parts makes no sense")
    end = max(item.offset + item.size for item in found)
    if size < end:
        raise DamagedError(f"it has {size} bytes of {end}")
    return sorted(found, key=lambda item: item.id)


def read_object(path: str, item: Object) -> bytes:
    """Return the data of one object."""
    with open(path, "rb") as file:
        return b"".join(pieces(file, item.offset, item.size))


def object_sha256(path: str, item: Object) -> str:
    """Return the SHA-256 of the data of one object, however large it is, as 64 digits."""
    import hashlib

    found = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in pieces(file, item.offset, item.size):
            found.update(piece)
    return found.hexdigest()


def payload_digest(path: str, progress: Callable[[int, int], None] | None = None) -> str:
    """Return `sha256:` and the digest of what an image file holds, whoever signed it.

    It is the SHA-256 of one line an object, `id type group link size name sha256`, in the order of
    ids and without signatures; of a bare squashfs it is that of the file.
    progress: called with the bytes done and the bytes in all. Raises DamagedError or OSError.
    """
    import hashlib

    with open(path, "rb") as file:
        is_sif = file.read(SIF_MAGIC_AT + len(SIF_MAGIC))[SIF_MAGIC_AT:] == SIF_MAGIC
        items = [i for i in read_objects(path) if i.type != SIGNATURE] if is_sif else []
        size = os.fstat(file.fileno()).st_size
        total, done = sum(item.size for item in items) if is_sif else size, 0
        whole = hashlib.sha256()
        for item in items:
            part = hashlib.sha256()
            for piece in pieces(file, item.offset, item.size):
                part.update(piece)
                done += len(piece)
                if progress:
                    progress(done, total)
            line = (item.id, f"{item.type:#x}", item.group, item.link, item.size, item.name)
            whole.update(" ".join([*map(str, line), part.hexdigest()]).encode() + b"\n")
        if not is_sif:
            for piece in pieces(file, 0, size):
                whole.update(piece)
                done += len(piece)
                if progress:
                    progress(done, total)
    return f"sha256:{whole.hexdigest()}"


def pieces(file: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    """Read a part of a file in pieces. Raises DamagedError where the file ends too early."""
    file.seek(offset)
    left = size
    while left:
        piece = file.read(min(PIECE_BYTES, left))
        if not piece:
            raise DamagedError(f"{left} bytes are missing at its end")
        left -= len(piece)
        yield piece
