"""What a build leaves of itself in a file tree, and that nothing of it stays."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "containers/normalise.py"
WORK = "llm-build-0-123-abc"
DAY = "2026-01-01"  # 20454 days after 1970-01-01


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "it's a [tree]; ü"
    for name in ("etc/ssh", "var/log/apt", "var/cache/ldconfig", "tmp/.hidden", "root", "dev",
                 "run", ".singularity.d/bootstrap_history", "usr/lib/python3/dist-packages/a",
                 "opt"):
        (folder / name).mkdir(parents=True)
    (folder / ".singularity.d/labels.json").write_text(json.dumps({
        "z": "last", "llm.digest": "abc", "org.label-schema.build-date": "now",
        "org.label-schema.usage.singularity.deffile.from": f"/var/tmp/{WORK}/root"}))
    return folder


def normalise(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-s", "-B", str(SCRIPT), str(tree), DAY, WORK],
        capture_output=True, text=True, check=False, env={"PYTHONHASHSEED": "0"})


def modes(tree: Path) -> dict[str, int]:
    return {str(path.relative_to(tree)): stat.S_IMODE(path.lstat().st_mode)
            for path in tree.rglob("*") if not path.is_symlink()}


def test_leftovers_go_and_everything_else_stays(tree: Path) -> None:
    gone = ("var/log/apt/history.log", "var/log/dpkg.log", "tmp/.hidden/x", "tmp/y", "etc/passwd-",
            "etc/.pwd.lock", "etc/hostname", "etc/ssh/ssh_host_rsa_key", "root/.bash_history",
            "var/cache/ldconfig/aux-cache", ".singularity.d/bootstrap_history/Apptainer0")
    stay = ("etc/passwd", "etc/ssh/ssh_config", "opt/tmp", "root/.profile", "opt/a\nb",
            "opt/log.log")
    for name in (*gone, *stay):
        (tree / name).write_text(name)
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "etc/hosts").symlink_to("/somewhere/else")
    os.mkfifo(tree / "opt/pipe")
    assert normalise(tree).returncode == 0
    assert [name for name in gone if (tree / name).exists()] == []
    assert [name for name in stay if (tree / name).read_text() != name] == []
    for name in ("etc/machine-id", "etc/hosts", "etc/resolv.conf"):
        assert (tree / name).read_bytes() == b"" and not (tree / name).is_symlink()
    assert not (tree / "opt/pipe").exists() and (tree / "var/log/apt").is_dir()


def test_modes_follow_from_whether_the_owner_may_execute(tree: Path) -> None:
    for number, mode in enumerate((0o600, 0o644, 0o666, 0o700, 0o4755, 0o2755, 0o444, 0o555)):
        file = tree / f"opt/{number}"
        file.write_text("")
        file.chmod(mode)
    (tree / "opt").chmod(0o700)
    (tree / "tmp").chmod(0o700)
    (tree / "opt/link").symlink_to("/etc/passwd")
    assert normalise(tree).returncode == 0
    found = modes(tree)
    assert [found[f"opt/{n}"] for n in range(8)] == [
        0o644, 0o644, 0o644, 0o755, 0o755, 0o755, 0o644, 0o755]
    assert found["opt"] == 0o755 and found["tmp"] == 0o1777
    assert os.readlink(tree / "opt/link") == "/etc/passwd"


def test_labels_are_sorted_and_say_nothing_of_the_build(tree: Path) -> None:
    assert normalise(tree).returncode == 0
    text = (tree / ".singularity.d/labels.json").read_text()
    assert list(json.loads(text)) == ["llm.digest", "z"]


def test_passwords_were_changed_on_the_day_of_the_lock(tree: Path) -> None:
    (tree / "etc/shadow").write_text("root:*:20789:0:99999:7:::\n_apt:!:20790::::::\nold:*::::::\n")
    assert normalise(tree).returncode == 0
    assert (tree / "etc/shadow").read_text() == (
        "root:*:20454:0:99999:7:::\n_apt:!:20454::::::\nold:*::::::\n")


def test_installers_notes_go_from_the_folder_and_from_the_list_of_files(tree: Path) -> None:
    folder = tree / "usr/lib/python3/dist-packages/a-1.dist-info"
    folder.mkdir()
    (folder / "uv_cache.json").write_text("{}")
    record = (b"a/__init__.py,sha256=x,1\r\na-1.dist-info/uv_cache.json,sha256=y,2\r\n"
              b"\xff.py,,\r\na-1.dist-info/RECORD,,\r\n")
    (folder / "RECORD").write_bytes(record)
    assert normalise(tree).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["RECORD"]
    lines = record.splitlines(keepends=True)
    assert (folder / "RECORD").read_bytes() == b"".join([lines[0], *lines[2:]])


def test_bytecode_is_made_anew_and_what_is_checked_by_time_goes(tree: Path) -> None:
    package = tree / "usr/lib/python3/dist-packages/a"
    (package / "__init__.py").write_text("x = 1\n")
    other = tree / "opt/__pycache__"
    other.mkdir()
    (other / "by_time.cpython-311.pyc").write_bytes(b"\xa7\r\r\n" + bytes(12))
    (other / "unchecked.cpython-311.pyc").write_bytes(b"\xa7\r\r\n" + b"\1" + bytes(11))
    (other / "cut_off.pyc").write_bytes(b"\xa7")
    assert normalise(tree).returncode == 0
    made = list((package / "__pycache__").glob("*.pyc"))
    assert len(made) == 1 and made[0].read_bytes()[4] == 1
    assert [path.name for path in other.iterdir()] == ["unchecked.cpython-311.pyc"]


@pytest.mark.parametrize("where", ["content", "at the edge of a piece", "link",
                                   "link to a folder"])
def test_the_builds_own_path_is_found_wherever_it_stands(tree: Path, where: str) -> None:
    file = tree / "opt/prefix"
    if where == "link":
        file.symlink_to(f"/var/tmp/{WORK}/sandbox/x")
    elif where == "link to a folder":
        (tree / "opt" / WORK).mkdir()
        file.symlink_to(WORK)
    else:
        before = (1 << 20) - 5 if where != "content" else 3
        file.write_bytes(b"x" * before + f"/var/tmp/{WORK}/sandbox".encode())
    done = normalise(tree)
    assert done.returncode == 1
    assert done.stderr == f"normalise: /opt/prefix holds the path of its build, {WORK}\n"


def test_a_second_time_changes_nothing(tree: Path) -> None:
    (tree / "opt/file").write_text("x")
    assert normalise(tree).returncode == 0

    def contents() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in tree.rglob("*") if p.is_file()}

    before = contents(), modes(tree)
    assert normalise(tree).returncode == 0
    assert (contents(), modes(tree)) == before
