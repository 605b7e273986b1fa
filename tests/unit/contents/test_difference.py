"""What is said about two images that differ, and which images are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.contents import difference
from _llm.contents.choose import images_of_release
from _llm.contents.software import Component
from _llm.contents.trees import Difference
from _llm.errors import LLMError

SIF_HEAD = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0"


def part(name: str, version: str, size: int = 1, kind: str = "pypi", place: str = "") -> Component:
    return Component(kind, name, version, name, version, (), size, place)


def test_packages_and_sizes() -> None:
    a = [part("same", "1"), part("gone", "1", 50), part("torch", "2.1", 100),
         part("x", "1", 7, "deb")]
    b = [part("same", "1"), part("new", "3", 5), part("torch", "2.2", 90), part("x", "1", 7)]
    assert difference.package_changes(a, b) == [
        ("Debian", "x", "1", ""), ("Python", "gone", "1", ""), ("Python", "new", "", "3"),
        ("Python", "torch", "2.1", "2.2"), ("Python", "x", "", "1")]
    assert difference.size_changes(a, b)[:2] == [("gone", 50, 0), ("torch", 100, 90)]
    assert difference.package_changes(a, a) == [] == difference.size_changes(a, a)
    # The same package inside another one is another package.
    assert difference.package_changes([part("zipp", "1"), part("zipp", "2", place="v")],
                                      [part("zipp", "1"), part("zipp", "3", place="v")]) == [
        ("Python", "zipp (in v)", "2", "3")]


def test_labels_and_environment() -> None:
    assert difference.changes_of({"a": "1", "b": "2"}, {"a": "1", "c": "3"}) == [
        "b: 2 -> (none)", "c: (none) -> 3"]
    key = "/.singularity.d/env/90-environment.sh"
    assert difference.script_changes({key: "# x\n  export A=1\nexport B=1"},
                                     {key: "# y\nexport A=1\nexport B=2", "/99-base.sh": "z"}) == [
        "- export B=1", "+ export B=2"]


def test_counts() -> None:
    found = [Difference("/a", ("only in A",)), Difference("/b", ("time", "content")),
             Difference("/c", ("time",)), Difference("/d", ("type",)),
             Difference("/e", ("link target", "mode"))]
    assert difference.counts_of(found) == {"only in A": 1, "only in B": 0, "content": 3, "other": 1}


def image(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(SIF_HEAD + name.encode())
    return folder / name


def test_releases_are_paired_by_label(tmp_path: Path) -> None:
    a, b = tmp_path / "release 'a'", tmp_path / "b"
    one = image(a / "images", "llm-cpu-0123456789ab.sif")
    image(a / "images", "base-0123456789ab.sif")
    image(a / "images", ".base.sif")
    other = image(b, "llm-cpu-ba9876543210.sif")
    image(b, "new.sif")
    pairs, only_a, only_b = difference.pair(str(a), str(b))
    assert pairs == [("llm-cpu", str(one), str(other))]
    assert (only_a, only_b) == (["base"], ["new"])
    # A link says which of several builds counts.
    image(b, "llm-cpu-ffffffffffff.sif")
    (b / "llm-cpu.sif").symlink_to(other.name)
    assert images_of_release(str(b))["llm-cpu"] == str(b / "llm-cpu.sif")
    pairs, _, _ = difference.pair(str(one), str(b))
    assert pairs == [("llm-cpu", str(one), str(b / "llm-cpu.sif"))]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    image(a, "one.sif")
    image(b, "two.sif")
    with pytest.raises(LLMError, match="no image in common"):
        difference.pair(str(a), str(b))
    with pytest.raises(LLMError, match="holds no image 'one'"):
        difference.pair(str(a / "one.sif"), str(b))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LLMError, match="holds no images"):
        difference.pair(str(tmp_path / "empty"), str(b))
    with pytest.raises(LLMError, match="there is no image"):
        difference.pair(str(tmp_path / "none.sif"), str(b / "two.sif"))
    with pytest.raises(LLMError, match="two images are needed"):
        difference.main(["", ""])


def test_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = image(tmp_path, "one.sif")
    (tmp_path / "copy.sif").write_bytes(one.read_bytes())
    assert difference.main([str(one), str(tmp_path / "copy.sif")]) == 0
    assert "the same bytes" in capsys.readouterr().out
