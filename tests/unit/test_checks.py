"""What must be allowed on a machine: each thing that is missing is named with its cure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _llm import checks


def answers(monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Let the kernel's files say something else; dots stand for slashes, all else is empty."""
    contents = {f"/{name.replace('__', '/')}": text for name, text in files.items()}
    monkeypatch.setattr(checks, "_read", lambda path: contents.get(path, ""))


def test_user_namespaces_name_the_switch_that_forbids_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    refused = tmp_path / "unshare"
    refused.write_text("#!/bin/sh\nexit 1\n")
    refused.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    answers(monkeypatch)
    problem = checks.user_namespaces()
    assert problem and problem.fatal and "max_user_namespaces" in problem.fix
    answers(monkeypatch, proc__sys__kernel__apparmor_restrict_unprivileged_userns="1")
    problem = checks.user_namespaces()
    assert problem and "AppArmor" in problem.fix
    answers(monkeypatch, proc__sys__kernel__unprivileged_userns_clone="0")
    problem = checks.user_namespaces()
    assert problem and "unprivileged_userns_clone=1" in problem.fix


def test_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    problem = checks.fuse_device()
    assert problem and not problem.fatal and "chmod 0666 /dev/fuse" in problem.fix
    assert str(problem).startswith("note: /dev/fuse is missing")


def test_subordinate_ids_need_a_range_and_a_setuid_newuidmap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    monkeypatch.setattr(checks.os, "geteuid", lambda: os.getuid() or 4242)
    monkeypatch.setattr(checks.pwd, "getpwuid", lambda uid: type("U", (), {"pw_name": "ada"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    answers(monkeypatch, etc__subuid="ada:100000:65536", etc__subgid="ada:100000:65536")
    assert not checks.may_use_subids()  # no newuidmap
    newuidmap = tmp_path / "newuidmap"
    newuidmap.write_text("")
    newuidmap.chmod(0o755)
    assert not checks.may_use_subids()  # not setuid
    if os.getuid() == 0:
        newuidmap.chmod(0o4755)
        assert checks.may_use_subids()
        answers(monkeypatch, etc__subuid="ada:100000:65536")
        assert not checks.may_use_subids()  # no range of groups
    problem = checks.subordinate_ids()
    assert problem is None or "usermod --add-subuids" in problem.fix


@pytest.mark.parametrize("kind, network", [("nfs4", True), ("lustre", True), ("ext4", False)])
def test_a_build_folder_on_a_network_file_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, network: bool,
) -> None:
    mounts = ("22 1 8:1 / / rw - ext4 /dev/sda rw\n"
              f"30 22 0:44 / {tmp_path} rw - {kind} server:/x rw")
    answers(monkeypatch, proc__self__mountinfo=mounts)
    monkeypatch.setenv("LLM_BUILD_DIR", str(tmp_path))
    assert checks.file_system_of(tmp_path / "deep") == kind
    problem = checks.build_folder()
    assert (problem is not None) == network
    if problem:
        assert kind in problem.what and "LLM_BUILD_DIR" in problem.fix
