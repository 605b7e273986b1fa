"""Start another program, without a terminal, and read what it says."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from _llm.errors import LLMError


def run_captured(
    command: Sequence[str], env: Mapping[str, str], cwd: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; what it prints is text, and it is asked nothing.

    Raises LLMError where it cannot be started.
    """
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", env=env, cwd=cwd, check=False)
    except OSError as error:
        raise LLMError(
            f"{command[0]} cannot be started",
            error.strerror or str(error),
            f"'{command[0]}' --version",
        ) from None
