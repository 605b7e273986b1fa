"""What every program of bin/ does with the faults that are nobody's code."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from _llm import main as entry

MAIN = Path(entry.__file__)


@pytest.mark.parametrize("error, said", [
    (PermissionError(errno.EACCES, "Permission denied", "/site/images/.lock"),
     "/site/images/.lock can't be used"),
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device")])
def test_what_the_system_refuses_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, said: str,
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setitem(entry.PROGRAMS, "image", "a_program")
    monkeypatch.setitem(sys.modules, "a_program", SimpleNamespace(main=fail))  # type: ignore[misc]
    monkeypatch.setattr(sys, "argv", ["main.py", "image", "build"])
    assert entry.main() == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown


def test_a_closed_pipe_is_no_fault() -> None:
    command = f"exec 3>&1; '{sys.executable}' -I '{MAIN}' llm-run --help | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
