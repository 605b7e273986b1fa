"""A folder is replaced as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.folders import file_digests, new_folder


def fill_up_like_safetensors() -> None:
    raise RuntimeError("I/O error: No space left on device (os error 28)")


def fail() -> None:
    raise KeyboardInterrupt


def fill_up() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (fail, KeyboardInterrupt),
        (fill_up, LLMError),
        (fill_up_like_safetensors, LLMError),
    ],
)
def test_new_folder_keeps_the_old_one(
    tmp_path: Path, action: Callable[[], None], error: type[BaseException]
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(error), new_folder(folder) as staging:
        (staging / "new").write_text("new")
        action()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (folder / "old").read_text() == "old"


def test_new_folder_can_be_read_by_others(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        with new_folder(tmp_path / "a" / "b") as staging:
            (staging / "file").touch(mode=0o600)
    finally:
        os.umask(umask)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o777 == 0o644


def test_new_folder_replaces_the_old_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "it's; a folder") as staging:
            (staging / name).write_text(name)
    assert [path.name for path in tmp_path.iterdir()] == ["it's; a folder"]
    assert list(file_digests(tmp_path / "it's; a folder")) == ["new"]


def test_a_bug_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="my mistake"), new_folder(tmp_path / "x"):
        raise RuntimeError("my mistake")
    assert list(tmp_path.iterdir()) == []
