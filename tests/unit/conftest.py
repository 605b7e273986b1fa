"""The host library is no package that one installs: its folder goes on the path here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "bin"))


def sif_bytes(content: bytes = b"squashfs") -> bytes:
    """The smallest image file: a header, one descriptor, and a system partition of any content."""
    from _llm.sif import DESCRIPTOR, HEADER, PARTITION

    begin, data = HEADER.size, HEADER.size + DESCRIPTOR.size
    launch = b"#!/usr/bin/env run-singularity\n"
    head = HEADER.pack(launch, b"SIF_MAGIC", b"01", b"02", b"", 0, 0, 0, 1, begin, DESCRIPTOR.size,
                       data, len(content))
    entry = DESCRIPTOR.pack(PARTITION, True, 1, 0xF0000001, 0, data, len(content), len(content),
                            0, 0, 0, 0, b"rootfs", b"")
    return head + entry + content


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
    """A folder with images as far as headers go: llm for cpu and cuda12, and another one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, digest in (("llm-cpu", "0123456789ab"), ("llm-cuda12", "ba9876543210")):
        (folder / f"{name}-{digest}.sif").write_bytes(sif_bytes())
        (folder / f"{name}.sif").symlink_to(f"{name}-{digest}.sif")
    (folder / "other.sif").write_bytes(sif_bytes())
    return folder
