"""Starting another program and reading what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.programs import run_captured


def test_what_it_prints_is_text_and_it_is_asked_nothing(tmp_path: Path) -> None:
    script = "printf 'a\\377b'; cat; pwd >&2; echo $X >&2; exit 3"
    done = run_captured(["/bin/sh", "-c", script], {"X": "it's"}, cwd=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "a\ufffdb")
    assert done.stderr == f"{tmp_path}\nit's\n"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="no such; program cannot be started") as caught:
        run_captured([str(tmp_path / "no such; program")], {})
    assert caught.value.why == "No such file or directory"
