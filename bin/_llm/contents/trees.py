"""What differs between two images, file by file, and why.

    PYTHONPATH=bin python3 -c 'from pathlib import Path; from _llm.contents.trees import differences
    print(differences(Path("a.sif"), Path("b.sif"), limit=10))'

Format of the superblock: https://dr-emann.github.io/squashfs/squashfs.html
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from pathlib import Path
from typing import NamedTuple

from _llm import sif
from _llm.contents.listing import Entry, list_files
from _llm.contents.unsquash import damaged, squashfs_range, unpacked
from _llm.lookup import SIF_MAGIC, SIF_MAGIC_AT

FILE_SYSTEM = "(the file system)"
PIECE_BYTES = 1 << 20
# magic, inodes, time, block size, fragments, compression, block log, flags, ids, version
SUPERBLOCK = struct.Struct("<IIIIIHHHHHH")
SUPERBLOCK_FIELDS = ("magic", "number of files", "creation time", "block size",
                     "number of fragments", "compression", "block size", "flags",
                     "number of owners", "version", "version")
OBJECTS = {sif.DEFINITION: "definition", sif.PARTITION: "file system", sif.SIGNATURE: "signature",
           sif.JSON: "metadata", sif.SBOM: "SBOM"}


class Difference(NamedTuple):
    """One path that differs, and the reasons.

    Reasons: "content", "time", "mode", "owner", "type", "link target", "only in A", "only in B";
    for the file system as a whole "order" or the field that differs.
    """

    path: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}: {', '.join(self.reasons)}"


def differences(a: Path, b: Path, limit: int = 0) -> list[Difference]:
    """Return the files that differ between two images, sorted by path; empty for the same bytes.

    a, b: SIF files (squashfs files and folders work too). limit: return that many at most, 0 for
    all. Where every file is equal and the packed bytes are not, one entry for the file system says
    so. Extended attributes are not compared; they show as the file system's. Raises LLMError for
    files that are no images.
    """
    packed = not (os.path.isdir(a) or os.path.isdir(b))
    if packed and same_partition(a, b):
        return []
    entries_a, entries_b = list_files(str(a)), list_files(str(b))
    found: dict[str, tuple[str, ...]] = {}
    alike = []
    for path in entries_a.keys() | entries_b.keys():
        reasons = compare(entries_a.get(path), entries_b.get(path))
        if reasons:
            found[path] = reasons
        if path in entries_a and path in entries_b and "content" not in reasons:
            one, other = entries_a[path], entries_b[path]
            if one.type == other.type == "-" and one.size:
                alike.append(path)
    if alike:
        digests = digests_of(a, alike), digests_of(b, alike)
        for path in alike:
            if digests[0][path] != digests[1][path]:
                found[path] = ("content", *found.get(path, ()))
    result = [Difference(path, found[path]) for path in sorted(found)]
    if not result and packed:
        result = [Difference(FILE_SYSTEM, superblock_differences(a, b) or ("order",))]
    return result[:limit] if limit else result


def compare(a: Entry | None, b: Entry | None) -> tuple[str, ...]:
    """The reasons for which two entries of a listing differ; those of the contents by size only."""
    if a is None or b is None:
        return ("only in B",) if a is None else ("only in A",)
    if a.type != b.type:
        return ("type",)
    reasons = (("content", a.size == b.size), ("time", same_time(a.time, b.time)),
               ("mode", a.mode == b.mode), ("owner", (a.user, a.group) == (b.user, b.group)),
               ("link target" if a.type == "l" else "content", a.target == b.target))
    return tuple(reason for reason, same in reasons if not same)


def same_time(a: str, b: str) -> bool:
    """Whether two times are equal, as precisely as both are known."""
    length = min(len(a), len(b))
    return a[:length] == b[:length]


def digests_of(image: Path, paths: list[str]) -> dict[str, bytes]:
    """Path -> digest of the contents of regular files. One image lies unpacked at a time."""
    with unpacked(str(image)) as tree:
        return {path: _digest(os.path.join(tree, path.lstrip("/"))) for path in paths}


def _digest(path: str) -> bytes:
    digest = hashlib.blake2b()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            for piece in iter(lambda: file.read(PIECE_BYTES), b""):
                digest.update(piece)
    except OSError as error:
        raise damaged(path, f"it could not be unpacked: {error.strerror}") from None
    return digest.digest()


def same_partition(a: Path, b: Path) -> bool:
    """Whether two images hold the same squashfs, byte for byte."""
    (offset_a, size_a), (offset_b, size_b) = squashfs_range(str(a)), squashfs_range(str(b))
    if size_a != size_b:
        return False
    with open(a, "rb") as one, open(b, "rb") as other:
        try:
            return all(x == y for x, y in zip(sif.pieces(one, offset_a, size_a),
                                              sif.pieces(other, offset_b, size_b)))
        except sif.DamagedError as error:
            raise damaged(f"{a} or {b}", str(error)) from None


def superblock_differences(a: Path, b: Path) -> tuple[str, ...]:
    """Names of the fields that differ between the superblocks of two images."""
    fields = []
    for path in (a, b):
        offset = squashfs_range(str(path))[0]
        with open(path, "rb") as file:
            file.seek(offset)
            fields.append(SUPERBLOCK.unpack(file.read(SUPERBLOCK.size).ljust(SUPERBLOCK.size,
                                                                             b"\0")))
    return tuple(dict.fromkeys(name for name, one, other
                               in zip(SUPERBLOCK_FIELDS, *fields) if one != other))


def object_differences(a: Path, b: Path) -> list[Difference]:
    """What differs between two SIFs outside their squashfs, signatures included.

    Each object by number and kind, and the header: its id and dates, objects' dates and owners.
    Empty where a file is no SIF.
    """
    if not (is_sif(a) and is_sif(b)):
        return []
    objects_a, objects_b = _by_kind(a), _by_kind(b)
    found = []
    for key in sorted(objects_a.keys() | objects_b.keys()):
        one, other = objects_a.get(key), objects_b.get(key)
        if one is None or other is None:
            there = one or other
            assert there is not None
            found.append(Difference(f"({_name(there)})",
                                    ("only in B" if one is None else "only in A",)))
            continue
        facts = (("id", one.id == other.id), ("name", one.name == other.name),
                 ("group", (one.group, one.link) == (other.group, other.link)),
                 ("content", one.type == sif.PARTITION or _same_object(a, one, b, other)))
        reasons = tuple(reason for reason, same in facts if not same)
        reasons += _dates_and_owner(a, one, b, other)
        if reasons:
            found.append(Difference(f"({_name(one)})", reasons))
    header = _header_differences(a, b)
    return [*found, Difference("(header)", header)] if header else found


def _by_kind(path: Path) -> dict[tuple[int, int], sif.Object]:
    """(type, number within the type) -> object: an older image lacks one and counts otherwise."""
    found: dict[tuple[int, int], sif.Object] = {}
    for item in sif.read_objects(str(path)):
        found[item.type, sum(kind == item.type for kind, _ in found)] = item
    return found


def other_differences(a: Path, b: Path) -> list[str]:
    """What differs between two SIFs outside their squashfs, as lines: `time: (header)`."""
    return [f"{', '.join(item.reasons)}: {item.path}" for item in object_differences(a, b)]


def _name(item: sif.Object) -> str:
    kind = OBJECTS.get(item.type, f"type {item.type:#x}")
    return f"object {item.id}, {kind}"


def is_sif(path: Path) -> bool:
    """Whether a file begins as a SIF does."""
    if os.path.isdir(path):
        return False
    with open(path, "rb") as file:
        return file.read(SIF_MAGIC_AT + len(SIF_MAGIC))[SIF_MAGIC_AT:] == SIF_MAGIC


def _same_object(a: Path, one: sif.Object, b: Path, other: sif.Object) -> bool:
    return one.size == other.size and sif.read_object(str(a), one) == sif.read_object(str(b), other)


def _dates_and_owner(
    a: Path, one: sif.Object, b: Path, other: sif.Object,
) -> tuple[str, ...]:
    rows = []
    for path, item in ((a, one), (b, other)):
        with open(path, "rb") as file:
            file.seek(item.at)
            rows.append(sif.DESCRIPTOR.unpack(file.read(sif.DESCRIPTOR.size)))
    facts = (("time", rows[0][8:10] == rows[1][8:10]), ("owner", rows[0][10:11] == rows[1][10:11]))
    return tuple(reason for reason, same in facts if not same)


def _header_differences(a: Path, b: Path) -> tuple[str, ...]:
    rows = []
    for path in (a, b):
        with open(path, "rb") as file:
            rows.append(sif.HEADER.unpack(file.read(sif.HEADER.size)))
    one, other = rows
    facts = (("launch line", one[0] == other[0]), ("version", one[2:4] == other[2:4]),
             (f"id {uuid.UUID(bytes=one[4])} and {uuid.UUID(bytes=other[4])}", one[4] == other[4]),
             ("time", one[5:7] == other[5:7]))
    return tuple(reason for reason, same in facts if not same)
