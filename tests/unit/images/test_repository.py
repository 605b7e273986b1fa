"""The local Debian repository of a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.images.repository import control_of, make_repository


def test_an_empty_repository_has_its_index(tmp_path: Path) -> None:
    make_repository([], tmp_path / "debs")
    assert (tmp_path / "debs/dists/bookworm/main/binary-amd64/Packages").read_text() == ""
    assert "Date: Thu, 01 Jan 1970" in (tmp_path / "debs/dists/bookworm/Release").read_text()
    assert list((tmp_path / "debs/pool").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"!<arch>\n"])
def test_what_is_no_package_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.deb").write_bytes(content)
    with pytest.raises(LLMError, match="is no Debian package"):
        control_of(tmp_path / "a.deb")
