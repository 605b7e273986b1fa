"""Quotas of the folders that fill up: what `df` does not show on most clusters.

`quota` (Linux, NFS) and `lfs quota` (Lustre) print the same columns; other file systems have
programs of their own, which no two sites have alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from _llm.apptainer import find_program
from _llm.checks import file_system_of
from _llm.doctor.finding import FAIL, OK, WARN, Finding
from _llm.doctor.limits import Stage, run_command
from _llm.doctor.machine import gib
from _llm.doctor.storage import Folder, existing
from _llm.errors import LLMError

ANSWER_SECONDS = 5.0
NEARLY = 0.9


def quota(folder: Folder, env: Mapping[str, str], stage: Stage) -> list[Finding]:
    """The quota of a folder that has one; nothing where no program tells."""
    where = existing(folder.path)
    stage(f"asking for the quota of {where}")
    command = _command(where, env)
    if not command:
        return []
    try:
        done = run_command(command, ANSWER_SECONDS)
    except (LLMError, OSError):
        return []  # quotas are often asked for where there are none: no fault of anybody
    return read(folder, done.stdout)


def _command(where: str, env: Mapping[str, str]) -> list[str]:
    path = env.get("PATH", "")
    if file_system_of(Path(where)) == "lustre":
        program = find_program("lfs", path)
        return [program, "quota", "-q", "-u", str(os.getuid()), where] if program else []
    program = find_program("quota", path)
    return [program, "-w", "-p", "-f", where] if program else []


def read(folder: Folder, text: str) -> list[Finding]:
    """Findings from a line `NAME KIB SOFT HARD GRACE FILES SOFT HARD GRACE`; 0 is no limit."""
    for line in text.splitlines():
        words = [word.rstrip("*") for word in line.split()]
        if len(words) < 8 or not all(words[at].isdigit() for at in (1, 2, 3, 5, 6, 7)):
            continue
        numbers = [int(words[at]) for at in (1, 2, 3, 5, 6, 7)]
        used, most = numbers[0] << 10, (numbers[1] or numbers[2]) << 10
        files, most_files = numbers[3], numbers[4] or numbers[5]
        if not most and not most_files:
            return []
        parts = [f"{gib(used)} of {gib(most)}"] if most else []
        parts += [f"{files} of {most_files} files"] if most_files else []
        share = max(used / most if most else 0.0, files / most_files if most_files else 0.0)
        data = {"used_bytes": used, "quota_bytes": most, "files": files, "quota_files": most_files}
        status = FAIL if share >= 1 else WARN if share > NEARLY else OK
        state = {FAIL: "is used up", WARN: "is nearly used up", OK: "has room"}[status]
        text = f"your quota where {folder.path} is {state}"
        fix = f"remove what you don't need (du -sh {folder.path}/*), or {folder.fix}"
        return [Finding("quota", status, text, fix, ", ".join(parts), data)]
    return []
