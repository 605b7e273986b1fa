"""What `make install` has put into a folder, so that `make uninstall` removes that and no more.

    make uninstall PREFIX=/apps/llm VERSION=0.1.0

A manifest is a JSON file in the folder itself: path -> SHA-256 of a file or target of a link.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _llm.debian import sha256_of
from _llm.files import write_text

NAME = ".manifest.json"
# Whatever the administrator's umask.
READABLE = 0o644


def fingerprint(path: Path) -> str:
    """Return what tells whether a file or a link was changed."""
    if path.is_symlink():
        return "link " + os.readlink(path)
    return sha256_of(path)


def files_in(folder: Path) -> Iterator[Path]:
    """Give every file and link below a folder, without following links."""
    for parent, folders, files in os.walk(folder):
        for name in sorted(files):
            yield Path(parent, name)
        for name in sorted(folders):
            if Path(parent, name).is_symlink():
                yield Path(parent, name)


def write_manifest(folder: Path, **also: Any) -> None:
    """Write down what is in `folder` now; `also` is kept beside the list of files."""
    files = {str(path.relative_to(folder)): fingerprint(path)
             for path in files_in(folder) if path != folder / NAME}
    text = json.dumps({"files": files, **also}, indent=1) + "\n"
    write_text(str(folder / NAME), text, READABLE)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of `folder`; an empty one where there is none or it is damaged."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"files": {}}
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else {
        "files": {}}


def foreign_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files below `folder` that were added, and those that were changed, since.

    Bytecode is nobody's own: root's Python writes it where it finds none.
    """
    known = read_manifest(folder)["files"]
    added, changed = [], []
    for path in files_in(folder):
        if path == folder / NAME or is_bytecode(path):
            continue
        name = str(path.relative_to(folder))
        if name not in known:
            added.append(path)
        elif fingerprint(path) != known[name]:
            changed.append(path)
    return added, changed


def is_bytecode(path: Path) -> bool:
    """Say whether Python made this file of another one."""
    return path.parent.name == "__pycache__" and path.suffix == ".pyc"


def remove_installed(folder: Path) -> list[Path]:
    """Remove from `folder` what its manifest lists, then empty folders; return what stays.

    What was changed or added since stays. Interrupted, it can be done again.
    """
    if not read_manifest(folder)["files"]:
        return list(files_in(folder))
    added, changed = foreign_files(folder)
    stays = {*added, *changed}
    for path in list(files_in(folder)):
        if path not in stays and path != folder / NAME:
            path.unlink()
    (folder / NAME).unlink()
    remove_empty(folder)
    return sorted(stays)


def remove_empty(folder: Path) -> None:
    """Remove a folder if nothing but empty folders is in it, else only those."""
    for parent, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(parent)


def replace_link(link: Path, target: str) -> None:
    """Let `link` lead to `target`, in one step."""
    part = link.with_name(f".{link.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    try:
        part.replace(link)
    finally:
        part.unlink(missing_ok=True)
