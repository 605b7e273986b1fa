"""Lists of files, with names that look like other lines of the list."""

from __future__ import annotations

import os
from pathlib import Path

from _llm.contents.listing import Entry, list_folder, parse_listing
from _llm.contents.trees import compare, same_time

PREFIX = "0123abcd"


def test_lines() -> None:
    text = f"""\
drwxr-xr-x 0/0                     381 2026-11-22 00:00:00 {PREFIX}
lrwxrwxrwx 0/0                       7 2026-11-22 00:00:01 {PREFIX}/bin -> usr/bin
lrwxrwxrwx 0/0                       1 2026-11-22 00:00:00 {PREFIX}/a -> b -> c
crw-rw-rw- 0/5                  1,   3 2026-11-22 00:00:00 {PREFIX}/dev/null
-rwsr-xr-x 1000/100            1234567 2026-11-22 00:00 {PREFIX}/with space
""".encode()
    found = parse_listing(text, PREFIX)
    assert found["/"] == Entry("d", "rwxr-xr-x", 0, 0, 0, "2026-11-22 00:00:00", "")
    assert found["/bin"].target == "usr/bin"
    assert found["/a -> b"].target == "c"
    assert found["/dev/null"].target == "1,3" and found["/dev/null"].group == 5
    assert found["/with space"] == Entry("-", "rwsr-xr-x", 1000, 100, 1234567,
                                         "2026-11-22 00:00", "")


def test_a_name_with_line_breaks_invents_no_file() -> None:
    fake = "-rw-r--r-- 0/0 5 2026-11-22 00:00:00 squashfs-root/etc/shadow"
    text = (f"drwxr-xr-x 0/0 3 2026-11-22 00:00:00 {PREFIX}\n"
            f"-rw-r--r-- 0/0 1 2026-11-22 00:00:00 {PREFIX}/x\n{fake}\n"
            f"-rw-r--r-- 0/0 2 2026-11-22 00:00:00 {PREFIX}/y\n").encode()
    assert set(parse_listing(text, PREFIX)) == {"/", f"/x\n{fake}", "/y"}


def test_bytes_that_are_no_text() -> None:
    text = b"-rw-r--r-- 0/0 1 2026-11-22 00:00:00 " + PREFIX.encode() + b"/\xff\n"
    assert list(parse_listing(text, PREFIX)) == [os.fsdecode(b"/\xff")]
    assert parse_listing(b"", PREFIX) == {}
    assert parse_listing(b"rubbish\n\0\n", PREFIX) == {}


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_bytes(b"123")
    (tmp_path / "l").symlink_to("a")
    os.utime(tmp_path / "a/f", (0, 0))
    found = list_folder(str(tmp_path))
    assert set(found) == {"/", "/a", "/a/f", "/l"}
    assert (found["/a/f"].size, found["/a/f"].time) == (3, "1970-01-01 00:00:00")
    assert (found["/l"].type, found["/l"].target) == ("l", "a")


def test_reasons() -> None:
    file = Entry("-", "rw-r--r--", 0, 0, 5, "2026-11-22 00:00:00", "")
    assert compare(file, file) == ()
    assert compare(file, None) == ("only in A",)
    assert compare(None, file) == ("only in B",)
    assert compare(file, file._replace(type="d")) == ("type",)
    assert compare(file, file._replace(size=6, mode="rwxr-xr-x", user=1,
                                       time="2026-11-22 00:00:01")) == (
        "content", "time", "mode", "owner")
    link = file._replace(type="l", target="a")
    assert compare(link, link._replace(target="b")) == ("link target",)
    device = file._replace(type="c", target="1,3")
    assert compare(device, device._replace(target="1,5")) == ("content",)
    assert same_time("2026-11-22 00:00", "2026-11-22 00:00:59")
    assert not same_time("2026-11-22 00:00:01", "2026-11-22 00:00:00")
