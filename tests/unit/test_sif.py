"""Image files as they are read: objects, digests, signatures; whole, changed, hostile."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest

from _llm import sif
from _llm.sif import DamagedError, payload_digest, read_object, read_objects
from _llm.signing.keys import PEM, PGP, day
from _llm.signing.sign import covers
from _llm.signing.signatures import read_signatures

GROUP = 0xF0000001
Part = tuple[int, bytes, bytes, int]  # type, content, what its descriptor has behind the name, date


def make(path: Path, parts: list[Part], identity: bytes = b"", sizes: int = 0) -> Path:
    """Write a SIF of these objects. sizes: is added to what each descriptor says of its size."""
    begin = sif.HEADER.size
    data = begin + sif.DESCRIPTOR.size * (len(parts) + 1)
    head = sif.HEADER.pack(b"#!/usr/bin/env run-singularity\n", b"SIF_MAGIC", b"01", b"02",
                           identity, 7, 8, 1, len(parts) + 1, begin, 0, data, 0)  # fmt: skip
    table, contents = b"", b""
    for number, (kind, content, extra, created) in enumerate(parts, start=1):
        place = data + len(contents)
        group = 0 if kind == sif.SIGNATURE else GROUP
        table += sif.DESCRIPTOR.pack(kind, True, number, group, 0, place, len(content) + sizes, 0,
                                     created, 0, 0, 0, b"part", extra)  # fmt: skip
        contents += content
    table += sif.DESCRIPTOR.pack(0, False, 9, 0, 0, 1 << 60, 1, 1, 0, 0, 0, 0, b"", b"")
    path.write_bytes(head + table + contents)
    return path


PARTS: list[Part] = [
    (sif.DEFINITION, b"definition", b"", 1),
    (sif.JSON, b"{}", b"", 1),
    (sif.PARTITION, b"squashfs" * 1000, b"", 1),
]


def envelope(message: object, keyid: object = "SHA256:abc") -> bytes:
    payload = base64.b64encode(json.dumps(message).encode()).decode()
    signatures = [{"keyid": keyid, "sig": ""}]
    return json.dumps({"payload": payload, "signatures": signatures}).encode()


def test_objects(tmp_path: Path) -> None:
    path = str(make(tmp_path / "a.sif", PARTS))
    found = read_objects(path)
    assert [(item.id, item.type, item.name) for item in found] == [
        (1, sif.DEFINITION, "part"), (2, sif.JSON, "part"), (3, sif.PARTITION, "part"),
    ]  # fmt: skip
    assert [read_object(path, item) for item in found] == [part[1] for part in PARTS]


def test_the_digest_is_of_what_an_image_holds(tmp_path: Path) -> None:
    digest = payload_digest(str(make(tmp_path / "a.sif", PARTS)))
    assert digest.startswith("sha256:") and len(digest) == 71
    dated: list[Part] = [(kind, content, extra, 99) for kind, content, extra, _ in PARTS]
    signed = [*dated, (sif.SIGNATURE, b"{}", b"", 5)]
    assert payload_digest(str(make(tmp_path / "b.sif", signed, b"another id"))) == digest
    for number in range(3):
        kind, content, extra, date = PARTS[number]
        changed = [*PARTS]
        changed[number] = (kind, b"x" + content[1:], extra, date)
        assert payload_digest(str(make(tmp_path / "c.sif", changed))) != digest
    assert payload_digest(str(make(tmp_path / "c.sif", PARTS[:2]))) != digest
    assert payload_digest(str(make(tmp_path / "c.sif", PARTS[::-1]))) != digest


def test_the_digest_of_a_bare_squashfs(tmp_path: Path) -> None:
    path = tmp_path / "x.sqsh"
    path.write_bytes(b"hsqs" + bytes(5000))
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    told: list[tuple[int, int]] = []
    assert payload_digest(str(path), lambda *now: told.append(now)) == f"sha256:{whole}"
    assert told == [(5004, 5004)]


@pytest.mark.parametrize("size", [-(1 << 40), 1 << 40, 1 << 62])
def test_sizes_that_make_no_sense(tmp_path: Path, size: int) -> None:
    path = make(tmp_path / "a.sif", PARTS, sizes=size)
    with pytest.raises(DamagedError):
        payload_digest(str(path))


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sif", PARTS)
    data = path.read_bytes()
    for length in [*range(41, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(DamagedError):
            read_objects(str(path))


def test_signatures_as_they_describe_themselves(tmp_path: Path) -> None:
    clear = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{}\n"
    clear += b"-----BEGIN PGP SIGNATURE-----\n\n=\n-----END PGP SIGNATURE-----\n"
    parts: list[Part] = [
        *PARTS,
        (sif.SIGNATURE, envelope({"a": 1}), b"", 1577836800),
        (sif.SIGNATURE, clear, b"\1\0\0\0" + bytes(range(20)), 2),
        (sif.SIGNATURE, b"\xff\0", b"", 3),
        (sif.SIGNATURE, b"", b"", 4),
        (sif.SIGNATURE, b'{"signatures": [], "payload": ""}', b"", 1 << 62),
        (sif.SIGNATURE, b"[" * 100000, b"", -5),
        (sif.SIGNATURE, envelope(0, "\x1b[2J\nevil"), b"", 4),
        (sif.SIGNATURE, envelope(0, {"a": [1]}), b"", 4),
    ]
    found = read_signatures(str(make(tmp_path / "a.sif", parts)))
    pem, pgp, *others = found
    assert (pem.kind, pem.signer, pem.message) == (PEM, "SHA256:abc", b'{"a": 1}')
    assert day(pem.created) == "2020-01-01 00:00:00 UTC"
    assert (pgp.kind, pgp.signer, pgp.message) == (PGP, bytes(range(20)).hex().upper(), b"{}")
    assert [item.kind for item in others] == ["", "", "", "", PEM, PEM]
    assert others[4].signer == "[2Jevil"
    assert day(others[2].created) == "an impossible day"


def test_what_a_signature_covers(tmp_path: Path) -> None:
    path = str(make(tmp_path / "a.sif", PARTS))
    digests = ["sha256:" + hashlib.sha256(content).hexdigest() for _, content, _, _ in PARTS]

    def message(named: list[str]) -> bytes:
        return json.dumps({"objects": [{"objectDigest": digest} for digest in named]}).encode()

    assert covers(message(digests), path)
    assert not covers(message(digests[:2]), path)
    assert not covers(message([*digests, digests[0]]), path)
    assert not covers(message(digests[::-1]), path)
    for other in (b"", b"[]", b'{"objects": 5}', b'{"objects": [5, 6, 7]}'):
        assert not covers(other, path)
