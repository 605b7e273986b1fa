"""Pack a normalised file tree into an image file: the same tree gives the same bytes everywhere.

mksquashfs is started here and not by Apptainer, which gives files their own times, and the SIF is
put together with Apptainer's own `sif new` and `sif add`, whose random id and dates are replaced:

    id      the first 16 bytes of the inputs' SHA-256, marked as a UUID of version 8 (RFC 9562)
    dates   the day on which the inputs were locked

Format of a SIF: bin/_llm/sif.py.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from _llm.images.steps import Log
from _llm.sif import read_objects

# benchmarks/squashfs.py compares settings by size, packing time and import time; its table is in
# docs/performance.md.
COMPRESSION = "-comp zstd -Xcompression-level 9 -b 256K"
# All files belong to root: nobody else's ids mean anything on the machines where an image runs, and
# an ordinary user could not unpack a parent image that has others. No extended attributes: they
# come from the file system and the namespace of the build.
FIXED = "-all-root -no-xattrs -noappend -no-progress"
# Where an image says in which order its files are read, a path a line; it need not exist.
READING_ORDER = "opt/llm/reading-order.txt"
MAX_PRIORITY = 32767  # of mksquashfs -sort
LAUNCH = b"#!/usr/bin/env run-singularity\n"
# Places in the header (bin/_llm/sif.py): id, and created and modified behind it; in a descriptor
# the dates, and user and group of who added the object.
ID_AT = 48
DESCRIPTOR_DATES_AT = struct.calcsize("<i?IIIqqq")
GROUP = "1"  # of all objects, so that one signature covers them
ARCHITECTURES = {"x86_64": "2", "aarch64": "4"}
SCRIPTS = {"runscript": "runscript", "test": "test", "helpfile": "runscript.help",
           "startscript": "startscript"}


def pack(
    apptainer: str, mksquashfs: str, tree: Path, image_file: Path, *, definition: str, sbom: bytes,
    digest: str, epoch: int, env: Mapping[str, str], log: Log,
) -> None:
    """Write the image file of a normalised tree.

    definition: the definition file as it was built, without paths. sbom: CycloneDX JSON. digest: of
    the inputs, 64 hexadecimal digits. epoch: seconds since 1970 for all dates. The folder of the
    tree gets temporary files.
    """
    work = tree.parent
    squashfs = work / "root.squashfs"
    # It would not be allowed beside the options that set the times.
    clean = {name: value for name, value in env.items() if name != "SOURCE_DATE_EPOCH"}
    log.run([mksquashfs, tree, squashfs, *squashfs_arguments(tree, work, epoch)], clean,
            "packing the image")
    objects: list[tuple[str, bytes | Path, Sequence[str]]] = [
        ("definition", definition.encode(), ("--datatype", "1")),
        ("inspect-metadata.json", metadata(tree, definition), ("--datatype", "6")),
        ("sbom.cdx.json", sbom, ("--datatype", "9", "--sbomformat", "cyclonedx-json")),
        ("root.squashfs", squashfs, ("--datatype", "4", "--parttype", "2", "--partfs", "1",
                                     "--partarch", ARCHITECTURES[os.uname().machine])),
    ]
    image_file.unlink(missing_ok=True)
    log.run([apptainer, "sif", "new", image_file.absolute()], env, "making the image file")
    for name, data, options in objects:
        file = work / name
        if isinstance(data, bytes):
            file.write_bytes(data)
        log.run([apptainer, "sif", "add", *options, "--groupid", GROUP, "--filename", name,
                 image_file.absolute(), file], env, f"adding {name} to the image file")
    squashfs.unlink()
    fix_header(image_file, digest, epoch)


def squashfs_arguments(tree: Path, work: Path, epoch: int) -> list[str]:
    """Options of mksquashfs; the files that programs read first lie in front."""
    arguments = [*COMPRESSION.split(), *FIXED.split()]
    arguments += ["-mkfs-time", str(epoch), "-all-time", str(epoch)]
    order = tree / READING_ORDER
    if order.is_file():
        priorities = work / "priorities.txt"
        priorities.write_text(sort_file(order.read_text(encoding="utf-8")), encoding="utf-8")
        arguments += ["-sort", str(priorities)]
    return arguments


def sort_file(reading_order: str) -> str:
    """Return mksquashfs's sort file, `path priority` a line, for absolute paths in reading order.

    Paths with white space or a backslash keep the packer's place: mksquashfs would need them
    escaped, and no file that a program reads at its start has one.
    """
    paths = [line[1:] for line in reading_order.splitlines() if re.fullmatch(r"/[^\s\\]+", line)]
    return "".join(f"{path} {MAX_PRIORITY - number}\n"
                   for number, path in enumerate(paths[:MAX_PRIORITY]))


def metadata(tree: Path, definition: str) -> bytes:
    """What `apptainer inspect` shows without starting the image, in Apptainer's own form."""
    folder = tree / ".singularity.d"
    attributes: dict[str, object] = {
        "deffile": definition,
        "environment": {f"/.singularity.d/env/{file.name}": read_script(file)
                        for file in sorted((folder / "env").glob("9*.sh"))},
        "labels": json.loads((folder / "labels.json").read_text(encoding="utf-8")),
    }
    for name, file_name in SCRIPTS.items():
        if (folder / file_name).is_file():
            attributes[name] = read_script(folder / file_name)
    whole = {"data": {"attributes": attributes}, "type": "container"}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def read_script(file: Path) -> str:
    """A script's text as Apptainer shows it, without the line's end at its end."""
    return file.read_text(encoding="utf-8", errors="replace").rstrip("\n")


def fix_header(image_file: Path, digest: str, epoch: int) -> None:
    """Give a SIF the id and the dates that follow from its inputs, nobody's user id, and the line
    with which `./image.sif` starts."""
    dates = struct.pack("<qq", epoch, epoch)
    items = read_objects(str(image_file))
    with open(image_file, "r+b") as stream:
        stream.write(LAUNCH.ljust(32, b"\0"))
        stream.seek(ID_AT)
        stream.write(sif_id(digest) + dates)
        for item in items:
            stream.seek(item.at + DESCRIPTOR_DATES_AT)
            stream.write(dates + struct.pack("<qq", 0, 0))
        stream.flush()
        os.fsync(stream.fileno())


def sif_id(digest: str) -> bytes:
    """A UUID that follows from a digest: version 8, RFC 9562, section 5.8."""
    data = bytearray.fromhex(digest[:32])
    data[6] = data[6] & 0x0F | 0x80
    data[8] = data[8] & 0x3F | 0x80
    return bytes(data)


