"""Read and write the locks of Debian packages: one line a package, with its hash.

    name version architecture sha256 size path-in-the-archive main|security
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable
from pathlib import Path

from _llm.debian import Package
from _llm.errors import LLMError


def read_names(path: Path) -> list[str]:
    """Return the names in an apt*.in file; empty where there is none."""
    if not path.exists():
        return []
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def read_apt_lock(path: Path) -> list[Package]:
    """Return the packages of a lock; an absent file is an empty lock.

    Raises LLMError that names every line that is not of the lock's form.
    """
    if not path.exists():
        return []
    packages, faults = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        if (len(fields) == 7 and re.fullmatch("[0-9a-f]{64}", fields[3]) and fields[4].isdigit()
                and re.fullmatch(r"[\w.+~%/-]+/\w[\w.+~%-]*\.deb", fields[5], re.ASCII)
                and fields[6] in ("main", "security")):
            packages.append(Package(fields[0], fields[1], fields[2], fields[3], int(fields[4]),
                                    fields[5], fields[6]))
        else:
            faults.append(f"line {number}: {line[:60]}")
    if faults:
        raise LLMError(f"{path} is not a lock of Debian packages", "\n       ".join(faults),
                       f"make lock IMAGE={path.parent.name}, or restore the file from git")
    return packages


def locked_on(path: Path) -> str:
    """The day on which a lock was made (YYYY-MM-DD), from its first lines; "unknown" without."""
    for line in path.read_text().splitlines()[:3] if path.exists() else []:
        if line.startswith("# locked: "):
            return line.removeprefix("# locked: ").strip()
    return "unknown"


def write_apt_lock(path: Path, packages: Iterable[Package], command: str) -> None:
    """Write a lock, in place of the old one only when it is complete."""
    lines = [f"# locked: {datetime.date.today().isoformat()}", f"# by: {command}"]
    lines += [f"{p.name} {p.version} {p.architecture} {p.sha256} {p.size} {p.path} {p.archive}"
              for p in sorted(packages, key=lambda p: p.name)]
    write_text(path, "\n".join(lines) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
