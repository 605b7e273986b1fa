"""What an exported PGP public key says of itself: fingerprint, owner, when it expires.

Format: https://www.rfc-editor.org/rfc/rfc4880 (packets: 4.2; keys: 5.5; self-signatures: 5.2).
Nothing is verified here: that is Apptainer's part. What is read is how long it may be remembered
that it did.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator

PUBLIC_KEY, SIGNATURE, USER_ID, SECRET_KEY = 6, 2, 13, 5
# Types of a key's signatures on itself: certifications of a name, and on the key alone.
SELF = (0x10, 0x11, 0x12, 0x13, 0x1F)
CREATED, KEY_EXPIRES = 2, 9


class PublicKey:
    """A primary key. expires: in seconds since 1970, None for never."""

    __slots__ = ("_newest", "created", "expires", "fingerprint", "name")

    def __init__(self, fingerprint: str, created: int) -> None:
        self.fingerprint = fingerprint
        self.created = created
        self.name = ""
        self.expires: float | None = None
        self._newest = -1

    def read_signature(self, body: bytes) -> None:
        """Take over when the key expires from the newest of its signatures on itself."""
        if body[0] != 4 or body[1] not in SELF:
            return
        made, valid = 0, 0
        hashed = body[6 : 6 + int.from_bytes(body[4:6], "big")]
        for kind, value in _subpackets(hashed):
            if kind == CREATED:
                made = int.from_bytes(value, "big")
            elif kind == KEY_EXPIRES:
                valid = int.from_bytes(value, "big")
        if made >= self._newest:
            self._newest = made
            self.expires = float(self.created + valid) if valid else None


def read_keys(data: bytes) -> list[PublicKey]:
    """Return the primary keys of an exported file, armoured or not. Raises ValueError."""
    found: list[PublicKey] = []
    try:
        for tag, body in packets(_without_armour(data)):
            if tag == SECRET_KEY:
                raise ValueError("it is a private key; the public one is needed")
            if tag == PUBLIC_KEY:
                if body[0] != 4:
                    raise ValueError(f"it is a PGP key of version {body[0]}, which is not read")
                framed = b"\x99" + len(body).to_bytes(2, "big") + body
                number = hashlib.sha1(framed, usedforsecurity=False).hexdigest().upper()
                found.append(PublicKey(number, int.from_bytes(body[1:5], "big")))
            elif found and tag == USER_ID:
                found[-1].name = found[-1].name or body.decode(errors="replace")
            elif found and tag == SIGNATURE:
                found[-1].read_signature(body)
    except (IndexError, binascii.Error):
        raise ValueError("it is neither a PEM file nor an exported PGP key, or cut off") from None
    if not found:
        raise ValueError("it is neither a PEM file nor an exported PGP key")
    return found


def _without_armour(data: bytes) -> bytes:
    begin = data.find(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")
    if begin < 0:
        return data
    lines = data[begin:].replace(b"\r\n", b"\n").split(b"\n")[1:]
    body = lines[lines.index(b"") + 1 :] if b"" in lines else []
    text: list[bytes] = []
    for line in body:
        if line.startswith((b"=", b"-----END")):  # the checksum, or the end
            return base64.b64decode(b"".join(text), validate=True)
        text.append(line.strip())
    raise IndexError("no end")


def packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give tag and body of each packet. Raises IndexError where they make no sense."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise IndexError("no packet")
        at += 1
        if head & 0x40:
            tag = head & 0x3F
            length, at = _new_length(data, at)
        else:
            tag, size = head >> 2 & 0xF, 1 << (head & 3)
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
            if head & 3 == 3:
                raise IndexError("a length that is not told")
        if at + length > len(data):
            raise IndexError("cut off")
        yield tag, data[at : at + length]
        at += length


def _subpackets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        length, at = _new_length(data, at)
        yield data[at] & 0x7F, data[at + 1 : at + length]
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """Return the length that stands at `at`, and where what it counts begins."""
    first = data[at]
    if first < 192:
        return first, at + 1
    if first < 224:
        return (first - 192 << 8) + data[at + 1] + 192, at + 2
    if first == 255:
        return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    # RFC 4880, 4.2.2.4: partial lengths are for data, which no exported key has. In a subpacket
    # this would be a length of two bytes, which no self-signature needs either.
    raise IndexError("a length in parts")
