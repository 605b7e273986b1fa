"""Leaks and folders, from what a program in an image would tell; models likewise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _llm.doctor import model, seen
from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.rank import Plan
from _llm.settings import load_settings

LABELS = {"llm.digest": "0123456789ab" + "c" * 52, "llm.variant": "cpu", "llm.lock-date": "2026"}


def look(home: Path, env: dict[str, str], tmp_path: Path, changes: Any = ()) -> dict[str, Finding]:
    """Findings by check, for answers that differ from fine ones in `changes`."""
    mark = tmp_path / ".llm-doctor-t-cache"
    mark.write_text("t", encoding="utf-8")
    (tmp_path / ".llm-doctor-t-cache.reply").touch()
    basics = {
        "env": {},
        "cwd": "/w",
        "home": env["HOME"],
        "user": "alice",
        "hidden": [],
        "python": "3.11.2",
        "path": ["/usr/lib/python3.11"],
        "user_base": "/cache/python",
        "labels": LABELS,
        "marks": {
            "cache": {"seen": "t", "replied": True},
            "models": {"seen": str(tmp_path.stat().st_ino), "replied": False},
        },
        **dict(changes),
    }
    plan = Plan(
        ["/bin/apptainer", "exec", "--pwd", "/w", "/i/llm-cpu-0123456789ab.sif", "true"],
        ["PYTHONPATH", "CONDA_PREFIX"],
        {"PYTHONPATH": "/recipes"},
    )
    outside = {**env, "PYTHONPATH": "/host", "CONDA_PREFIX": "/conda"}
    context = Context(load_settings(env, str(home)), outside, str(home), "t")
    marks = {"cache": (str(mark), str(mark) + ".reply"), "models": (str(tmp_path), "")}
    found = seen.findings({"basics": [basics]}, plan, context, marks)
    return {finding.check: finding for finding in found}


def test_fine(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    found = look(home, env, tmp_path)
    assert {f.status for f in found.values()} == {OK}
    assert found["isolation"].text == "kept out: CONDA_PREFIX, PYTHONPATH"
    assert (
        found["binds"].text
        == "a program reads and writes the host's cache; reads the host's models"
    )
    assert "digest 0123456789ab" in found["image labels"].text


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"env": {"CONDA_PREFIX": "/conda"}}, "isolation", "reach the program: CONDA_PREFIX"),
        ({"env": {"LD_PRELOAD": "/x.so"}}, "isolation", "reach the program: LD_PRELOAD"),
        ({"cwd": "/root"}, "working folder", "start in /root, not in /w"),
        (
            {"marks": {"cache": {"seen": "", "error": "No such file", "replied": False}}},
            "bind cache",
            "No such file",
        ),
        (
            {"marks": {"cache": {"seen": "t", "error": "Read-only", "replied": False}}},
            "bind cache",
            "can't be written by a program: Read-only",
        ),
        ({"marks": {"models": {"seen": "1", "replied": False}}}, "bind models", "another folder"),
    ],
)
def test_faults(
    home: Path, env: dict[str, str], tmp_path: Path, changes: Any, check: str, words: str
) -> None:
    found = look(home, env, tmp_path, changes)
    assert found[check].status == FAIL and words in found[check].text and found[check].fix


def test_packages_of_the_user(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    path = [env["HOME"] + "/.local/lib/python3.11/site-packages", env["HOME"] + "/.localized"]
    found = look(home, env, tmp_path, {"path": path})["isolation"]
    assert found.status == FAIL and found.text.endswith("python3.11/site-packages")


def test_a_renamed_image_and_a_foreign_one(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    found = look(home, env, tmp_path, {"labels": {**LABELS, "llm.digest": "f" * 64}})
    assert found["image labels"].status == WARN
    assert "from elsewhere" in look(home, env, tmp_path, {"labels": {}})["image labels"].text


def test_no_name(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    assert look(home, env, tmp_path, {"user": ""})["user"].status == WARN


def test_files_that_hide_modules(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    found = look(home, env, tmp_path, {"hidden": ["torch.py"]})["hidden modules"]
    assert found.status == WARN and "torch.py" in found.text


def test_models() -> None:
    fine = {
        "name": "a/b",
        "path": "/m",
        "weights": ["/m/x.safetensors"],
        "bytes": 1 << 31,
        "faults": [],
    }
    pickled = {**fine, "weights": ["/m/pytorch_model.bin"]}
    broken = {"name": "c/d", "faults": [{"what": "no tokenizer", "why": "w", "fix": "f"}] * 2}
    found = model.findings({"models": [{"models": [fine, pickled, broken]}]}, ["a/b", "c/d"])
    assert [f.status for f in found] == [OK, OK, WARN, FAIL, FAIL]
    assert found[0].text == "a/b can be loaded offline from /m: 1 files, 2 GiB of weights"
    assert found[2].text.endswith("pytorch_model.bin")
    assert (found[3].text, found[3].fix) == ("no tokenizer: w", "f")


def test_models_that_nobody_could_look_at(tmp_path: Path) -> None:
    assert model.findings({}, []) == []
    assert model.findings({}, ["x"])[0].status == SKIP
    assert (
        model.findings({"models": [{"missing": "no torch", "models": []}]}, ["x"])[0].status == WARN
    )
    fault = {"what": f"the model folder {tmp_path} does not exist", "why": "", "fix": "?"}
    answer = {"models": [{"models": [{"name": str(tmp_path), "faults": [fault]}]}]}
    (found,) = model.findings(answer, [str(tmp_path)])
    assert "does not see it" in found.text and found.fix.startswith("llm-run --bind")
