"""The profile reader against Python's own, and what it says of files that are wrong."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from _llm.ini import read_profile

REPOSITORY = Path(__file__).resolve().parents[2]
EVERY_FORM = """\
# comment
[one]
key = value
Upper = a = b ; not a comment
empty =
list =
    first
    ; a comment
    second item

[two]
key=ü  #not a comment
other   =   spaces
  continued
"""


@pytest.mark.parametrize(
    "text", [EVERY_FORM, *(p.read_text("utf-8") for p in REPOSITORY.glob("sites/*.ini"))]
)
def test_reads_what_configparser_reads(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.ini"
    path.write_text(text, encoding="utf-8")
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    profile = read_profile(str(path))
    assert not profile.faults
    expected = {(s, k): v.lstrip("\n") for s in parser.sections() for k, v in parser.items(s)}
    assert {(e.section, e.key): e.value for e in profile.entries} == expected


def test_knows_the_line_of_everything(tmp_path: Path) -> None:
    path = tmp_path / "site.ini"
    path.write_text("\n[one]\n\na = 1\nlist =\n  x\n[two]\nb = 2\n", encoding="utf-8")
    profile = read_profile(str(path))
    assert profile.sections == {"one": 2, "two": 7}
    assert [(e.key, e.line) for e in profile.entries] == [("a", 4), ("list", 5), ("b", 8)]


def test_names_every_fault_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "site.ini"
    path.write_text("early = 1\n[one\n[one]\nword\na = 1\na = 2\n[one]\n", encoding="utf-8")
    faults = dict(read_profile(str(path)).faults)
    assert sorted(faults) == [1, 2, 4, 6, 7]
    assert "before the first [section]" in faults[1]
    assert "no section heading" in faults[2]
    assert "no 'key = value'" in faults[4]
    assert "already set on line 5" in faults[6]
    assert "already opened on line 3" in faults[7]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "site.ini"
    path.write_bytes(b"\xef\xbb\xbf[one]\r\na = 1\r\n")
    assert [(e.section, e.key, e.value) for e in read_profile(str(path)).entries] == [
        ("one", "a", "1")
    ]
