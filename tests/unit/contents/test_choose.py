"""Which image file a task is about, in a checkout and in an installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.contents import choose
from _llm.errors import LLMError


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation without the folder containers, with two variants of an image."""
    images = tmp_path / "images of 'x'"
    images.mkdir()
    for name in ("llm-cpu", "llm-cuda13", "base"):
        (images / f"{name}.sif").write_bytes(b"\0" * 32 + b"SIF_MAGIC\0")
    for name in ("LLM_IMAGE", "LLM_SITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLM_IMAGE_DIR", str(images))
    home = tmp_path / "home"
    (home / "sites").mkdir(parents=True)
    (home / "sites/default.ini").write_text("")
    monkeypatch.setattr(choose, "HOME", home)
    return images


def test_the_variant_counts_without_a_checkout(installation: Path) -> None:
    for variant in ("cpu", "cuda13"):
        found = choose.choose_image("llm", variant, "x")
        assert found == str(installation / f"llm-{variant}.sif")
    assert choose.choose_image("base", "", "x") == str(installation / "base.sif")
    with pytest.raises(LLMError, match="there is no image 'llm-cuda12'"):
        choose.choose_image("llm", "cuda12", "x")
    with pytest.raises(LLMError, match="more than one variant"):
        choose.choose_image("llm", "cpu,cuda13", "x")
