"""Model, adapter and data of a record: are they still there, with the same content?"""

from __future__ import annotations

import os

from _llm.record.content import content_digest
from _llm.record.finding import GONE, OK, OTHER, UNKNOWN, Finding
from _llm.record.reading import Record, inputs, output_names

STANDARD_INPUT = "-"


def check_inputs(record: Record, cache: str) -> list[Finding]:
    """Return what became of everything that the run read."""
    found = []
    for part, given, path, content in inputs(record):
        if given == STANDARD_INPUT:
            found.append(Finding(part, GONE, "it came from standard input, which no record holds",
                                 "--best-effort < FILE gives it again"))
            continue
        where = path or _located(record, given)
        if not path and where and _is_made(record, where):
            continue
        if where:
            found.append(_check(part, where, content, cache))
        elif given:
            found.append(Finding(part, UNKNOWN, f"{given}: the record does not say where it was"))
    files = record.part("data").get("files")
    for path, digest in files.items() if isinstance(files, dict) else ():
        if isinstance(digest, str) and os.path.isabs(path):
            found.append(_check("data", path, f"sha256:{digest}", cache))
    return found


def _located(record: Record, given: str) -> str:
    """Return the absolute path of what older records name as it was given, "" if unknown."""
    if not given or not (os.path.isabs(given) or record.text("cwd")):
        return ""
    path = os.path.join(record.text("cwd"), os.path.expanduser(given))
    # OWNER/NAME may be a folder or the hub's; only what is there tells.
    return path if os.path.isabs(given) or os.path.exists(path) else ""


def _is_made(record: Record, path: str) -> bool:
    """Say whether the run made this itself: recipes that make models or data record them there."""
    for name in output_names(record):
        output = record.part("config").get(name)
        if isinstance(output, str) and output:
            made = os.path.abspath(os.path.join(record.text("cwd"), os.path.expanduser(output)))
            if (os.path.abspath(path) + "/").startswith(made.rstrip("/") + "/"):
                return True
    return False


def _check(part: str, path: str, content: str, cache: str) -> Finding:
    if not os.path.exists(path):
        return Finding(part, GONE, f"{path} is not here", "bring it back, or mount its file system")
    if not content:
        return Finding(part, UNKNOWN, f"{path} is here; the record has no digest of its content")
    try:
        now = content_digest(path, cache)
    except OSError as error:
        return Finding(part, GONE, f"{path} can't be read: {error.strerror}", f"ls -l '{path}'")
    if now == content:
        return Finding(part, OK, f"{path} {content[:19]}")
    return Finding(part, OTHER, f"{path} has changed since: {content[:19]}, now {now[:19]}",
                   "bring back what it was, or take the results for those of another input")
