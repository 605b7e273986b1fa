"""bin/llm-run as a shell script: it finds its library wherever it was started from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A copy as Slurm makes it of a script given to sbatch."""
    folder = tmp_path / "spool" / "job00012"
    folder.mkdir(parents=True)
    return Path(shutil.copy(REPOSITORY / "bin" / "llm-run", folder / "slurm_script"))


def submitted(spool: Path, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Start the copy where scontrol (a stand-in) says that `command` was given to sbatch."""
    programs = spool.parents[2] / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "scontrol").write_text(
        "#!/bin/sh\n[ \"$*\" = 'show job 12' ] || exit 1\n"
        f"cat <<'EOF'\nJobId=12 JobName=x\n   Command={command}\n   WorkDir=/\n"
        f"\nJobId=13 JobName=x\n   Command={command}\nEOF\n"
    )
    (programs / "scontrol").chmod(0o755)
    return subprocess.run(
        [str(spool), "--version"], capture_output=True, text=True, check=False,
        env={"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "12", **env},
    )  # fmt: skip


@pytest.mark.parametrize("arguments", ["", " --version", " python 'a b' --x y z"])
def test_the_copy_finds_what_was_submitted(spool: Path, tmp_path: Path, arguments: str) -> None:
    home = tmp_path / "it's a ; home  ü"
    home.symlink_to(REPOSITORY)
    done = submitted(spool, f"{home}/bin/llm-run{arguments}")
    assert done.returncode == 0 and done.stdout.startswith("llm-run "), done.stderr


def test_a_link_was_submitted(spool: Path, tmp_path: Path) -> None:
    (tmp_path / "my run").symlink_to(REPOSITORY / "bin" / "llm-run")
    done = submitted(spool, f"{tmp_path}/my run python x")
    assert done.returncode == 0 and done.stdout.startswith("llm-run "), done.stderr


def test_the_environment_is_the_last_resort(spool: Path) -> None:
    assert submitted(spool, "(null)", LLM_HOME=str(REPOSITORY)).returncode == 0


def test_nothing_found_is_said(spool: Path) -> None:
    done = submitted(spool, "/no such/llm-run python x")
    assert done.returncode == 2
    assert "cannot be found" in done.stderr and "export LLM_HOME" in done.stderr


def test_programs_are_known_by_the_name_they_are_started_by(tmp_path: Path) -> None:
    for name in ("llm-x", "start"):
        (tmp_path / name).symlink_to(REPOSITORY / "bin" / "llm-run")
        done = subprocess.run(
            [str(tmp_path / name), "--version"], capture_output=True, text=True, check=False
        )
        assert done.stdout.startswith("llm-run "), done.stderr
