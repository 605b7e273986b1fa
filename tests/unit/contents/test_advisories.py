"""Files of OSV advisories, whole and broken."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from _llm.contents.advisories import Advisories, read_advisories
from _llm.errors import LLMError

ALL = frozenset({("PyPI", "torch"), ("Debian:12", "glibc"), ("Debian", "glibc")})


RECORD = {"id": "X-1", "affected": [{"package": {"ecosystem": "PyPI", "name": "Torch"}}]}


def read(tmp_path: Path, data: bytes, name: str = "a file; 'x'.json") -> Advisories:
    (tmp_path / name).write_bytes(data)
    return read_advisories(str(tmp_path / name), ALL)


def test_forms_of_files(tmp_path: Path) -> None:
    record = {**RECORD, "modified": "2026-01-02T03:04:05Z"}
    text = json.dumps(record).encode()
    gone = json.dumps({**record, "withdrawn": "2026-01-01T00:00:00Z"}).encode()
    assert len(read(tmp_path, text).records) == 1
    assert len(read(tmp_path, b"\xef\xbb\xbf[" + text + b"," + text + b"]").records) == 2
    assert len(read(tmp_path, b'{"vulns": [' + text + b"]}").records) == 1
    lines = read(tmp_path, text + b"\n\n" + gone + b"\r\n" + text + b"\n")
    assert (len(lines.records), lines.newest[:10]) == (2, "2026-01-02"), "one was withdrawn"
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("X-1.json", text)
        archive.writestr("README", "nothing")
        archive.writestr("folder/", "")
    assert len(read_advisories(str(tmp_path / "all.zip"), ALL).records) == 1
    folder = tmp_path / "folder"
    (folder / "PyPI").mkdir(parents=True)
    (folder / "PyPI/a.json").write_bytes(text)
    (tmp_path / "all.zip").rename(folder / "b.zip")
    (folder / "notes.txt").write_text("x")
    assert len(read_advisories(str(folder), ALL).records) == 2
    # What is about nothing here is not kept, and counts as read.
    other = {**record, "affected": [{"package": {"ecosystem": "npm", "name": "torch"}}]}
    found = read(tmp_path, json.dumps(other).encode())
    assert (found.records, found.ecosystems) == ([], {"npm"})


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
