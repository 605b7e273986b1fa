"""Write a file that others may be reading: whole, or not at all."""

from __future__ import annotations

import os


def write_text(path: str, text: str) -> None:
    """Write a whole file or nothing, whoever else writes it. Raises OSError."""
    temporary = f"{path}.{os.uname().nodename}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
