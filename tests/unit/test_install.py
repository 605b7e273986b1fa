"""`make install`: whole folders appear at once, an administrator's own profiles stay."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from _llm.commit import read_commit
from _llm.errors import make_command
from _llm.run import VERSION

REPOSITORY = Path(__file__).resolve().parents[2]


def install(prefix: Path, source: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", str(source / "bin/_llm/install.sh"), str(prefix)],
                          capture_output=True, text=True, check=False)


def test_installs_again_over_itself_and_runs_from_there(tmp_path: Path) -> None:
    prefix = tmp_path / "it's a prefix; ü"
    assert install(prefix).returncode == 0
    (prefix / "sites/ours.ini").write_text("[gpus]\nmodel = V100\n")
    (prefix / "recipes/stale.py").write_text("")
    done = install(prefix)
    assert done.returncode == 0, done.stderr
    assert (prefix / "sites/ours.ini").exists() and not (prefix / "recipes/stale.py").exists()
    assert sorted(path.name for path in prefix.iterdir()) == [
        ".commit", *([".tools"] if (REPOSITORY / ".tools/apptainer/here").is_symlink() else []),
        "bin", "images", "recipes", "sites"]
    version = subprocess.run([str(prefix / "bin/llm-run"), "--version"], capture_output=True,
                             text=True, check=True)
    assert VERSION in version.stdout
    assert read_commit(str(REPOSITORY))[:12] in version.stdout
    assert read_commit(str(prefix)) == read_commit(str(REPOSITORY))
    assert list((prefix / "bin/_llm/__pycache__").glob("rank.*.pyc"))


@pytest.mark.parametrize("folder", ["bin", "recipes", "sites"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine").write_text("precious")
    done = install(tmp_path)
    assert done.returncode == 2
    what, why, fix = done.stderr.splitlines()
    assert f"{tmp_path}/{folder} is there already" in what and why.startswith("  why: ")
    assert fix == f"  fix: make install PREFIX='{tmp_path}/llm'"
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    assert (tmp_path / folder / "mine").read_text() == "precious"


def test_an_installation_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    assert install(prefix).returncode == 0
    shutil.rmtree(prefix / "bin")
    assert install(prefix).returncode == 0
    assert (prefix / "bin/_llm/main.py").exists()


def test_an_edited_profile_is_kept_beside_the_shipped_one(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    assert install(prefix).returncode == 0
    shipped = (REPOSITORY / "sites/default.ini").read_text()
    for kept, edit in (("default.ini.old", "first"), ("default.ini.old2", "second")):
        (prefix / "sites/default.ini").write_text(f"# {edit}")
        done = install(prefix)
        assert done.returncode == 0, done.stderr
        assert f"it is now {kept}" in done.stdout
    assert "it is now" not in install(prefix).stdout
    assert (prefix / "sites/default.ini").read_text() == shipped
    assert (prefix / "sites/default.ini.old").read_text() == "# first"
    assert (prefix / "sites/default.ini.old2").read_text() == "# second"


def test_caches_are_not_installed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("bin", "recipes", "sites"):
        shutil.copytree(REPOSITORY / folder, source / folder,
                        ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    for cache in ("bin/.mypy_cache", "bin/_llm/.ruff_cache", "recipes/.pytest_cache"):
        (source / cache).mkdir()
    assert install(tmp_path / "prefix", source).returncode == 0
    assert not list((tmp_path / "prefix").rglob(".*_cache"))


def test_a_prefix_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = install(tmp_path / "file/prefix")
    assert done.returncode == 2 and "choose another PREFIX" in done.stderr
    assert "this checkout" in install(REPOSITORY).stderr


def test_one_version() -> None:
    found = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert found and found.group(1) == VERSION


def test_an_installation_does_not_send_users_to_a_makefile_that_it_lacks(tmp_path: Path) -> None:
    assert make_command(str(tmp_path), "image").startswith("make image    (in the checkout")
    (tmp_path / "Makefile").touch()
    assert make_command(str(tmp_path), "image") == f"make -C '{tmp_path}' image"
