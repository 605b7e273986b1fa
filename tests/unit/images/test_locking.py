"""Builds that wait for each other, and file systems and folders that don't let them."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from _llm.images.build import remove_parts
from _llm.images.catalog import Image
from _llm.locking import only_one


def test_a_file_system_without_locks_does_not_stop_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with only_one(tmp_path / "lock") as alone:
        assert alone
    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(tmp_path / "lock") as alone:
        assert not alone
    assert "no locks on this file system" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_colleagues_lock_file_can_be_held(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    lock.chmod(0o444)
    with only_one(lock) as alone:
        assert alone


def test_faults_of_the_build_itself_pass(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="its own"), only_one(tmp_path / "lock"):
        raise OSError("its own")


def test_what_killed_builds_left_is_removed(tmp_path: Path) -> None:
    names = [".llm-cpu-0123.sif.part-77", ".llm-cuda13-0123.sif.part-78", "llm-cpu-0123.sif"]
    for name in names:
        (tmp_path / name).touch()
    remove_parts(tmp_path, Image("llm", "cpu", tmp_path, "base"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
