"""Images by name and by path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.lookup import find_image, image_folders, split_name
from _llm.settings import load_settings

ORDER = ["cuda13", "cuda12", "cpu"]


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("llm", ("llm", "", "")),
        ("llm-cpu", ("llm", "cpu", "")),
        ("llm-cpu-3f9c2a81d0b7", ("llm", "cpu", "3f9c2a81d0b7")),
        ("llama-recipes-3f9c2a81d0b7", ("llama-recipes", "", "3f9c2a81d0b7")),
        ("llama-recipes", ("llama-recipes", "", "")),
        ("my-cpu-image", ("my-cpu-image", "", "")),
    ],
)
def test_names(stem: str, expected: tuple[str, str, str]) -> None:
    assert split_name(stem) == expected


def test_a_name_without_variant_takes_the_first_that_exists(images: Path) -> None:
    image = find_image("llm", [str(images)], ORDER, "")
    assert (image.name, image.variant, image.digest) == ("llm", "cuda12", "ba9876543210")
    assert find_image("llm", [str(images)], ["cpu"], "").variant == "cpu"


def test_the_link_is_resolved(images: Path) -> None:
    image = find_image("llm-cpu", [str(images)], ORDER, "")
    assert image.path == str(images / "llm-cpu-0123456789ab.sif")


def test_one_build_by_its_digest(images: Path) -> None:
    (images / "llm-cpu.sif").unlink()
    image = find_image("llm-cpu-0123456789ab", [str(images)], ORDER, "")
    assert image.digest == "0123456789ab"


def test_another_build_is_not_what_make_image_would_make(images: Path, home: Path) -> None:
    (home / "containers" / "llm").mkdir(parents=True)
    (home / "containers" / "llm" / "image.def").touch()
    with pytest.raises(LLMError) as caught:
        find_image("llm-cpu-ba9876543210", [str(images)], ORDER, str(home))
    assert caught.value.what == "the build 'llm-cpu-ba9876543210' is not here"
    assert caught.value.fix == (
        "copy llm-cpu-ba9876543210.sif there; or take the newest build: llm-cpu")
    with pytest.raises(LLMError) as caught:
        find_image("mine-ba9876543210", [str(images)], ORDER, str(home))
    assert caught.value.fix == "copy mine-ba9876543210.sif there"


def test_a_path(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_image(str(images / "other.sif"), [], ORDER, "").name == "other"
    monkeypatch.chdir(images)
    assert find_image("other.sif", [], ORDER, "").path == str(images / "other.sif")
    with pytest.raises(LLMError, match=r"there is no image './othr.sif'") as caught:
        find_image("./othr.sif", [], ORDER, "")
    assert "did you mean ./other.sif?" in caught.value.fix
    (images / "sub/containers").mkdir(parents=True)
    with pytest.raises(LLMError) as caught:
        find_image("sub/container", [], ORDER, "")
    assert caught.value.fix == "check the path"  # a folder that is no image is no proposal


def test_an_unknown_name_gets_the_nearest_one(images: Path) -> None:
    with pytest.raises(LLMError) as caught:
        find_image("llm-cuda21", [str(images)], ORDER, "/home")
    assert "there is no image 'llm-cuda21'" in str(caught.value)
    assert "images: llm, llm-cpu, llm-cuda12, other" in str(caught.value)
    assert caught.value.fix == "did you mean llm-cuda12?"  # whichever program asks


def test_no_image_at_all_says_how_to_build_one(home: Path) -> None:
    (home / "containers" / "llm").mkdir(parents=True)
    (home / "containers" / "llm" / "image.def").touch()
    with pytest.raises(LLMError) as caught:
        find_image("llm", ["/nowhere"], ORDER, str(home))
    assert "the image 'llm' is not built yet" in str(caught.value)
    assert f"make -C '{home}' image" in caught.value.fix
    with pytest.raises(LLMError) as caught:
        find_image("llm-cuda13", ["/nowhere"], ORDER, str(home))
    assert "image VARIANT=cuda13" in caught.value.fix


def test_a_link_to_nothing(images: Path) -> None:
    (images / "llm-cpu-0123456789ab.sif").unlink()
    with pytest.raises(LLMError, match="is a link to nothing"):
        find_image(str(images / "llm-cpu.sif"), [], ORDER, "")
    assert find_image("llm", [str(images)], ["cpu", "cuda12"], "").variant == "cuda12"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.sif")
    with pytest.raises(LLMError, match="is no image"):
        find_image(str(tmp_path / "pipe.sif"), [], ORDER, "")


@pytest.mark.parametrize("content", [b"", b"#!/usr/bin/env run-singularity\n", b"x" * 1000])
def test_a_file_that_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.sif").write_bytes(content)
    with pytest.raises(LLMError, match="is no image"):
        find_image("broken", [str(tmp_path)], ORDER, "")


def test_an_unpacked_image(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="is a folder and no image"):
        find_image(str(tmp_path), [], ORDER, "")
    (tmp_path / ".singularity.d").mkdir()
    assert find_image(str(tmp_path), [], ORDER, "").path == str(tmp_path)


def test_folders_in_their_order(home: Path, env: dict[str, str]) -> None:
    cache = env["HOME"] + "/.cache/llm/images"
    assert image_folders(load_settings(env, str(home)), str(home)) == [f"{home}/images", cache]
    env.update(LLM_IMAGE_DIR="/mine", LLM_IMAGE_PATH="/a:/b")
    assert image_folders(load_settings(env, str(home)), str(home)) == [
        *("/mine", "/a", "/b", f"{home}/images", cache)
    ]
