"""Runs a Python program as in an image: with these packages folders and nothing else around."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(*words: str, path: list[Path]) -> str:
    """Return what `python WORDS` prints; it must succeed."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": os.pathsep.join(map(str, path))})
    assert done.returncode == 0, done.stderr
    return done.stdout
