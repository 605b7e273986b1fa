"""SHA-256 of models, adapters and data, as run records have them; the cache is the recipes' own.

The recipes write these digests (recipes/llm_recipes/content_digest.py), with another Python and in
an image; the host side must come to the same ones. Of a file it is the SHA-256 of its bytes; of a
folder that of what `sha256sum -z` prints for its files. tests/unit/record/test_content.py compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
import time

# As in recipes/llm_recipes/content_digest.py and run_environment.py.
MODEL_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf",
                  ".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
MODEL_MARKS = ("config.json", "adapter_config.json", "params.json")
CODE_SUFFIXES = (".py", ".yaml", ".yml", ".json", ".j2", ".jinja", ".css")
RECORD = re.compile(r"(.*\.)?run\.json", re.DOTALL)
KEPT = re.compile(rb"(\d+) (\d+) (\d+) ([0-9a-f]{64})\n")
PIECE_BYTES = 1 << 20
FRESH_NS = 2_000_000_000  # what was written a moment ago may change again unseen
LARGE_BYTES = 1 << 30  # of a file that takes seconds


def content_digest(path: str, cache: str) -> str:
    """Return `sha256:` and 64 digits for a file or folder. Raises OSError.

    cache: the user's cache folder; what the recipes have read before is not read again.
    """
    if not os.path.isdir(path):
        return f"sha256:{cached_sha256(path, cache)}"
    lines = hashlib.sha256()
    for name in sorted(map(os.fsencode, files_of(path))):
        digest = cached_sha256(os.path.join(path, os.fsdecode(name)), cache)
        lines.update(f"{digest}  ".encode() + name + b"\0")
    return f"sha256:{lines.hexdigest()}"


def files_of(folder: str) -> list[str]:
    """Return the names of the files that a folder's content is made of. Raises OSError."""
    is_model = any(os.path.isfile(os.path.join(folder, mark)) for mark in MODEL_MARKS)
    return [
        name for name in os.listdir(folder)
        if name[:1] != "."
        and (os.path.splitext(name)[1] in MODEL_SUFFIXES or not is_model)
        and RECORD.fullmatch(name) is None
        and os.path.isfile(os.path.join(folder, name))
    ]


def files_sha256(folder: str) -> str:
    """Return the hash of the recipes and their library. Raises OSError.

    folder: recipes/ of a checkout or an installation.
    """
    lines = hashlib.sha256()
    found = []
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[:1] != "." and name != "__pycache__"]
        for name in names:
            path = os.path.join(above, name)
            if name.endswith(CODE_SUFFIXES) and name[:1] != "." and os.path.isfile(path):
                found.append((os.fsencode(os.path.relpath(path, folder)), path))
    for shown, path in sorted(found):
        lines.update(f"{file_sha256(path)}  ".encode() + shown + b"\0")
    return lines.hexdigest()


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes. Raises OSError."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(PIECE_BYTES), b""):
            found.update(piece)
    return found.hexdigest()


def cached_sha256(path: str, cache: str) -> str:
    """Return the SHA-256 of a file's bytes, read only if the cache has it not. Raises OSError."""
    before = os.stat(path)
    if not stat.S_ISREG(before.st_mode):
        raise OSError(22, "it is no regular file", path)
    file = os.path.join(cache, "digests", f"file-{before.st_dev:x}-{before.st_ino:x}")
    key = (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    with contextlib.suppress(OSError), open(file, "rb") as stream:
        kept = KEPT.fullmatch(stream.read())
        if kept and tuple(map(int, kept.groups()[:3])) == key:
            return kept[4].decode()
    if before.st_size >= LARGE_BYTES:
        print(f"llm-record: note: reading {path} for its digest", file=sys.stderr, flush=True)
    now = time.time_ns()
    found = file_sha256(path)
    after = os.stat(path)
    same = (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == key
    if same and now - max(after.st_mtime_ns, after.st_ctime_ns) > FRESH_NS:
        from _llm.files import write_text

        with contextlib.suppress(OSError):  # a cache that is full or closed is none
            os.makedirs(os.path.dirname(file), exist_ok=True)
            write_text(file, " ".join(map(str, (*key, found))) + "\n")
    return found
