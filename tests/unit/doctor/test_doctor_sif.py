"""Image files that broke off: files made here after the format's description."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from _llm.doctor.sif import DamagedError, check_whole, checksum
from _llm.sif import DESCRIPTOR, HEADER

TABLE, DATA = 4096, 32768


def descriptor(used: bool, number: int, start: int, size: int) -> bytes:
    return DESCRIPTOR.pack(0x4004, used, number, 1, 0, start, size, size, 0, 0, 0, 0, b"", b"")


def make_sif(path: Path, sizes: tuple[int, ...] = (100, 5000)) -> Path:
    """A file with a SIF's header, parts of some sizes, and an unused descriptor."""
    head = HEADER.pack(
        b"#!/usr/bin/env run-singularity\n",
        b"SIF_MAGIC",
        b"01",
        b"02",
        b"i" * 16,
        0,
        0,
        0,
        len(sizes) + 1,
        TABLE,
        0,
        DATA,
        sum(sizes),
    )
    table, start = b"", DATA
    for number, size in enumerate(sizes):
        table += descriptor(True, number + 1, start, size)
        start += size
    table += descriptor(False, 9, 1 << 40, 1)
    path.write_bytes((head.ljust(TABLE, b"\0") + table).ljust(DATA, b"\0") + b"x" * sum(sizes))
    return path


def test_whole(tmp_path: Path) -> None:
    assert check_whole(str(make_sif(tmp_path / "a.sif"))) == DATA + 5100


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (DATA + 5099, f"{DATA + 5099} bytes of {DATA + 5100}"),
        (TABLE + 700, "list of parts is cut off"),
        (100, "header is cut off"),
    ],
)
def test_cut_off(tmp_path: Path, length: int, words: str) -> None:
    path = make_sif(tmp_path / "a.sif")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError, match=words):
        check_whole(str(path))


def test_zeroes_in_place_of_the_header(tmp_path: Path) -> None:
    path = make_sif(tmp_path / "a.sif")
    data = bytearray(path.read_bytes())
    data[48:128] = b"\xff" * 80
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="makes no sense"):
        check_whole(str(path))
    path.write_bytes(make_sif(path).read_bytes()[:TABLE].ljust(DATA, b"\0"))
    with pytest.raises(DamagedError, match="names no parts"):
        check_whole(str(path))


def test_a_bare_squashfs_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.sqsh"
    path.write_bytes(b"hsqs" + bytes(200))
    assert check_whole(str(path)) == 204


def test_checksum(tmp_path: Path) -> None:
    path = make_sif(tmp_path / "a.sif")
    told: list[str] = []
    assert checksum(str(path), told.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told == [f"reading {path} (100%)"]
