"""The commit and its changes as git itself sees them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from _llm.commit import has_changes, read_commit

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    for name in ("recipes", "docs", "recipes/" + "long" * 20):
        (folder / name).mkdir(parents=True)
        (folder / name / "file.txt").write_text("one\n", encoding="utf-8")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    return folder


def test_commit(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert read_commit(str(checkout)) == commit
    git(checkout, "checkout", "-q", "--detach")
    assert read_commit(str(checkout)) == commit
    git(checkout, "checkout", "-q", "-b", "topic/deep")
    git(checkout, "pack-refs", "--all")
    assert read_commit(str(checkout)) == commit


def test_worktree(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "worktree", "add", "-q", "-b", "other", str(tmp_path / "other"))
    assert read_commit(str(tmp_path / "other")) == git(checkout, "rev-parse", "HEAD")
    assert has_changes(str(tmp_path / "other")) is False


def test_changes(checkout: Path) -> None:
    assert has_changes(str(checkout)) is False
    (checkout / "docs" / "file.txt").write_text("no program reads this\n", encoding="utf-8")
    assert has_changes(str(checkout)) is False
    path = checkout / "recipes" / "file.txt"
    path.write_text("longer than before\n", encoding="utf-8")
    assert has_changes(str(checkout)) is True
    git(checkout, "commit", "-q", "-a", "-m", "y")
    assert has_changes(str(checkout)) is False
    os.utime(path, (1, 1))
    assert has_changes(str(checkout)) is True
    path.unlink()
    assert has_changes(str(checkout)) is True


def test_no_checkout(tmp_path: Path) -> None:
    assert read_commit(str(tmp_path)) == ""
    assert has_changes(str(tmp_path)) is None


def test_installation(tmp_path: Path) -> None:
    (tmp_path / ".commit").write_text("0123456789" * 4 + "\n", encoding="utf-8")
    assert read_commit(str(tmp_path)) == "0123456789" * 4
    (tmp_path / ".commit").write_text("unknown\n", encoding="utf-8")
    assert read_commit(str(tmp_path)) == ""


def test_an_index_of_another_version_is_left_alone(checkout: Path) -> None:
    git(checkout, "update-index", "--index-version", "4")
    assert has_changes(str(checkout)) is None
