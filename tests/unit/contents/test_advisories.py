"""OSV advisories: which versions they are about, and files that are broken."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from _llm.contents.advisories import Advisories, find_affected, in_range, keys_of, read_advisories
from _llm.contents.software import Component
from _llm.contents.versions import debian_key, python_key
from _llm.errors import LLMError

ALL = frozenset({("PyPI", "torch"), ("Debian:12", "glibc"), ("Debian", "glibc")})


def package(kind: str = "pypi", name: str = "Torch", version: str = "2.13.0+cpu") -> Component:
    source = "glibc" if kind == "deb" else name
    return Component(kind, name, version, source, version, (), 0, "")


def advisory(ranges: Any = (), versions: Any = (), **more: Any) -> dict[str, Any]:
    entry = {"package": {"ecosystem": "PyPI", "name": "torch"}, "versions": list(versions),
             "ranges": [{"type": "ECOSYSTEM", "events": list(events)} for events in ranges]}
    return {"id": "X-1", "affected": [entry], **more}


def found(record: dict[str, Any], component: Component | None = None) -> list[Any]:
    read = Advisories([("here", record)], "", 0)
    return find_affected([component or package()], read, "12")


@pytest.mark.parametrize("events, version, expected", [
    ([{"introduced": "0"}], "0.0.dev1", True),
    ([{"introduced": "1"}, {"fixed": "2"}], "1", True),
    ([{"introduced": "1"}, {"fixed": "2"}], "2", False),
    ([{"introduced": "1"}, {"fixed": "2"}], "2rc1", True),
    ([{"introduced": "1"}, {"fixed": "2"}], "0.9", False),
    ([{"introduced": "1"}, {"last_affected": "2"}], "2", True),
    ([{"introduced": "1"}, {"last_affected": "2"}], "2.0.1", False),
    # Events in any order, several ranges in one.
    ([{"fixed": "4"}, {"introduced": "3"}, {"fixed": "2"}, {"introduced": "0"}], "2.5", False),
    ([{"fixed": "4"}, {"introduced": "3"}, {"fixed": "2"}, {"introduced": "0"}], "3.5", True),
    ([{"introduced": "2", "fixed": "3"}], "2.1", True),
    ([], "1", False),
])
def test_ranges(events: list[dict[str, str]], version: str, expected: bool) -> None:
    assert in_range(version, events, python_key) is expected


def test_debian_ranges() -> None:
    events = [{"introduced": "0"}, {"fixed": "2.36-9+deb12u11"}]
    assert in_range("2.36-9+deb12u9", events, debian_key)
    assert not in_range("2.36-9+deb12u11", events, debian_key)
    assert not in_range("1:1", events, debian_key)


def test_findings() -> None:
    hit, = found(advisory([[{"introduced": "0"}, {"fixed": "2.14"}]], aliases=["CVE-1"],
                          database_specific={"severity": "HIGH"}, summary="s"))
    assert (hit.names, hit.fixed, hit.severity) == (("X-1", "CVE-1"), "2.14", "HIGH")
    assert found(advisory([[{"introduced": "0"}, {"fixed": "2.13.0"}]])) == []
    # The local part of a version is no reason to be outside.
    assert found(advisory([[{"introduced": "0"}, {"last_affected": "2.13"}]]))
    assert found(advisory(versions=["2.13"]))
    assert found(advisory(versions=["2.12"])) == []
    assert found(advisory([[{"introduced": "0"}]]), package(name="torchvision")) == []
    git = advisory([[{"introduced": "0"}]])
    git["affected"][0]["ranges"][0]["type"] = "GIT"
    assert found(git) == []


def test_versions_that_cannot_be_compared_count_as_affected() -> None:
    hit, = found(advisory([[{"introduced": "0"}, {"fixed": "no version"}]]))
    assert hit.undecided
    hit, = found(advisory([[{"introduced": "0"}]]), package(version="local build"))
    assert hit.undecided


def test_the_same_fault_by_two_names_is_one() -> None:
    one = advisory([[{"introduced": "0"}, {"fixed": "3"}]], aliases=["CVE-1"])
    other = advisory([[{"introduced": "0"}]], aliases=["CVE-1"]) | {"id": "Y-2"}
    third = advisory([[{"introduced": "0"}]]) | {"id": "Z-3"}
    read = Advisories([("", one), ("", other), ("", third)], "", 0)
    names = [f.names for f in find_affected([package()], read, "")]
    assert names == [("X-1", "CVE-1", "Y-2"), ("Z-3",)]


def test_debian_goes_by_source_package_and_release() -> None:
    libc = package("deb", "libc6", "2.36-9+deb12u14")
    record = advisory([[{"introduced": "0"}]])
    record["affected"][0]["package"] = {"ecosystem": "Debian:12", "name": "glibc"}
    assert found(record, libc)
    record["affected"][0]["package"]["ecosystem"] = "Debian:13"
    assert found(record, libc) == []
    record["affected"][0]["package"]["ecosystem"] = "Debian"
    assert found(record, libc)
    assert keys_of(package("generic", "llama.cpp"), "12") == []


def read(tmp_path: Path, data: bytes, name: str = "a file; 'x'.json") -> Advisories:
    (tmp_path / name).write_bytes(data)
    return read_advisories(str(tmp_path / name), ALL)


def test_forms_of_files(tmp_path: Path) -> None:
    record = advisory([[{"introduced": "0"}]], modified="2026-01-02T03:04:05Z")
    text = json.dumps(record).encode()
    gone = json.dumps({**record, "withdrawn": "2026-01-01T00:00:00Z"}).encode()
    assert len(read(tmp_path, text).records) == 1
    assert len(read(tmp_path, b"\xef\xbb\xbf[" + text + b"," + text + b"]").records) == 2
    assert len(read(tmp_path, b'{"vulns": [' + text + b"]}").records) == 1
    lines = read(tmp_path, text + b"\n\n" + gone + b"\r\n" + text + b"\n")
    assert (len(lines.records), lines.withdrawn, lines.newest[:10]) == (2, 1, "2026-01-02")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("X-1.json", text)
        archive.writestr("README", "nothing")
        archive.writestr("folder/", "")
    assert len(read_advisories(str(tmp_path / "all.zip"), ALL).records) == 1
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.json").write_bytes(text)
    (tmp_path / "all.zip").rename(folder / "b.zip")
    (folder / "notes.txt").write_text("x")
    assert len(read_advisories(str(folder), ALL).records) == 2
    # What is about nothing here is not kept, and counts as read.
    other = {**record, "affected": [{"package": {"ecosystem": "npm", "name": "torch"}}]}
    assert read(tmp_path, json.dumps(other).encode()).records == []


@pytest.mark.parametrize("data, words", [
    (b"", "Expecting value"), (b"{", "a file"), (b"\xff\xfe{}", "no UTF-8"),
    (b"[]", "no advisories"),
    (b"42", "no JSON object"), (b'{"id": ""}', "no id"), (b'{"affected": []}', "no id"),
    (b'[{"id": "A"}, {"id": 3}]', "record 2"), (b'{"id": "A"}\n{"id": "B"\n', "line 2"),
    (b'{"id": "A", "affected": {}}', "A: 'affected' is no list"),
    (b'{"id": "A", "aliases": "CVE"}', "'aliases' is no list"),
    (b'{"id": "A", "affected": [3]}', "no object"),
    (b'{"id": "A", "affected": [{"package": {"name": "x"}}]}', "no name and ecosystem"),
    (b'{"id": "A", "affected": [{"ranges": [{}]}]}', "no list of events"),
    (b'{"id": "A", "affected": [{"ranges": [{"events": [{"fixed": 3}]}]}]}', "no object of texts"),
    (b'{"id": "A", "affected": [{"versions": [1]}]}', "'versions'"),
    (b"[" * 100_000, "a file"), (b"PK\x03\x04 cut off", "cannot be read"),
])
def test_malformed_files(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(LLMError) as caught:
        read(tmp_path, data)
    assert words in str(caught.value)


def test_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(LLMError) as caught:
        read(tmp_path, json.dumps([{"id": 1}, {"id": "ok"}, 7] + [3] * 50).encode())
    assert "record 1" in caught.value.why and "record 3" in caught.value.why
    assert caught.value.why.endswith("… and more")


def test_a_broken_member_of_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("good.json", '{"id": "A"}')
        archive.writestr("bad.json", "{")
    with pytest.raises(LLMError, match="no file of advisories") as caught:
        read_advisories(str(tmp_path / "z.zip"), ALL)
    assert "bad.json" in caught.value.why and "good.json" not in caught.value.why


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="cannot be read"):
        read_advisories(str(tmp_path / "none"), ALL)
