"""Folders that can't be written, locked, filled or trusted. Real ones in tests/cluster."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from _llm.doctor import storage
from _llm.doctor.finding import FAIL, OK, WARN, Finding
from _llm.doctor.storage import Folder, check_folder, folders
from _llm.settings import load_settings

ALL = ("write", "locks", "room", "exec")


def check(
    folder: Folder, user: str = "/nowhere", env: dict[str, str] | None = None
) -> list[Finding]:
    return check_folder(folder, env or {}, user, "token", lambda text: None)


def space(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    """Pretend that every file system has such figures."""
    values = {
        "f_bavail": 1 << 20,
        "f_blocks": 1 << 30,
        "f_frsize": 4096,
        "f_files": 10**6,
        "f_favail": 10**6,
        "f_flag": 0,
        **changes,
    }
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**values))


def test_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space(monkeypatch, f_bavail=1 << 24)
    folder = tmp_path / "a 'ü;$(x)"
    folder.mkdir()
    (found,) = check(Folder("cache", str(folder), "fix", ALL))
    assert found.status == OK and found.text.endswith("writable, locks work")
    assert found.measured == "64 GiB of 4 TiB free"
    assert found.data["writable"] and not list(folder.iterdir())


def test_missing(tmp_path: Path) -> None:
    (found,) = check(Folder("data", str(tmp_path / "no"), "fix"))
    assert found.status == WARN and "does not exist" in found.text
    found = check(Folder("cache", str(tmp_path / "not/yet"), "fix", ("write",)))[0]
    assert found.status == OK and not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    (found,) = check(Folder("cache", str(tmp_path / "file" / "x"), "fix", ("write",)))
    assert found.status == FAIL and "is no folder" in found.text


def test_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(storage, "file_system_of", lambda path: "nfs4")
    (found,) = check(Folder("models", str(tmp_path), "fix"))
    assert found.status == OK and found.text.endswith("is on nfs4, read only")
    assert not found.data["writable"]
    (found,) = check(Folder("cache", str(tmp_path), "fix", ALL))
    assert (found.status, found.fix) == (FAIL, "fix") and "Read-only file system" in found.text


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, mode: int) -> None:
        raise OSError(38, "Function not implemented")

    space(monkeypatch, f_bavail=1 << 24)
    monkeypatch.setattr(fcntl, "flock", refuse)
    (found,) = check(Folder("cache", str(tmp_path), "fix", ALL))
    assert found.status == FAIL and "(flock: Function not implemented)" in found.text
    found = check(Folder("scratch", str(tmp_path), "fix"))[1]
    assert found.status == WARN
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"f_bavail": 1000}, FAIL, "has less than 1 GiB free"),
        ({}, WARN, "no room for a model"),
        ({"f_bavail": 1 << 24, "f_favail": 12}, WARN, "can hold few more files"),
        ({"f_bavail": 1 << 24, "f_flag": os.ST_NOEXEC}, WARN, "noexec"),
        ({"f_bavail": 1 << 24, "f_files": 0, "f_favail": 0}, OK, "locks work"),
    ],
)
def test_room_and_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, status: str, words: str
) -> None:
    space(monkeypatch, **changes)
    found = check(Folder("cache", str(tmp_path), "fix", ALL))[-1]
    assert found.status == status and words in found.text


def test_a_cache_in_a_small_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space(monkeypatch, f_bavail=6 << 20, f_blocks=12 << 20)
    cache = Folder("cache", str(tmp_path / "u/.cache/llm"), "fix", ALL)
    real = os.stat
    numbers = {"/": SimpleNamespace(st_dev=1)}
    monkeypatch.setattr(os, "stat", lambda path, **k: numbers.get(str(path)) or real(path, **k))
    found = check(cache, str(tmp_path / "u"))
    assert [f.text for f in found if f.status == WARN] == [
        "the cache is in a home of 48 GiB: a few models fill it"
    ]
    assert len(check(cache, str(tmp_path / "another"))) == 1


def test_a_local_folder_on_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "file_system_of", lambda path: "lustre")
    found = check(Folder("local", str(tmp_path), "fix", ("write", "locks", "exec")))
    assert any("compilers' caches break" in f.text for f in found)


def test_a_ram_disk_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "file_system_of", lambda path: "ext4")
    assert check(Folder("ramdisk", str(tmp_path), "fix"))[-1].status == WARN
    monkeypatch.setattr(storage, "file_system_of", lambda path: "tmpfs")
    space(monkeypatch)
    found = check(Folder("ramdisk", str(tmp_path), "fix"), env={"SLURM_MEM_PER_NODE": "100"})[-1]
    assert found.measured.endswith("free; files there count against the job's 100 MiB")


def test_folders(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    settings = load_settings(
        {**env, "LLM_CACHE_DIR": str(tmp_path), "LLM_MODELS_DIR": "/m1:/m2", "TMPDIR": "/t"},
        str(home),
    )
    found = {f.path: f for f in folders(settings, {"TMPDIR": "/t"}, env["HOME"], str(tmp_path))}
    # The working folder is the cache here: one check, with the needs of both.
    assert found[str(tmp_path)].name == "working folder"
    assert found[str(tmp_path)].needs == ALL and "LLM_CACHE_DIR" in found[str(tmp_path)].fix
    assert {"/m1", "/m2", "/t", "/dev/shm", env["HOME"]} <= set(found)


def test_the_existing_parent_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.existing(f"{tmp_path}/a/b") == str(tmp_path)
    assert storage.existing("no such/folder") == "."
