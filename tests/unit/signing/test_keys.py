"""Public keys as files: PEM, certificates, PGP; and files that are none."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.signing import openpgp
from _llm.signing.keys import CERTIFICATE, PEM, PGP, Key, day, has_expired, load_keys, read_keys

KEYS = Path(__file__).resolve().parent / "keys"
# As `ssh-keygen -lf` printed them, and `gpg --list-keys`.
ED25519 = "SHA256:E/bmywe2h5hQH+KRRvc2/QHCJ7Zl6TYxNZfWVnAzyMY"
EC = "SHA256:FpdUVdMOlq/JL1zwzL/t8Z0tlfuX3OXN+m4nppgErek"
RSA = "SHA256:4kwx3sC5jfik50f8J6Jn4k/0nEzwPyLJd/aDXNdIPFA"
ONCE = "57611CD8E08DAFA6D53AB5A04EF38F18E14E9703"
SITE = "B899DF0FB62574380550EB8D8AAA7A06E75A19C2"


def one(name: str) -> Key:
    [key] = read_keys(str(KEYS / name))
    return key


@pytest.mark.parametrize(
    ("name", "kind", "fingerprint", "owner", "end"),
    [
        ("ed25519.pub", PEM, ED25519, "", ""),
        ("ec.pub", PEM, EC, "", ""),
        ("rsa.pub", PEM, RSA, "", ""),
        ("valid.crt", CERTIFICATE, RSA, "Cluster Images", "2120-01-01 00:00:00 UTC"),
        ("expired.crt", CERTIFICATE, RSA, "Long Ago", "2012-01-01 00:00:00 UTC"),
        ("once.asc", PGP, ONCE, "Once Valid <once@example.org>", "2020-12-31 00:00:00 UTC"),
        ("once-renewed.asc", PGP, ONCE, "Once Valid <once@example.org>", "2097-01-01 00:00:00 UTC"),
        ("site.asc", PGP, SITE, "Site Images <site@example.org>", ""),
    ],
)
def test_what_a_key_is(name: str, kind: str, fingerprint: str, owner: str, end: str) -> None:
    key = one(name)
    assert (key.kind, key.fingerprint, key.name) == (kind, fingerprint, owner)
    assert (day(key.expires) if key.expires is not None else "") == end


def test_the_end_of_a_key() -> None:
    assert has_expired(one("once.asc")) and has_expired(one("expired.crt"))
    assert not has_expired(one("valid.crt")) and not has_expired(one("site.asc"))
    end = one("once.asc").expires
    assert end is not None
    assert has_expired(one("once.asc"), end) and not has_expired(one("once.asc"), end - 1)


def test_a_file_with_two_pgp_keys_and_without_armour(tmp_path: Path) -> None:
    binary = b""
    for name in ("once.asc", "site.asc"):
        lines = (KEYS / name).read_text().split("\n\n")[1].splitlines()
        body = [line for line in lines if not line.startswith(("=", "-"))]
        binary += base64.b64decode("".join(body))
    both = tmp_path / "both keys"
    both.write_bytes(binary)
    found = read_keys(str(both))
    assert [key.fingerprint for key in found] == [ONCE, SITE]
    assert has_expired(found[0]) and not has_expired(found[1])


def test_a_file_with_line_ends_of_another_system(tmp_path: Path) -> None:
    for name in ("site.asc", "ed25519.pub", "valid.crt"):
        file = tmp_path / name
        file.write_bytes((KEYS / name).read_bytes().replace(b"\n", b"\r\n"))
        [key] = read_keys(str(file))
        assert key.fingerprint == one(name).fingerprint


@pytest.mark.parametrize("name", ["ed25519.pem", "rsa.pem", "ec.pem", "site.secret.asc"])
def test_a_private_key_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="private key"):
        read_keys(str(KEYS / name))


@pytest.mark.parametrize("name", ["ed25519.pub", "rsa.pub", "valid.crt", "site.asc", "once.asc"])
def test_damaged_keys_never_fail_in_another_way(name: str, tmp_path: Path) -> None:
    data = (KEYS / name).read_bytes()
    file = tmp_path / "key"
    for cut in range(0, len(data), 7):
        file.write_bytes(data[:cut])
        try:
            keys = read_keys(str(file))
        except ValueError:
            continue
        assert [key.fingerprint for key in keys] == [one(name).fingerprint]
    for at in range(30, len(data), 11):
        changed = bytearray(data)
        changed[at] ^= 1
        file.write_bytes(changed)
        try:
            read_keys(str(file))
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither a PEM file nor"),
        (b"\xff" * 50, "cut off"),
        (b"hello\n", "neither a PEM file nor"),
        (b"-----BEGIN RSA PUBLIC KEY-----\nAAAA\n", "'RSA PUBLIC KEY' is no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA", "damaged"),
        (b"-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----", "damaged"),
        (b"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----", "damaged"),
        (b"x" * ((1 << 20) + 1), "too large"),
    ],
)
def test_what_is_no_key(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_keys(str(file))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    names = [str(KEYS / "rsa.pem"), str(KEYS / "rsa.pub"), str(tmp_path / "nosuch")]
    with pytest.raises(LLMError, match="2 public keys cannot be used") as caught:
        load_keys(names)
    assert "rsa.pem: it is a private key" in caught.value.why
    assert "nosuch: No such file" in caught.value.why


def test_keys_of_other_versions() -> None:
    with pytest.raises(ValueError, match="version 6"):
        openpgp.read_keys(bytes([0xC6, 10, 6]) + bytes(9))


def test_lengths_of_packets_in_the_old_and_the_new_form() -> None:
    body = bytes([4]) + (1577836800).to_bytes(4, "big") + bytes(300)
    size = len(body)
    new = bytes([0xC6, 192 + (size - 192 >> 8), (size - 192) & 0xFF]) + body
    long = bytes([0xC6, 255]) + size.to_bytes(4, "big") + body
    old = bytes([0x99]) + size.to_bytes(2, "big") + body
    found = {openpgp.read_keys(data)[0].fingerprint for data in (new, long, old)}
    assert len(found) == 1
