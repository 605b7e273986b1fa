"""Locks of Debian packages: written whole, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.debian import Package
from _llm.errors import LLMError
from _llm.images.lock import body, changes, pins
from _llm.images.locks import read_apt_lock, read_names, write_apt_lock

PACKAGE = Package("zlib1g", "1:1.2.13", "amd64", "a" * 64, 86700, "pool/main/z/zlib1g.deb", "main")


def test_round_trip(tmp_path: Path) -> None:
    lock = tmp_path / "apt.lock"
    write_apt_lock(lock, [PACKAGE], "make lock IMAGE=base")
    assert read_apt_lock(lock) == [PACKAGE]
    assert lock.read_text().startswith("# locked: 2")
    assert [path.name for path in tmp_path.iterdir()] == ["apt.lock"]


def test_absent_is_empty_and_malformed_names_every_line(tmp_path: Path) -> None:
    assert read_apt_lock(tmp_path / "none.lock") == []
    lock = tmp_path / "apt.lock"
    lock.write_text("# locked\nzlib1g 1 amd64 short 5 pool main\n\nfive fields only in here\n")
    with pytest.raises(LLMError) as raised:
        read_apt_lock(lock)
    assert "line 2:" in raised.value.why and "line 4:" in raised.value.why


@pytest.mark.parametrize("change", [
    ("a" * 64, "../" * 21 + "a"), (" main\n", " elsewhere\n"), ("zlib1g.deb", ".."),
    ("zlib1g.deb", "zlib1g.deb;x"), ("86700", "-1"),
])
def test_a_line_that_would_lead_elsewhere_is_refused(
    tmp_path: Path, change: tuple[str, str],
) -> None:
    lock = tmp_path / "apt.lock"
    write_apt_lock(lock, [PACKAGE], "make lock IMAGE=base")
    text = lock.read_text()
    assert change[0] in text
    lock.write_text(text.replace(*change))
    with pytest.raises(LLMError, match="is not a lock of Debian packages"):
        read_apt_lock(lock)


def test_names_ignore_comments(tmp_path: Path) -> None:
    source = tmp_path / "apt.in"
    source.write_text("# why\ngcc  # the compiler\n\n g++\n")
    assert read_names(source) == ["gcc", "g++"]
    assert read_names(tmp_path / "none.in") == []


def test_pins_and_changes(tmp_path: Path) -> None:
    lock = tmp_path / "requirements-cpu.lock"
    lock.write_text("# locked: 2026-01-01\n# by: make lock\n"
                    "jsonargparse[signatures]==4.53.0 \\\n    --hash=sha256:1\n"
                    "torch==2.13.0+cpu \\\n")
    found = pins(lock)
    assert found == {"jsonargparse": "4.53.0", "torch": "2.13.0+cpu"}
    assert body(lock.read_text()).startswith("jsonargparse")
    assert changes(lock, found, {"torch": "2.14.0"})[0].endswith("jsonargparse 4.53.0 -> none")
