"""Slurm's programs played by scripts; the real ones in tests/cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.doctor import scheduler
from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.settings import Settings, load_settings

SINFO = "echo 'research up 4'; echo 'research-gpu up 4'; echo 'old down 1'"


def slurm(
    home: Path,
    env: dict[str, str],
    tmp_path: Path,
    sinfo: str,
    ping: str = "echo all UP",
    **more: str,
) -> dict[str, Finding]:
    bin = tmp_path / "slurm bin"
    bin.mkdir(exist_ok=True)
    scripts = {**dict.fromkeys(scheduler.PROGRAMS, "true"), "sinfo": sinfo, "scontrol": ping}
    for name, script in scripts.items():
        (bin / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (bin / name).chmod(0o755)
    env = {**env, **more, "PATH": f"{bin}:/usr/bin:/bin"}
    found = scheduler.slurm(load_settings(env, str(home)), env, lambda text: None)
    return {finding.check: finding for finding in found}


def test_fine(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    found = slurm(home, env, tmp_path, SINFO, SLURM_JOB_ID="7", LLM_SLURM_PARTITION="research")
    assert found["slurm"] == Finding("slurm", OK, "all UP; inside job 7")
    assert found["partitions"].status == OK
    assert found["partitions"].text.startswith("up: research, research-gpu")


@pytest.mark.parametrize(
    ("partition", "status", "fix"),
    [("reserch", FAIL, "did you mean research?"), ("old", WARN, "sinfo"), ("old,research", OK, "")],
)
def test_partitions(
    home: Path, env: dict[str, str], tmp_path: Path, partition: str, status: str, fix: str
) -> None:
    found = slurm(home, env, tmp_path, SINFO, LLM_SLURM_PARTITION=partition)["partitions"]
    assert found.status == status and found.fix.startswith(fix)


def test_controllers(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    ping = "echo 'primary is DOWN'; echo 'backup is UP'; exit 1"
    assert slurm(home, env, tmp_path, SINFO, ping)["slurm"].status == WARN
    found = slurm(home, env, tmp_path, "echo 'slurm_load_partitions: timed out' >&2; exit 1")[
        "slurm"
    ]
    assert found.status == FAIL and "timed out" in found.text
    text = "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1"
    assert slurm(home, env, tmp_path, text)["slurm"].status == WARN


def test_one_that_hangs(
    home: Path, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "ANSWER_SECONDS", 0.3)
    found = slurm(home, env, tmp_path, "exec sleep 60")["slurm"]
    assert found.status == FAIL and "sinfo did not answer within 0.3 s" in found.text


def test_none(home: Path, env: dict[str, str]) -> None:
    settings = load_settings(env, str(home))
    (found,) = scheduler.slurm(settings, {"PATH": "/nonexistent"}, lambda text: None)
    assert found.status == SKIP


def with_modules(home: Path, env: dict[str, str], names: str) -> Settings:
    return load_settings({**env, "LLM_MODULES": names}, str(home))


@pytest.mark.parametrize(
    ("wanted", "shell", "status", "words"),
    [
        ("", {}, SKIP, "no module system"),
        ("", {"LMOD_CMD": "/l", "LMOD_VERSION": "8.6"}, OK, "Lmod 8.6; loaded: none"),
        ("apptainer", {"MODULES_CMD": "/m", "LOADEDMODULES": "gcc/1:apptainer/1.4"}, OK, "gcc/1"),
        ("apptainer", {"MODULES_CMD": "/m", "LOADEDMODULES": "apptainer2/1"}, WARN, "not loaded"),
        ("apptainer", {}, WARN, "no module system here"),
    ],
)
def test_modules(
    home: Path, env: dict[str, str], wanted: str, shell: dict[str, str], status: str, words: str
) -> None:
    (found,) = scheduler.modules(with_modules(home, env, wanted), shell)
    assert found.status == status and words in found.text


def test_site(home: Path, env: dict[str, str]) -> None:
    (home / "sites/box.ini").write_text("[paths]\n", encoding="utf-8")
    settings = load_settings(env, str(home), "box")
    assert "profile box" in scheduler.site(settings, env, "box")[0].text
    assert scheduler.site(settings, env, "box")[0].text.endswith("(by --site)")
    assert scheduler.site(settings, {"LLM_SITE": "box"}, None)[0].text.endswith("(by LLM_SITE)")
    assert scheduler.site(settings, {}, None)[0].text.endswith("[network] hosts)")
