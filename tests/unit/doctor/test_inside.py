"""inside.py on the host's Python, which has no torch: what it tells and how it survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from _llm.doctor import inside, programs


def tell(tmp_path: Path, question: dict[str, Any], **env: str) -> dict[str, list[dict[str, Any]]]:
    source = Path(inside.__file__).read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", programs.RUN, source, json.dumps(question)],
        cwd=tmp_path,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    answers: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        if line.startswith(inside.MARK):
            answer = json.loads(line[len(inside.MARK) :])
            answers.setdefault(answer.pop("topic"), []).append(answer)
    return answers


def test_basics(tmp_path: Path) -> None:
    # A file of the user's in the working folder must not count as the module.
    (tmp_path / "subprocess.py").write_text("raise SystemExit('the wrong one')", encoding="utf-8")
    mark, other = tmp_path / "mark", tmp_path / "gone"
    mark.write_text("token", encoding="utf-8")
    question = {
        "torch": False,
        "names": ["ONE", "UNSET"],
        "marks": {
            "a": (str(mark), f"{mark}.reply"),
            "b": (str(other), f"{other}.reply"),
            "c": (str(tmp_path), ""),
        },
    }
    answers = tell(tmp_path, question, ONE="1", TWO="2")
    (basics,) = answers["basics"]
    assert basics["hidden"] == ["subprocess.py"]
    assert basics["env"] == {"ONE": "1"} and basics["cwd"] == str(tmp_path)
    assert str(tmp_path) not in basics["path"] and "" not in basics["path"]
    assert basics["marks"]["a"] == {"seen": "token", "replied": True}
    assert Path(f"{mark}.reply").read_text(encoding="utf-8") == "token"
    assert basics["marks"]["b"]["error"] == "No such file or directory"
    assert basics["marks"]["c"]["seen"] == str(tmp_path.stat().st_ino)
    assert "end" in answers


def test_no_torch_and_no_library(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "raise ImportError('a user has a torch.py')", encoding="utf-8"
    )
    answers = tell(tmp_path, {"models": ["x"]})
    assert answers["models"][0]["missing"]
    assert answers["torch"] == [{"missing": True, "error": ""}]


def test_a_torch_that_is_broken(tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "torch.py").write_text(
        "raise ImportError('libgomp.so.1: missing')", encoding="utf-8"
    )
    answers = tell(tmp_path, {}, PYTHONPATH=str(library))
    assert answers["torch"] == [{"missing": False, "error": "libgomp.so.1: missing"}]


def test_all_reduce_and_what_nccl_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks played by a program that says what NCCL would."""
    rank = "import sys; print('NCCL INFO Using network IB', sys.argv[1:]); print('noise')"
    inside.tell_collective(["-c", rank], 2, 5)
    last = capsys.readouterr().out.splitlines()[-1]
    answer = json.loads(last[len(inside.MARK) :])
    assert (answer["topic"], answer["status"], answer["ranks"]) == ("collective", 0, 2)
    (line,) = answer["lines"]
    assert "Using network IB ['nccl', 'tcp://127.0.0.1:" in line and "'2', '0', '0', '5']" in line
    inside.tell_collective(["-c", "import sys; sys.exit('ncclSystemError: no device')"], 1, 5)
    answer = json.loads(capsys.readouterr().out.splitlines()[-1][len(inside.MARK) :])
    assert answer["status"] == 1 and answer["last"] == "ncclSystemError: no device"
