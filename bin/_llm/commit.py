"""Which commit of the checkout runs, for run records, without starting git.

git status takes 10 ms on a local disk and seconds on a busy parallel file system; reading HEAD and
comparing the times and sizes that .git/index holds takes less than a millisecond.
"""

from __future__ import annotations

import os


def read_commit(home: str) -> str:
    """Return the commit of the checkout or installation `home`, 40 hexadecimal digits, or ""."""
    return _checked_out(home) or _installed(home)[0]


def _installed(home: str) -> tuple[str, bool | None]:
    """Return what `make install` wrote down: the commit, and `changed` if it installed changes."""
    try:
        commit, _, word = _read(os.path.join(home, ".commit")).partition(" ")
    except OSError:
        return "", None
    return "" if commit.strip("0123456789abcdef") else commit, word == "changed" or None


def _checked_out(home: str) -> str:
    try:
        folder, common = _git_folders(home)
        head = _read(os.path.join(folder, "HEAD"))
        if not head.startswith("ref: "):
            return head
        name = head[5:]
        for place in (folder, common):
            if os.path.exists(os.path.join(place, name)):
                return _read(os.path.join(place, name))
        for line in _read(os.path.join(common, "packed-refs")).splitlines():
            commit, _, reference = line.partition(" ")
            if reference == name:
                return commit
    except OSError:
        pass
    return ""


def has_changes(home: str, subfolders: tuple[str, ...] = ("bin/", "recipes/")) -> bool | None:
    """Say whether a file that git tracks below `subfolders` was changed since it was checked out.

    None where this cannot be told cheaply. New files, and changes that are staged but not
    committed, are not noticed. Format: https://git-scm.com/docs/index-format
    """
    try:
        folder, _ = _git_folders(home)
        with open(os.path.join(folder, "index"), "rb") as file:
            data = file.read()
    except OSError:
        return _installed(home)[1]
    number = int.from_bytes
    if data[:4] != b"DIRC" or number(data[4:8], "big") not in (2, 3):
        return None
    beginnings = tuple(os.fsencode(name) for name in subfolders)
    position = 12
    for _ in range(number(data[8:12], "big")):
        extended = data[position + 60] & 0x40
        begin = position + (64 if extended else 62)
        end = data.index(b"\0", begin)
        path = data[begin:end]
        if path.startswith(beginnings):
            seconds = number(data[position + 8 : position + 12], "big")
            size = number(data[position + 36 : position + 40], "big")
            try:
                status = os.lstat(os.path.join(os.fsencode(home), path))
            except OSError:
                return True
            if (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF) != (seconds, size):
                return True
        # Entries are padded with 1 to 8 NUL bytes to a multiple of eight.
        position += (end - position + 8) // 8 * 8
    return False


def _git_folders(home: str) -> tuple[str, str]:
    """Return the folder of HEAD and index, and that of the references; a worktree has two."""
    folder = os.path.join(home, ".git")
    if os.path.isfile(folder):
        folder = os.path.join(home, _read(folder).partition("gitdir: ")[2])
        if os.path.exists(os.path.join(folder, "commondir")):
            return folder, os.path.join(folder, _read(os.path.join(folder, "commondir")))
    return folder, folder


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()
