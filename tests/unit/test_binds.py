"""Binds: which ones are needed, how Apptainer is told, what is refused."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from _llm.binds import Bind, Binds, belongs_to_image, parse_bind
from _llm.errors import LLMError


def test_arguments_for_ordinary_paths() -> None:
    assert Bind("/a b", "/a b").arguments() == ["--bind", "/a b"]
    assert Bind("/a", "/b").arguments() == ["--bind", "/a:/b"]
    assert Bind("/a", "/a", read_only=True).arguments() == ["--bind", "/a:/a:ro"]


@pytest.mark.parametrize("path", ["/a:b", "/a,b", '/a"b', "/a\\b", '/a,"b":c\\'])
def test_arguments_for_paths_that_bind_cannot_express(path: str) -> None:
    option, value = Bind(path, path, read_only=True).arguments()
    assert option == "--mount"
    assert next(csv.reader([value])) == [
        *("type=bind", f"source={path}", f"destination={path}", "ro")
    ]


def test_what_is_visible_already_is_not_bound_again(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    binds = Binds()
    assert binds.show(str(tmp_path))
    assert binds.show(str(tmp_path / "a" / "b"))
    assert not binds.show(str(tmp_path / "missing"))
    assert binds.arguments() == ["--bind", str(tmp_path)]


def test_a_link_is_visible_under_both_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    binds = Binds()
    binds.show(str(tmp_path / "link"))
    real, link = str(tmp_path / "real"), str(tmp_path / "link")
    assert binds.arguments() == ["--bind", real, "--bind", f"{real}:{link}"]


def test_a_link_below_a_visible_folder_needs_its_target_only(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "link").symlink_to("../real")
    binds = Binds()
    binds.show(str(tmp_path / "home"))
    binds.show(str(tmp_path / "home" / "link"))
    assert [bind.target for bind in binds.binds] == [str(tmp_path / "home"), str(tmp_path / "real")]


def test_the_later_of_two_binds_with_one_target_wins() -> None:
    binds = Binds()
    binds.add(Bind("/a", "/t"))
    binds.add(Bind("/b", "/t"))
    binds.add(Bind("/b", "/t", read_only=True))
    assert binds.arguments() == ["--bind", "/b:/t:ro"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", True),
        ("/etc/ssl", True),
        ("/usr/lib/x/y", True),
        ("/usr/local/bin", True),
        ("/opt", True),
        ("/opt/llama.cpp/bin", True),
        ("/opt/project", False),
        ("/usr/users/me", False),
        ("/home/me", False),
        ("/dev/shm", False),
        ("/etcetera", False),
    ],
)
def test_folders_of_the_image(path: str, expected: bool) -> None:
    assert belongs_to_image(path) is expected


def test_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a:b, c"
    odd.mkdir()
    (tmp_path / "d").mkdir()

    def parsed(text: str) -> list[tuple[str, str, bool]]:
        return [(bind.source, bind.target, bind.read_only) for bind in parse_bind(text)]

    assert parsed(str(odd)) == [(str(odd), str(odd), False)]
    assert parsed(f"{odd}:/x:ro") == [(str(odd), "/x", True)]
    monkeypatch.chdir(tmp_path)
    assert parsed("d:/x") == [(str(tmp_path / "d"), "/x", False)]
    assert parsed("d:ro") == [(str(tmp_path / "d"), str(tmp_path / "d"), True)]
    assert [source for source, _, _ in parsed("d:/x,d:/y")] == [str(tmp_path / "d")] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/no such folder", "there is no file or folder /no such folder on this host"),
        ("/tmp,/no such folder", "there is no file or folder /no such folder on this host"),
        ("/tmp:relative", "'relative' is no absolute path"),
        ("/tmp:/usr/bin", "/usr/bin is a folder of the image itself"),
        ("/tmp:/", "/ is a folder of the image itself"),
        ("/", "/ is a folder of the image itself"),
        (":/x", "there is no file or folder"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(LLMError) as caught:
        parse_bind(text)
    assert message in caught.value.what


def test_covers_looks_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    binds = Binds()
    binds.add(Bind(str(tmp_path), str(tmp_path)))
    assert binds.covers(str(tmp_path / "real"), str(tmp_path / "link"))
    assert not binds.covers("/elsewhere", str(tmp_path / "link"))
