"""Compile Python files of an image: the same bytes on every machine, not checked by file time.

    env -i PYTHONHASHSEED=0 python3 -S -s -B compile_bytecode.py [--below TREE] FOLDER...

Bytecode that exists there already is made anew. --below: the folders lie in TREE, and the bytecode
names files without it.

What marshal writes depends a little on what else the compiling process holds: it marks for
reference what has a second user (https://github.com/python/cpython/issues/78274). Of 18,671 files
of the image llm, 2 came out otherwise from uv's long-lived workers than from a fresh process (with
Python 3.11.2). Therefore the files of each folder are compiled by a process of their own that
begins as all others did, however many of them run at the same time.

File times are set when an image is packed, so bytecode that is checked against them would be
invalid, and each start on the read-only image would compile it again.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import shutil
import sys
import traceback
import warnings

UNCHECKED_HASH = (1).to_bytes(4, "little")  # the flags of a .pyc, PEP 552


def folders_below(top: str) -> list[str]:
    """Folders with Python files, sorted; their old bytecode is removed on the way."""
    found = []
    for folder, folders, files in os.walk(top):
        if "__pycache__" in folders:
            shutil.rmtree(os.path.join(folder, "__pycache__"))
            folders.remove("__pycache__")
        if any(name.endswith(".py") for name in files):
            found.append(folder)
    return sorted(found)


def compile_folder(folder: str, below: str) -> None:
    """Compile the files of one folder; what is no Python (templates, other versions) stays."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.endswith(".py") or os.path.islink(path) or not os.path.isfile(path):
            continue
        with open(path, "rb") as stream:
            source = stream.read()
        inside = "/" + os.path.relpath(path, below)
        try:
            code = compile(source, inside, "exec", dont_inherit=True, optimize=0)
        except (SyntaxError, ValueError, RecursionError):
            continue
        target = importlib.util.cache_from_source(path, optimization="")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        # Not by py_compile: on a full disk it leaves a file that is cut off, and says nothing.
        with open(target, "wb") as stream:
            stream.write(importlib.util.MAGIC_NUMBER + UNCHECKED_HASH)
            stream.write(importlib.util.source_hash(source) + marshal.dumps(code))


def compile_all(folders: list[str], below: str, processes: int) -> bool:
    """Compile each folder in a process of its own, `processes` at a time; say if all went well."""
    running, well = 0, True
    for folder in folders:
        if running == processes:
            well = os.wait()[1] == 0 and well
            running -= 1
        if os.fork() == 0:
            compile_and_exit(folder, below)
        running += 1
    for _ in range(running):
        well = os.wait()[1] == 0 and well
    return well


def compile_and_exit(folder: str, below: str) -> None:
    """What a child process does; nothing of its parent's is closed or written a second time."""
    status = 1
    try:
        compile_folder(folder, below)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main(arguments: list[str]) -> int:
    """Compile what the command line names."""
    below = "/"
    if arguments[:1] == ["--below"]:
        below, arguments = arguments[1], arguments[2:]
    warnings.simplefilter("ignore")
    folders = [folder for top in arguments for folder in folders_below(top)]
    return 0 if compile_all(folders, below, len(os.sched_getaffinity(0))) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
