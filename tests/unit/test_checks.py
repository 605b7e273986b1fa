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


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that refuses user namespaces to a user without all capabilities."""
    refused = tmp_path / "unshare"
    refused.write_text("#!/bin/sh\nexit 1\n")
    refused.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(checks.apptainer, "has_all_capabilities", lambda: False)
    answers(monkeypatch)


@pytest.mark.usefixtures("no_namespaces")
def test_user_namespaces_name_the_switch_that_forbids_them(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = checks.user_namespaces()
    assert problem and problem.fatal and "max_user_namespaces" in problem.fix
    answers(monkeypatch, proc__sys__kernel__apparmor_restrict_unprivileged_userns="1")
    problem = checks.user_namespaces()
    assert problem and "AppArmor" in problem.fix
    answers(monkeypatch, proc__sys__kernel__unprivileged_userns_clone="0")
    problem = checks.user_namespaces()
    assert problem and "unprivileged_userns_clone=1" in problem.fix


@pytest.mark.usefixtures("no_namespaces")
def test_root_needs_no_user_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.apptainer, "has_all_capabilities", lambda: True)
    monkeypatch.setattr(checks.os, "geteuid", lambda: 0)
    assert checks.user_namespaces() is None
    monkeypatch.setattr(checks.os, "geteuid", lambda: 4242)
    assert checks.user_namespaces() is not None


@pytest.mark.usefixtures("no_namespaces")
def test_an_apptainer_that_works_without_user_namespaces_makes_it_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    system, private = "/usr/bin/apptainer", f"{tmp_path}/.tools/apptainer/usr/bin/apptainer"
    monkeypatch.setattr(checks.unpack, "is_setuid", lambda program: False)
    problem = checks.user_namespaces(system)
    assert problem and problem.fatal
    answers(monkeypatch, proc__sys__kernel__apparmor_restrict_unprivileged_userns="1")
    problem = checks.user_namespaces(system)
    assert problem and not problem.fatal and "profile" in problem.why
    problem = checks.user_namespaces(private)
    assert problem and problem.fatal
    answers(monkeypatch)
    monkeypatch.setattr(checks.unpack, "is_setuid", lambda program: program == system)
    problem = checks.user_namespaces(system)
    assert problem and not problem.fatal and "setuid" in problem.why
    assert checks.run(system)[0] == problem


def test_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    problem = checks.fuse_device()
    assert problem and not problem.fatal and "chmod 0666 /dev/fuse" in problem.fix
    assert str(problem).startswith("note: /dev/fuse is missing")


def test_subordinate_ids_need_a_range_and_a_privileged_newuidmap(
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
    assert not checks.may_use_subids()  # no rights of root
    with monkeypatch.context() as red_hat:  # capabilities of the file
        red_hat.setattr(checks.os, "getxattr", lambda path, name: name == "security.capability")
        assert checks.may_use_subids()
    if os.getuid() == 0:
        newuidmap.chmod(0o4755)
        assert checks.may_use_subids()
        answers(monkeypatch, etc__subuid="ada:100000:65536")
        assert not checks.may_use_subids()  # no range of groups
    problem = checks.subordinate_ids()
    assert problem is None or "usermod --add-subuids" in problem.fix


def test_a_user_whom_the_database_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.os, "geteuid", lambda: 987654)
    answers(monkeypatch)
    assert not checks.may_use_subids()
    problem = checks.subordinate_ids()
    assert problem and "user 987654 has no" in problem.what


def test_a_range_for_root_is_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    files = tmp_path / "subuid", tmp_path / "subgid"
    monkeypatch.setattr(checks, "SUBORDINATE_IDS", tuple(map(str, files)))
    monkeypatch.setattr(checks.os, "geteuid", lambda: 0)
    files[0].write_text("ada:100000:65536")  # somebody's editor wrote no final newline
    for _ in range(2):
        checks.ensure_root_subids()
    assert files[0].read_text() == "ada:100000:65536\nroot:165536:65536\n"
    assert files[1].read_text() == "root:100000:65536\n"


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
