"""A base image of a registry: known by its digest, kept whole, used without asking again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.images import registry, store
from _llm.images.registry import make_layout, members_of, pin, recorded

TAG = "docker://registry.invalid/debian:slim"


class Apptainer:
    """In place of `apptainer pull`: writes the cache that the real one writes (1.4.5, seen)."""

    def __init__(self) -> None:
        self.content, self.asked, self.fails = b"layer", 0, False

    def __call__(
        self, base: str, folder: Path, apptainer: str, env: Mapping[str, str],
    ) -> str | None:
        """See registry.pull."""
        self.asked += 1
        if self.fails:
            return "no such host"
        blobs, made = folder / "cache/blob/blobs/sha256", folder / "cache/oci-tmp"
        made /= hashlib.sha256(self.content).hexdigest()
        if made.exists():
            return None  # "Using cached SIF image"
        blobs.mkdir(parents=True, exist_ok=True)
        made.parent.mkdir(exist_ok=True)
        made.write_bytes(b"")
        os.utime(made, (self.asked, self.asked))

        def blob(data: bytes) -> dict[str, object]:
            digest = hashlib.sha256(data).hexdigest()
            (blobs / digest).write_bytes(data)
            return {"digest": f"sha256:{digest}", "size": len(data)}

        parts = {"config": blob(b"{}"), "layers": [blob(self.content)]}
        manifest = blob(json.dumps(parts).encode())
        (folder / "cache/blob/index.json").write_text(json.dumps({"manifests": [manifest]}))
        return None


@pytest.fixture
def apptainer(monkeypatch: pytest.MonkeyPatch) -> Apptainer:
    program = Apptainer()
    monkeypatch.setattr(registry, "pull", program)
    return program


def pinned(base: str, packages: store.Store, tmp_path: Path) -> str:
    return pin(base, packages, tmp_path / "cache", "apptainer", {})


def test_a_tag_is_asked_for_each_time_and_moves(apptainer: Apptainer, tmp_path: Path) -> None:
    packages = store.Store(tmp_path / "archive")
    first = pinned(TAG, packages, tmp_path)
    assert [f.read_bytes() for f in members_of(first, packages)][1:] == [b"{}", b"layer"]
    assert pinned(TAG, packages, tmp_path) == first and apptainer.asked == 2
    apptainer.content = b"a newer layer"
    assert pinned(TAG, packages, tmp_path) not in ("", first) and apptainer.asked == 3
    assert pinned(TAG, packages, tmp_path) == recorded(TAG, packages) != first
    apptainer.content = b"layer"  # and back
    assert pinned(TAG, packages, tmp_path) == recorded(TAG, packages) == first


def test_a_digest_is_asked_for_once(apptainer: Apptainer, tmp_path: Path) -> None:
    packages, base = store.Store(tmp_path / "archive"), f"docker://x@sha256:{'a' * 64}"
    first = pinned(base, packages, tmp_path)
    assert pinned(base, packages, tmp_path) == first and apptainer.asked == 1


def test_without_a_network_the_archive_decides(
    apptainer: Apptainer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    apptainer.fails = True
    packages = store.Store(tmp_path / "archive")
    with pytest.raises(LLMError, match="cannot fetch docker://") as raised:
        pinned(TAG, packages, tmp_path)
    assert "no such host" in raised.value.why and "LLM_ARCHIVE_DIR" in raised.value.fix
    apptainer.fails = False
    first = pinned(TAG, packages, tmp_path)
    apptainer.fails = True
    elsewhere = store.Store(tmp_path / "own", (packages.own,))
    assert pinned(TAG, elsewhere, tmp_path / "elsewhere") == first
    assert "the registry did not answer" in capsys.readouterr().err


def test_an_image_that_lost_a_blob_is_fetched_again(apptainer: Apptainer, tmp_path: Path) -> None:
    packages = store.Store(tmp_path / "archive")
    first = pinned(TAG, packages, tmp_path)
    members_of(first, packages)[2].unlink()
    assert recorded(TAG, packages) == ""
    with pytest.raises(LLMError, match="is not whole"):
        make_layout(first, packages, tmp_path / "layout")
    assert pinned(TAG, packages, tmp_path) == first


def test_the_layout_is_what_the_specification_says(apptainer: Apptainer, tmp_path: Path) -> None:
    packages = store.Store(tmp_path / "archive")
    sha256 = pinned(TAG, packages, tmp_path)
    folder = tmp_path / "layout"
    assert make_layout(sha256, packages, folder) == f"oci:{folder}"
    entry = json.loads((folder / "index.json").read_text())["manifests"][0]
    assert entry["digest"] == f"sha256:{sha256}" and entry["mediaType"] == registry.MANIFEST
    for name in os.listdir(folder / "blobs/sha256"):
        assert hashlib.sha256((folder / "blobs/sha256" / name).read_bytes()).hexdigest() == name


@pytest.mark.parametrize("spoil", ["index", "blob", "manifest"])
def test_a_damaged_cache_of_apptainer_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str,
) -> None:
    def pull(base: str, folder: Path, apptainer: str, env: Mapping[str, str]) -> None:
        Apptainer()(base, folder, apptainer, env)
        blobs = folder / "cache/blob"
        for file in (blobs / "blobs/sha256").iterdir():
            if (file.read_bytes() == b"layer") == (spoil == "blob") and spoil != "index":
                file.write_bytes(b"spoilt")
        if spoil == "index":
            (blobs / "index.json").write_text("{}")

    monkeypatch.setattr(registry, "pull", pull)
    packages = store.Store(tmp_path / "archive")
    with pytest.raises(LLMError, match="can't be kept"):
        pinned(TAG, packages, tmp_path)
    assert recorded(TAG, packages) == ""
