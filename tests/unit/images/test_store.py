"""The archive of inputs: nothing damaged is used, a shared archive is never written to."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.images import store

CONTENT = b"content"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HOST = os.uname().nodename
NAME = "a package; 'é'.whl"


def put(folder: Path, content: bytes = CONTENT, sha256: str = SHA256, name: str = NAME) -> Path:
    file = store.place_of(folder, sha256) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_a_file_comes_in_and_is_found_by_hash_and_name(tmp_path: Path) -> None:
    packages = store.Store(tmp_path / "own")
    part = store.incoming(packages) / ".part-1"
    part.write_bytes(CONTENT)
    file = store.add(packages, part, SHA256, NAME)
    assert file == tmp_path / "own" / SHA256[:2] / SHA256 / NAME
    assert store.find(packages, SHA256) == store.find(packages, SHA256, NAME) == file
    assert store.find(packages, SHA256, "another name") is None
    assert store.find(packages, "0" * 64) is None
    assert not part.exists() and os.stat(file).st_mode & 0o222 == 0
    assert store.everything(packages.own) == [(SHA256, file)]


@pytest.mark.parametrize("content", [b"", CONTENT[:3], b"Content"])
def test_a_damaged_file_is_named_moved_aside_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes,
) -> None:
    packages = store.Store(tmp_path / "own")
    file = put(packages.own, content)
    assert store.find(packages, SHA256, NAME) is None
    assert f"{file} is damaged" in capsys.readouterr().out
    assert not file.exists()
    assert [f.read_bytes() for f in (packages.own / store.DAMAGED).iterdir()] == [content]


def test_a_shared_archive_is_first_and_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    packages = store.Store(tmp_path / "own", (tmp_path / "site",))
    own, shared = put(packages.own), put(tmp_path / "site")
    assert store.find(packages, SHA256, NAME) == shared
    shared.write_bytes(b"damaged")
    assert store.find(packages, SHA256, NAME) == own
    assert shared.read_bytes() == b"damaged" and str(shared) in capsys.readouterr().out


def test_packages_of_earlier_versions_are_taken_over(tmp_path: Path) -> None:
    packages = store.Store(tmp_path / "archive", (), tmp_path / "debian")
    for content in (b"truncated", CONTENT):
        old = tmp_path / "debian" / SHA256[:2] / f"{SHA256}.deb"
        old.parent.mkdir(parents=True, exist_ok=True)
        old.write_bytes(content)
        found = store.find(packages, SHA256, "hello_1_amd64.deb")
    assert found == store.place_of(packages.own, SHA256) / "hello_1_amd64.deb"
    assert found.read_bytes() == CONTENT and not old.exists()


def test_a_folder_that_takes_no_files_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    packages = store.Store(tmp_path / "file" / "own")
    with pytest.raises(LLMError, match="takes no files") as raised:
        store.incoming(packages)
    assert "LLM_CACHE_DIR" in raised.value.fix


def test_what_killed_programs_left_is_removed(tmp_path: Path) -> None:
    packages = store.Store(tmp_path)
    folder = store.incoming(packages)
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = (".part-other-host-1-x", f".part-{HOST}-{os.getpid()}-x",
             f".part-{HOST}-{ended.pid}-x", ".part-old")
    for name in names:
        (folder / name).write_bytes(b"")
    os.utime(folder / ".part-old", (0, time.time() - 2 * store.STALE_SECONDS))
    store.incoming(packages)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[:2])


def test_an_archive_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="is not a folder") as raised:
        store.make_store(tmp_path, [str(tmp_path / "one"), str(tmp_path)])
    assert "LLM_ARCHIVE_DIR" in raised.value.why
    made = store.make_store(tmp_path, [str(tmp_path)])
    assert made.folders == (tmp_path, tmp_path / "archive")
