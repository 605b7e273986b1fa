"""`make install`: whole folders appear at once, an administrator's own profiles stay."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from _llm.errors import make_command
from _llm.run import VERSION

REPOSITORY = Path(__file__).resolve().parents[2]


def install(prefix: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", str(REPOSITORY / "bin/_llm/install.sh"), str(prefix)],
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
    assert list((prefix / "bin/_llm/__pycache__").glob("rank.*.pyc"))


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
