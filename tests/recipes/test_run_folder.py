"""run_folder.py: whose folder it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.run_folder import RunFolder


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}")
    with pytest.raises(LLMError, match="is a file") as told:
        RunFolder(tmp_path / "data.jsonl").own_record()
    assert "--output" in told.value.fix


def test_what_is_not_a_runs_is_told_and_left(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LLMError, match="not the folder of a run") as told:
        RunFolder(tmp_path).own_record()
    assert "thesis.txt" in told.value.why


def test_new_and_empty_folders_are_fine(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "new").own_record() is None
    assert RunFolder(tmp_path).own_record() is None
