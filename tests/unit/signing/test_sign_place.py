"""What is advised where a copy of an image can't be made in its folder, to be signed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.signing import sign


@pytest.mark.parametrize(("number", "advice"), [
    (errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EACCES, "sign a copy"),
    (errno.EROFS, "sign a copy"),
])
def test_a_folder_without_room_and_one_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str,
) -> None:
    def refuse(*_: str) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(sign.check, "copy_file", refuse)
    with pytest.raises(LLMError, match="cannot be copied to its folder") as raised:
        sign._copy(tmp_path / "image.sif", tmp_path / ".image.sif.signing-1")
    assert raised.value.why == "refused" and advice in raised.value.fix
