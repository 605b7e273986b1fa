"""The list of an image's files: mode, owner, size, time, target of a link.

    PYTHONPATH=bin python3 -c 'from _llm.contents.listing import list_files
    print(list_files("llm-cpu.sif")["/usr/bin/python3"])'
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from typing import NamedTuple

from _llm.contents.unsquash import knows_option, run_unsquashfs

# drwxr-xr-x 0/0      381 2026-11-22 00:00[:00] NAME, a device's `major, minor` in place of a size
LINE = (rb"^([-dlbcps])([-rwxsStT]{9}) +(\d+)/(\d+) +(\d+(?:, *\d+)?) +"
        rb"(\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?) ")


class Entry(NamedTuple):
    """One file: type as `ls -l` shows it, the rest of its mode, owner, bytes, time, target.

    size: 0 for what is no regular file. time: `2026-11-22 00:00:00`, UTC. target: of a link, or a
    device's numbers.
    """

    type: str
    mode: str
    user: int
    group: int
    size: int
    time: str
    target: str


def list_files(image_file: str) -> dict[str, Entry]:
    """Return path (`/usr/bin/env`; `/` for the root) -> entry of every file of an image.

    image_file: a SIF, a squashfs, or the folder of an unpacked image.
    Raises LLMError for a file that is damaged or no image.
    """
    if os.path.isdir(image_file):
        return list_folder(image_file)
    # A name may hold line breaks and so look like the next line; it can't know this prefix.
    prefix = secrets.token_hex(16)
    # Versions before 4.5 list minutes, no seconds.
    precise = [word for word in ("-full-precision",) if knows_option(word)]
    return parse_listing(run_unsquashfs([*precise, "-lln", "-dest", prefix], image_file), prefix)


def parse_listing(text: bytes, prefix: str) -> dict[str, Entry]:
    """Return path -> entry from `unsquashfs -lln -dest PREFIX`."""
    begin = re.compile(LINE + re.escape(prefix.encode()) + rb"(?=[/\n ]|$)", re.MULTILINE)
    found = list(begin.finditer(text))
    entries: dict[str, Entry] = {}
    for number, match in enumerate(found):
        end = found[number + 1].start() if number + 1 < len(found) else len(text)
        rest = text[match.end():end]
        rest = rest[:-1] if rest.endswith(b"\n") else rest
        kind, mode, user, group, size, moment = (part.decode() for part in match.groups())
        target = ""
        if kind == "l":
            # The size of a link is its target's length, so a name may hold an arrow itself.
            length = int(size)
            target = os.fsdecode(rest[len(rest) - length:])
            rest = rest[:len(rest) - length - len(b" -> ")]
        elif kind in "bc":
            target = size.replace(" ", "")
        entries[os.fsdecode(rest) or "/"] = Entry(
            kind, mode, int(user), int(group), int(size) if kind == "-" else 0, moment, target)
    return entries


def list_folder(folder: str) -> dict[str, Entry]:
    """The same for the folder of an unpacked image."""
    entries = {"/": _entry(folder)}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            entries["/" + os.path.relpath(path, folder)] = _entry(path)
    return entries


def _entry(path: str) -> Entry:
    found = os.lstat(path)
    text = stat.filemode(found.st_mode)
    target = os.readlink(path) if text[0] == "l" else ""
    if text[0] in "bc":
        target = f"{os.major(found.st_rdev)},{os.minor(found.st_rdev)}"
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(found.st_mtime))
    return Entry(text[0], text[1:], found.st_uid, found.st_gid,
                 found.st_size if text[0] == "-" else 0, moment, target)
