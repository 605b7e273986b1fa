"""The staging folder: what a build sees of the archive, and nothing of the host's settings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.images.needs import Files
from _llm.images.staging import build_folder, make_staging
from _llm.images.store import Store, place_of


def put(archive: Path, sha256: str, name: str) -> Path:
    file = place_of(archive, sha256) / name
    file.parent.mkdir(parents=True)
    file.write_text(name)
    return file


def test_python_files_are_links_into_the_bound_archives(tmp_path: Path) -> None:
    containers = tmp_path / "containers"
    containers.mkdir()
    (containers / "build.lock").write_text("lock")
    packages = Store(tmp_path / "own é", (tmp_path / "site 1", tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    files = Files((), (put(packages.own, "a" * 64, "a-1-py3-none-any.whl"),
                       put(packages.shared[0], "b" * 64, "b-1.tar.gz")))
    folder = tmp_path / "staging"
    binds = make_staging(folder, containers, files, packages, tmp_path / "cache")
    assert binds[1::2] == [f"{folder}:/mnt", f"{tmp_path}/site 1:/mnt/archive/0:ro",
                           f"{tmp_path}/own é:/mnt/archive/2:ro",
                           f"{tmp_path}/cache/uv:/mnt/uv-cache"]
    assert (folder / "build.lock").read_text() == "lock"
    # What the links name in the build, followed by way of the binds.
    for number, archive in ((0, packages.shared[0]), (2, packages.own)):
        shutil.copytree(archive, folder / "archive" / str(number), dirs_exist_ok=True)
    for link in (folder / "python").iterdir():
        inside = Path(str(link.readlink()).replace("/mnt/", f"{folder}/", 1))
        assert inside.read_text() == link.name
    assert len(list((folder / "python").iterdir())) == 2


def test_a_build_knows_no_index_and_no_account(tmp_path: Path) -> None:
    (tmp_path / "containers").mkdir()
    make_staging(tmp_path / "staging", tmp_path / "containers", Files((), ()),
                 Store(tmp_path / "own"), tmp_path / "cache")
    done = subprocess.run(
        ["sh", "-c", f". '{tmp_path}/staging/packages.env'; env"], capture_output=True, text=True,
        check=True,
        env={"PIP_INDEX_URL": "https://me:secret@index.invalid", "PATH": "/bin:/usr/bin"})
    assert "PIP_NO_INDEX=1" in done.stdout
    assert "PIP_FIND_LINKS=/mnt/python" in done.stdout and "UV_OFFLINE=1" in done.stdout
    assert "secret" not in (tmp_path / "staging/packages.env").read_text()


@pytest.mark.parametrize("name", ["it's", "a;b", 'a"b', "a&b", "a\nb", "a:b", "a,b", "$HOME"])
def test_a_build_folder_that_breaks_apptainers_build_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(LLMError, match=r"can't be built in") as caught:
        build_folder({"LLM_BUILD_DIR": str(folder)})
    assert caught.value.fix == "LLM_BUILD_DIR=/path/with/ordinary/letters make image"


def test_spaces_and_letters_of_any_language_are_no_fault(tmp_path: Path) -> None:
    folder = tmp_path / "ordinary folder ü"
    folder.mkdir()
    assert build_folder({"TMPDIR": str(folder)}) == folder


def test_a_relative_build_folder_is_that_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert build_folder({"LLM_BUILD_DIR": "here"}) == tmp_path / "here"


def test_an_impatient_ctrl_c_leaves_no_build_folder(tmp_path: Path) -> None:
    code = ("import signal, sys; sys.path.insert(0, sys.argv[1])\n"
            "from _llm.images import staging\n"
            "remove = staging.remove_tree\n"
            "def slowly(folder):\n"
            "    signal.raise_signal(signal.SIGINT)\n"
            "    remove(folder)\n"
            "staging.remove_tree = slowly\n"
            "with staging.work_folder({'LLM_BUILD_DIR': sys.argv[2]}, 0) as folder:\n"
            "    (folder / 'sandbox').mkdir()\n"
            "    signal.raise_signal(signal.SIGINT)\n")
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parents[3] / "bin"),
                           str(tmp_path)], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr and done.returncode != 0
    assert list(tmp_path.iterdir()) == []
