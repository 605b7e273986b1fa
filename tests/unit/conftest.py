"""The host library is no package that one installs: its folder goes on the path here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "bin"))

SIF_HEAD = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A checkout with the real default profile and nothing else."""
    folder = tmp_path / "the checkout"
    (folder / "sites").mkdir(parents=True)
    (folder / "Makefile").touch()
    text = (REPOSITORY / "sites" / "default.ini").read_text(encoding="utf-8")
    (folder / "sites" / "default.ini").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose home folder is empty."""
    folder = tmp_path / "user"
    folder.mkdir()
    return {"HOME": str(folder), "PATH": "/usr/bin:/bin"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with files that begin as images do: llm for cpu and cuda12, and another one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, digest in (("llm-cpu", "0123456789ab"), ("llm-cuda12", "ba9876543210")):
        (folder / f"{name}-{digest}.sif").write_bytes(SIF_HEAD)
        (folder / f"{name}.sif").symlink_to(f"{name}-{digest}.sif")
    (folder / "other.sif").write_bytes(SIF_HEAD)
    return folder
