"""manifest.json as hostile input: what is refused, and that every fault is named at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made import make

from _llm.releasing.manifest import SEMANTIC, Manifest, name_fault, read_manifest, sums


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make(tmp_path_factory.mktemp("release"))[1]


def changed(good: Manifest, **changes: object) -> bytes:
    return json.dumps({**json.loads(good.to_bytes()), **changes}).encode()


def faults(data: bytes) -> str:
    manifest, found = read_manifest(data)
    assert (manifest is None) == bool(found)
    return "\n".join(found)


def test_what_is_written_can_be_read(good: Manifest) -> None:
    assert read_manifest(good.to_bytes()) == (good, [])


@pytest.mark.parametrize(("data", "said"), [
    (b"", "no JSON"), (b"\xff\xfe{}", "no JSON"), (b"[]", "no JSON object"), (b"{", "no JSON"),
    (b'{"schema": 2}', "its schema is 2"), (b'{"schema": true}', "its schema is True"),
    (b"{}", "its schema is None"), (b"[" * 200_000, "no JSON"),
    (b'{"schema": ' + b"1" * 10_000 + b"}", "no JSON"),
    (b'{"schema": 1, "schema": 1}', "twice"),
    (b'{"schema": "\\u001b[2J"}', "\\x1b[2J"),
    (b" " * (33 << 20), "are the most"),
])
def test_what_is_no_manifest(data: bytes, said: str) -> None:
    assert said in faults(data) and "\x1b" not in faults(data)


def test_every_missing_field_is_named(good: Manifest) -> None:
    said = faults(b'{"schema": 1}')
    for name in ("version", "commit", "dirty", "day", "source", "key", "archive", "images", "locks",
                 "files"):
        assert f"{name} is missing" in said
    for name in json.loads(good.to_bytes())["images"][0]:
        image = json.loads(good.to_bytes())["images"][0]
        del image[name]
        assert f"image 1: {name} is missing" in faults(changed(good, images=[image]))


@pytest.mark.parametrize(("change", "said"), [
    ({"version": "1.2"}, "version is no semantic version"),
    ({"version": 1}, "version is no semantic version"),
    ({"version": "1.2.0/../../x"}, "version"), ({"version": "1.2.0\n"}, "version"),
    ({"commit": "HEAD"}, "commit is no commit"), ({"dirty": "no"}, "dirty is no bool"),
    ({"day": "today"}, "day is no day"), ({"images": {}}, "images is no list"),
    ({"images": [1]}, "image 1: is no object"), ({"files": []}, "files is no dict"),
    ({"files": {"a": 1}}, "file a: is no object"), ({"more": 1}, "unknown field more"),
    ({"files": {"a": {"sha256": "x", "size": True}}}, "file a: size is no int"),
    ({"files": {"a": {"sha256": "0" * 64, "size": -1}}}, "size is negative"),
    ({"source": "../x.tar"}, "source is no path"), ({"key": "/etc/passwd"}, "key is no path"),
    ({"source": "not-there.tar"}, "not-there.tar is not among the files"),
    ({"locks": {"x": "0" * 64}}, "the lock x is not among"), ({"locks": {"x": 1}}, "no SHA-256"),
    ({"name": "other"}, "name is 'other'"),
])
def test_wrong_fields(good: Manifest, change: dict[str, object], said: str) -> None:
    assert said in faults(changed(good, **change))


@pytest.mark.parametrize("name", [
    "../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "./a", "a/", "a\nb", "a\x1b[2J", "a\\b",
    "a" * 256, "a/" * 600 + "a", "\ud800", "a\x00b", "\u202etxt.exe",
])
def test_names_that_lead_elsewhere(good: Manifest, name: str) -> None:
    assert name_fault(name)
    files = {**json.loads(good.to_bytes())["files"], name: {"sha256": "0" * 64, "size": 1}}
    said = faults(changed(good, files=files))
    assert "is refused" in said and "\x1b" not in said


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "manifest.sif"])
def test_names_of_the_release_itself(good: Manifest, name: str) -> None:
    files = {**json.loads(good.to_bytes())["files"], name: {"sha256": "0" * 64, "size": 1}}
    assert "the release itself has that name" in faults(changed(good, files=files))


def test_ordinary_names_are_good() -> None:
    for name in ("images/llm-cpu-0123456789ab.sif", "archive/libc6_2.36-9+deb12u10_amd64.deb",
                 "archive/gcc-12-base_12.2.0-14%3a1~x.deb", "containers/llm/ü.txt", ".gitignore"):
        assert name_fault(name) == ""


def test_contradictions(good: Manifest) -> None:
    images = json.loads(good.to_bytes())["images"]
    assert "is there twice" in faults(changed(good, images=[images[0], images[0]]))
    other = {**images[0], "sha256": "0" * 64}
    assert "has two checksums" in faults(changed(good, images=[other]))
    stem = f"{images[1]['name']}-{images[1]['variant']}-{images[1]['inputs'][:12]}"
    other = {**images[0], "name": stem, "file": f"images/{stem}-{images[0]['inputs'][:12]}.sif"}
    said = faults(changed(good, images=[images[1], other]))
    assert f"the link {stem}.sif has the name of an image file" in said
    other = {**images[0], "file": images[1]["file"]}
    assert f"and not {images[0]['file']}" in faults(changed(good, images=[other]))
    files = {**json.loads(good.to_bytes())["files"]}
    files["containers"] = {"sha256": "0" * 64, "size": 1}
    assert "containers is a file and a folder" in faults(changed(good, files=files))
    locks = dict.fromkeys(good.locks, "0" * 64)
    assert "has two checksums" in faults(changed(good, locks=locks))


def test_an_image_can_have_no_name_that_is_a_path(good: Manifest) -> None:
    image = {**json.loads(good.to_bytes())["images"][0], "name": "../base"}
    assert "no name of an image" in faults(changed(good, images=[image]))


@pytest.mark.parametrize("version", ["1.2.0", "0.0.1", "1.0.0-rc.1", "1.0.0-alpha-2+build.5"])
def test_versions(version: str) -> None:
    assert SEMANTIC.fullmatch(version)


@pytest.mark.parametrize("version", ["", "1", "1.2", "v1.2.0", "01.2.0", "1.2.0-", "1.2.0-01",
                                     "1.2.0 ", "1.2.0\n", "1.2.0-ü", "1.2.٣"])
def test_no_versions(version: str) -> None:
    assert not SEMANTIC.fullmatch(version)


def test_checksums_are_sha256sum_s(good: Manifest, tmp_path: Path) -> None:
    lines = sums(good.to_bytes(), good.files).decode().splitlines()
    assert len(lines) == len(good.files) + 1 and lines == sorted(lines, key=lambda x: x[66:])
