"""The pack step's own parts: order of files, id and dates of a SIF."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from _llm.images.pack import fix_header, metadata, sif_id, sort_file, squashfs_arguments
from _llm.sif import DESCRIPTOR, HEADER, read_objects

DIGEST = "0123456789abcdef" * 4


def test_files_that_are_read_first_are_packed_first() -> None:
    order = "/usr/lib/a.py\n/opt/with space.py\nrelative\n/usr/lib/back\\slash\n/usr/lib/b.py\n"
    assert sort_file(order) == "usr/lib/a.py 32767\nusr/lib/b.py 32766\n"
    many = sort_file("".join(f"/f{number}\n" for number in range(40_000))).splitlines()
    assert len(many) == 32767 and many[-1] == "f32766 1"


def test_every_time_and_owner_is_fixed(tmp_path: Path) -> None:
    words = squashfs_arguments(tmp_path, tmp_path, 86400)
    assert words[words.index("-all-time") + 1] == words[words.index("-mkfs-time") + 1] == "86400"
    assert {"-all-root", "-no-xattrs", "-noappend"} <= set(words) and "-sort" not in words


def test_an_id_follows_from_the_inputs_and_says_that_it_is_no_random_one() -> None:
    found = sif_id(DIGEST)
    assert found == sif_id(DIGEST) != sif_id("f" * 64)
    assert found[6] >> 4 == 8 and found[8] >> 6 == 0b10 and len(found) == 16


def test_id_dates_and_user_of_a_sif_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    data = b"the data"
    head = HEADER.pack(b"", b"SIF_MAGIC", b"01", b"02", b"i" * 16, 111, 222, 1, 2, 128,
                       2 * DESCRIPTOR.size, 2000, len(data))
    one = DESCRIPTOR.pack(0x4001, True, 1, 0xF0000001, 0, 2000, len(data), len(data), 333, 444,
                          1000, 1000, b"definition", b"")
    file = tmp_path / "a.sif"
    file.write_bytes((head + one + bytes(DESCRIPTOR.size)).ljust(2000, b"\0") + data)
    before = file.read_bytes()
    fix_header(file, DIGEST, 86400)
    after = file.read_bytes()
    assert after[:31] == b"#!/usr/bin/env run-singularity\n" and after[48:64] == sif_id(DIGEST)
    assert struct.unpack_from("<qq", after, 64) == (86400, 86400)
    fields = DESCRIPTOR.unpack_from(after, 128)
    assert fields[8:12] == (86400, 86400, 0, 0) and fields[12].rstrip(b"\0") == b"definition"
    assert after[2000:] == data and len(after) == len(before)
    changed = [n for n, (a, b) in enumerate(zip(before, after)) if a != b]
    assert max(changed) < 128 + DESCRIPTOR.size
    assert [item.name for item in read_objects(str(file))] == ["definition"]


def test_what_inspect_shows_is_that_of_the_tree(tmp_path: Path) -> None:
    folder = tmp_path / ".singularity.d"
    (folder / "env").mkdir(parents=True)
    (folder / "labels.json").write_text('{"b": "2", "a": "1"}')
    (folder / "env/90-environment.sh").write_text("#!/bin/sh\nexport A=1\n")
    (folder / "env/10-docker.sh").write_text("not shown")
    (folder / "runscript").write_bytes(b"#!/bin/sh\nexec \xff\n")
    shown = json.loads(metadata(tmp_path, "Bootstrap: x\n"))["data"]["attributes"]
    assert shown["labels"] == {"a": "1", "b": "2"} and shown["deffile"] == "Bootstrap: x\n"
    assert list(shown["environment"]) == ["/.singularity.d/env/90-environment.sh"]
    assert shown["runscript"].startswith("#!/bin/sh\nexec ") and "test" not in shown


@pytest.mark.parametrize("digest", ["", "xyz"])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        sif_id(digest)
