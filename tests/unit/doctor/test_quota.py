"""Quotas as `quota -wpf` and `lfs quota -q` print them; the programs are scripts here."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.doctor import quota
from _llm.doctor.finding import FAIL, OK, WARN
from _llm.doctor.storage import Folder

HOME = Folder("home", "/home/alice", "export HOME=/another/folder")
HEAD = (
    "Disk quotas for user alice (uid 1000): \n"
    "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n"
)


@pytest.mark.parametrize(
    ("line", "status", "measured"),
    [
        ("nas:/home 1048576 52428800 57671680 0 100 0 0 0", OK, "1 GiB of 50 GiB"),
        ("nas:/home 49283072 52428800 0 0 100 0 0 0", WARN, "47 GiB of 50 GiB"),
        ("nas:/home 52428900* 52428800 57671680 6days 9 0 0", FAIL, "50 GiB of 50 GiB"),
        ("/lustre 8 0 0 - 999000 0 1000000 -", WARN, "999000 of 1000000 files"),
    ],
)
def test_read(line: str, status: str, measured: str) -> None:
    (found,) = quota.read(HOME, HEAD + line + "\n")
    assert (found.status, found.measured) == (status, measured)


def test_none() -> None:
    assert quota.read(HOME, HEAD + "nas:/home 8 0 0 0 9 0 0 0\n") == []
    assert quota.read(HOME, "") == []


@pytest.mark.parametrize(("kind", "name"), [("nfs4", "quota"), ("lustre", "lfs")])
def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    program = tmp_path / name
    program.write_text(f"#!/bin/sh\necho \"$*\" > '{tmp_path}/asked'\necho x 9 8 8 - 1 0 0 -\n")
    program.chmod(0o755)
    monkeypatch.setattr(quota, "file_system_of", lambda path: kind)
    monkeypatch.setattr(quota, "ANSWER_SECONDS", 60.0)  # users may not wait for a slow machine
    folder = Folder("cache", str(tmp_path / "not yet"), "fix")
    (found,) = quota.quota(folder, {"PATH": f"{tmp_path}:/bin"}, lambda text: None)
    assert found.status == FAIL
    assert (tmp_path / "asked").read_text(encoding="utf-8").strip().endswith(str(tmp_path))
    assert quota.quota(folder, {"PATH": "/nonexistent"}, lambda text: None) == []


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quota").write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    (tmp_path / "quota").chmod(0o755)
    monkeypatch.setattr(quota, "ANSWER_SECONDS", 0.2)
    env = {"PATH": f"{tmp_path}:/bin"}
    assert quota.quota(Folder("home", str(tmp_path), ""), env, lambda text: None) == []
