"""Times of files, which tick in milliseconds: too slow for tests that change a file twice."""

from __future__ import annotations

from pathlib import Path


def move_time(path: Path, before: int) -> None:
    """Let a file's time of change be another one than `before`, in nanoseconds."""
    while path.stat().st_ctime_ns == before:
        path.chmod(path.stat().st_mode & 0o7777)
