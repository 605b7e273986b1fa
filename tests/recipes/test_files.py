"""A file is replaced as a whole or not at all, and a closed folder is said to be one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.files import staged_text, write_text


def test_a_text_gets_its_name_when_the_block_has_ended(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with staged_text(file, "new"):
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), staged_text(file, "newer"):
        raise KeyboardInterrupt
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_closed_folder_is_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)  # what the system says of a folder without x
    with pytest.raises(LLMError, match=r"cannot write .*a\.txt"):
        write_text(tmp_path / "nowhere" / "a.txt", "x")


def test_a_file_in_the_way_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(LLMError) as told:
        write_text(tmp_path / "a" / "b.txt", "x")
    assert told.value.why == "it, or a folder above it, is a file"


def test_no_device_or_pipe_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/full"), Path("/dev/stdout"), Path("/dev/none")):
        with pytest.raises(LLMError, match="no place for a file"):
            write_text(place, "x")
    assert (tmp_path / "pipe").is_fifo()
