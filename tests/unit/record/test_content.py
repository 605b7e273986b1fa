"""The host's digests are those of the recipes, whose code runs in images with another Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from _llm.record import content

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
PROGRAM = """
import sys
from pathlib import Path
from llm_recipes import content_digest, run_environment
content_digest.FRESH_NS = -1
for folder in sys.argv[2:]:
    print(content_digest.content_digest(Path(folder)))
print(run_environment.files_sha256(Path(sys.argv[1])))
"""

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the recipes' library needs it")


def make(folder: Path, names: tuple[str, ...]) -> Path:
    """A folder with files of these names, and what never counts."""
    (folder / "below").mkdir(parents=True)
    own = (*names, "it's; ü \n.json", "B.bin", "a.bin", "notes.md", "loss.png", "run.json",
           "x.run.json", ".hidden.json", "below/config.json", "UPPER.JSON", "no_suffix")
    for name in own:
        (folder / name).write_text(name * 3)
    (folder / os.fsdecode(b"not-utf8-\xff.txt")).write_text("x")
    os.mkfifo(folder / "pipe.json")
    (folder / "link.json").symlink_to("a.bin")
    (folder / "broken.json").symlink_to("gone")
    (folder / "empty.txt").touch()
    return folder


def of_recipes(cache: Path, *folders: Path) -> list[str]:
    """The digests of folders and, last, that of the first one as one of recipes."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(RECIPES),
                   "LLM_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folders[0]), *map(str, folders)],
                          env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_both_find_the_same(tmp_path: Path) -> None:
    folders = [make(tmp_path / mark, (mark,)) for mark in content.MODEL_MARKS]
    folders += [make(tmp_path / "data", ("d.jsonl",)), tmp_path / "data" / "d.jsonl"]
    (folders[0] / "inference").mkdir()
    (folders[0] / "inference" / "ü'.py").write_text("x")
    found = of_recipes(tmp_path / "cache", *folders)
    here = [content.content_digest(str(folder), str(tmp_path / "own")) for folder in folders]
    assert here == found[:-1]
    assert len(set(here)) == len(here)
    assert content.files_sha256(str(folders[0])) == found[-1]


def test_both_read_the_cache_of_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("x")
    (told, _) = of_recipes(tmp_path / "c", file)
    monkeypatch.setattr(content, "file_sha256", lambda path: "it was read again")
    assert content.content_digest(str(file), str(tmp_path / "c")) == told
    (entry,) = (tmp_path / "c" / "digests").iterdir()
    entry.write_text(" ".join([*entry.read_text().split()[:3], "b" * 64]) + "\n")
    assert of_recipes(tmp_path / "c", file)[0] == "sha256:" + "b" * 64
    entry.unlink()
    monkeypatch.setattr(content, "file_sha256", lambda path: "c" * 64)
    monkeypatch.setattr(content, "FRESH_NS", -1)
    content.content_digest(str(file), str(tmp_path / "c"))
    assert of_recipes(tmp_path / "c", file)[0] == "sha256:" + "c" * 64


def test_lists_are_the_same() -> None:
    program = ("import re\nfrom llm_recipes import content_digest as a, run_environment as b\n"
               "print([a.MODEL_SUFFIXES, a.MODEL_MARKS, a.RECORD.pattern, a.KEPT.pattern,"
               " b.CODE_SUFFIXES, b.CHANGES_A_RUN.pattern])")
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True,
                          text=True, env={"PYTHONPATH": str(RECIPES)})
    from _llm.record.surroundings import CHANGES_A_RUN

    assert done.stdout.strip() == str([
        content.MODEL_SUFFIXES, content.MODEL_MARKS, content.RECORD.pattern, content.KEPT.pattern,
        content.CODE_SUFFIXES, CHANGES_A_RUN.pattern])
