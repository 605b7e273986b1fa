"""What can stand at the cursor: options, names of images and sites, files, another command."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm import complete
from _llm.options import OPTIONS


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, home: Path, images: Path, env: dict[str, str]) -> None:
    (home / "sites/mine.ini").write_text("")
    monkeypatch.setattr(complete, "HOME", home)
    monkeypatch.delenv("LLM_SITE", raising=False)
    monkeypatch.setenv("LLM_IMAGE_DIR", str(images))
    monkeypatch.setenv("HOME", env["HOME"])


def ask(*words: str, program: str = "llm-run") -> list[str]:
    return complete.complete(program, list(words))


def test_options_come_from_the_programs_own_table() -> None:
    assert ask("-") == ["words", *OPTIONS]
    assert ask("--no") == ["words", "--no-gpu"]
    assert "--node" not in ask("--", program="llm-doctor")
    assert "--json" in ask("--js", program="llm-doctor")
    assert ask("--json", "", program="llm-doctor")[:1] == ["words"]


def test_a_command_comes_first_and_then_options_and_files() -> None:
    assert ask("", program="llm-record") == ["words", "show", "replay"]
    assert ask("re", program="llm-record") == ["words", "replay"]
    assert ask("replay", "", program="llm-record") == ["files"]
    assert ask("replay", "runs/ba", program="llm-record") == ["files"]
    assert ask("show", "a", "b", "--ch", program="llm-record") == ["words", "--check"]
    assert ask("replay", "a", "--output", "", program="llm-record") == ["files"]
    assert ask("show", "--o", program="llm-record") == ["words"]  # it is for replay
    assert ask("replay", "--o", program="llm-record") == ["words", "--output"]


def test_names_of_images_and_sites() -> None:
    assert ask("--image", "llm-c") == ["words", "llm-cpu", "llm-cuda12"]
    assert ask("--image=llm-cp") == ["words", "--image=llm-cpu"]
    assert ask("--image", "=", "llm-cp") == ["words", "llm-cpu"]  # as bash takes it apart
    assert "llm" in ask("--image", "=")
    assert ask("--site", "") == ["words", "default", "mine"]
    assert ask("--image", "./im") == ask("--site", "~/s") == ask("--bind", "") == ["files"]
    assert ask("--env", "HO") == ["words"]
    assert ask("--launch", "l") == ["words", "local"]
    assert "TERM" in ask("--stop-signal", "")


def test_behind_the_options_it_is_the_commands_line() -> None:
    assert ask("py") == ["command 1"]
    assert ask("--gpu", "") == ["command 2"]
    assert ask("--image", "llm", "python", "--") == ["command 3"]
    assert ask("--image=llm", "--", "python", "x") == ["command 3"]
    assert ask("--image", "=", "llm", "python", "") == ["command 4"]
    assert ask("--", "") == ["command 2"]


def test_behind_submit_there_may_be_options_of_sbatch() -> None:
    assert "--" in ask("--submit", "--") and "--" not in ask("--gpu", "--")
    assert ask("--submit", "--gpus", "1", "--im") == ["words", "--image"]
    assert ask("--submit", "--gpus=1", "--", "python", "") == ["command 4"]


def test_nothing_is_said_where_nothing_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert complete.main([]) == complete.main(["llm-none", "x"]) == 1
    monkeypatch.setenv("LLM_SITE", "missing")
    assert complete.main(["llm-run", "--image", ""]) == 1
    assert not "".join(capsys.readouterr())
    assert complete.main(["llm-run"]) == 0
    assert capsys.readouterr().out == "command 1\n"
