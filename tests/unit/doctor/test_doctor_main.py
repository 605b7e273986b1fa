"""llm-doctor as a user starts it, on this machine without an image."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PROGRAM = str(REPOSITORY / "bin/llm-doctor")


@pytest.fixture
def here(tmp_path: Path, env: dict[str, str]) -> dict[str, str]:
    """The environment of a user without images; Slurm's programs are not on PATH either."""
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("sh", "env", "readlink", "unshare"):
        found = next(f for f in (f"/usr/bin/{name}", f"/bin/{name}") if os.path.exists(f))
        (path / name).symlink_to(found)
    return {**env, "PATH": str(path), "LLM_IMAGE_DIR": str(tmp_path / "no-images")}


def doctor(
    env: dict[str, str], *words: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], env=env, cwd=cwd, capture_output=True, text=True)


def test_without_an_image(here: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "a 'ü;$(x)"
    folder.mkdir()
    done = doctor(here, cwd=folder)
    assert done.returncode == 1 and not done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("fail  image ") for line in lines)
    assert any(
        line.startswith("skip  start              not started, because of:") for line in lines
    )
    assert any(line.startswith("ok    working folder     " + str(folder)) for line in lines)
    assert "\033" not in done.stdout and " failed, " in lines[-1]
    assert not list(folder.iterdir())


def test_json(here: dict[str, str]) -> None:
    done = doctor(here, "--json")
    values = json.loads(done.stdout)
    assert done.returncode == 1 and values["counts"]["fail"] >= 1
    assert {"check", "status", "text", "fix", "node"} <= set(values["findings"][0])
    assert {finding["node"] for finding in values["findings"]} == set(values["nodes"])


def test_wrong_use(here: dict[str, str]) -> None:
    done = doctor(here, "--jbo", "--limit", "x")
    assert done.returncode == 2 and "did you mean --job?" in done.stderr
    done = doctor(here, "--job")
    assert done.returncode == 2 and "salloc" in done.stderr
    done = doctor({**here, "LLM_SITE": "defalt"})
    assert done.returncode == 2 and "did you mean default?" in done.stderr


def test_help(here: dict[str, str]) -> None:
    assert "--collect-env" in doctor(here, "--help").stdout
    assert doctor(here, "--version").stdout.startswith("llm-doctor ")


def test_an_overall_limit_and_an_interruption(here: dict[str, str], tmp_path: Path) -> None:
    # An Apptainer that never answers: as one on a file system whose server is gone.
    stuck = tmp_path / "stuck"
    stuck.write_text(f"#!/bin/sh\necho $$ >> '{tmp_path}/ids'\nexec sleep 99\n", encoding="utf-8")
    stuck.chmod(0o755)
    ids = tmp_path / "ids"
    ids.touch()
    env = {**here, "PATH": here["PATH"] + ":/usr/bin:/bin", "LLM_APPTAINER": str(stuck)}
    begin = time.monotonic()
    done = doctor(env, "--limit", "5")
    assert time.monotonic() - begin < 25  # the check's own limit is 30
    assert "fail  apptainer          did not end within" in done.stdout
    # A folder that is being tried when the end comes: its file is removed all the same.
    folder = tmp_path / "tried"
    folder.mkdir()
    before = len(ids.read_text(encoding="utf-8").split())
    process = subprocess.Popen(
        [PROGRAM], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while len(ids.read_text(encoding="utf-8").split()) == before:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    until = time.monotonic() + 60
    for number in ids.read_text(encoding="utf-8").split():
        while os.path.exists(f"/proc/{number}") and time.monotonic() < until:
            time.sleep(0.02)
        assert not os.path.exists(f"/proc/{number}")
    assert not list(folder.iterdir())
