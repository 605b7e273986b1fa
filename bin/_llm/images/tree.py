"""The files of an unpacked image by their paths inside: no link leads out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

MOST_LINKS = 40
# No record of a package is longer; a file that is may be made to fill the memory.
LARGEST_TEXT = 64 << 20


class Tree:
    """An unpacked image: its files by their paths inside, links followed inside only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, str] = {"": ""}
        # folder -> name of a source -> names of its bytecode files
        self.bytecode: dict[str, dict[str, list[str]]] = {}

    def path(self, inside: str) -> str:
        """Where a path of the image lies here."""
        return os.path.join(self.root, inside)

    def resolve_parent(self, inside: str) -> str:
        """Return a path without links in its folders and without `..`; its last part stays."""
        folder, name = os.path.split(os.path.normpath("/" + inside).lstrip("/"))
        if folder not in self._folders:
            self._folders[folder] = self.resolve(folder)
        return os.path.join(self._folders[folder], name)

    def resolve(self, inside: str) -> str:
        """Return a path of the image without any links; a loop ends where it is noticed."""
        todo, done = [part for part in inside.split("/") if part not in ("", ".")][::-1], ""
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                done = os.path.dirname(done)
                continue
            step = os.path.join(done, part)
            try:
                target = os.readlink(self.path(step))
            except (OSError, ValueError):
                done = step
                continue
            links += 1
            if links > MOST_LINKS:
                return step  # still a link: whoever reads it looks at what it is first
            if target.startswith("/"):
                done = ""
            todo += [part for part in target.split("/") if part not in ("", ".")][::-1]
        return done

    def read(self, inside: str) -> str:
        """Return a file's text, "" where there is none; bytes that are no UTF-8 are replaced.

        What stands behind the first 64 MiB is left out.
        """
        try:
            path = self.path(self.resolve(inside))
            if not stat.S_ISREG(os.lstat(path).st_mode):
                return ""
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read(LARGEST_TEXT)
        except (OSError, ValueError):
            return ""

    def names(self, inside: str) -> list[str]:
        """Names in a folder, sorted; empty where there is none."""
        folder = self.folder(inside)
        try:
            return sorted(os.listdir(folder)) if folder else []
        except OSError:
            return []

    def folder(self, inside: str) -> str:
        """Where a folder of the image lies here, "" where there is none."""
        path = self.path(self.resolve(inside))
        try:
            return path if stat.S_ISDIR(os.lstat(path).st_mode) else ""
        except (OSError, ValueError):
            return ""

    def walk(self, inside: str) -> Iterator[str]:
        """Paths of all files and links below a folder, in a fixed order."""
        for folder, folders, names in os.walk(self.folder(inside)):
            folders.sort()
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in sorted([*names, *links]):
                yield os.path.relpath(os.path.join(folder, name), self.root)


def bytecode_of(files: Tree, path: str) -> list[str]:
    """Where the bytecode of a Python source is: package lists don't always name it."""
    folder, name = os.path.split(path)
    if not name.endswith(".py"):
        return []
    if folder not in files.bytecode:
        files.bytecode[folder] = {}
        for other in files.names(f"{folder}/__pycache__"):
            if other.endswith(".pyc"):
                files.bytecode[folder].setdefault(other.split(".")[0], []).append(other)
    return [f"{folder}/__pycache__/{other}" for other in files.bytecode[folder].get(name[:-3], [])]


def total_size(files: Tree) -> int:
    """Bytes of all regular files of the image, hard links once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for path in files.walk(""):
        found = os.lstat(files.path(path))
        if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            total += found.st_size
    return total
