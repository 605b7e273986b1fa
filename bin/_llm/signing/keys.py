"""Public keys that signatures are checked with: PEM files, X.509 certificates, exported PGP keys.

    make verify IMAGE=base KEY=site.pub

A key is told by its fingerprint: of a PEM key or certificate that of OpenSSH, SHA256:..., which
Apptainer writes into its signatures and `ssh-keygen -lf` prints; of a PGP key the 40 digits that
`apptainer key list` prints.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from _llm.errors import LLMError
from _llm.signing import openpgp

PEM, CERTIFICATE, PGP = "public key", "certificate", "PGP key"
MOST_BYTES = 1 << 20
# Contents of object identifiers (X.690): RFC 8410, RFC 3279, RFC 5480; names of RFC 5656, RFC 8709.
ED25519 = bytes.fromhex("2b6570")
RSA = bytes.fromhex("2a864886f70d010101")
ELLIPTIC = bytes.fromhex("2a8648ce3d0201")
CURVES = {
    bytes.fromhex("2a8648ce3d030107"): b"nistp256",
    bytes.fromhex("2b81040022"): b"nistp384",
    bytes.fromhex("2b81040023"): b"nistp521",
}
COMMON_NAME = bytes.fromhex("550403")


@dataclass(frozen=True)
class Key:
    """One public key.

    kind: PEM, CERTIFICATE or PGP. path: of its file, which may hold other PGP keys too.
    fingerprint: as signatures name it, of a PGP key in capitals. name: of its owner, "" where it
    has none. expires: in seconds since 1970, None for never.
    """

    kind: str
    path: str
    fingerprint: str
    name: str
    expires: float | None


def load_keys(paths: Iterable[str]) -> list[Key]:
    """Return the keys in some files. Raises LLMError that names all that are none."""
    found: list[Key] = []
    faults = []
    for path in paths:
        try:
            found += read_keys(path)
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            faults.append(f"{path}: {reason}")
    if faults:
        raise LLMError(
            "a public key cannot be used" if len(faults) == 1 else f"{len(faults)} public keys "
            "cannot be used",
            "\n       ".join(faults),
            "name PEM files with a public key or a certificate, or PGP keys as `apptainer key "
            "export` writes them",
        )
    return found


def read_keys(path: str) -> list[Key]:
    """Return the keys in a file. Raises ValueError with the reason why it has none, or OSError."""
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError("it is too large for a key")
    if b"PRIVATE KEY" in data:
        raise ValueError("it is a private key; the public one is needed, and this one is to be "
                         "kept secret")
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            return [_certificate(path, pem_body(data, "CERTIFICATE"))]
        if b"-----BEGIN PUBLIC KEY-----" in data:
            fingerprint = ssh_fingerprint(pem_body(data, "PUBLIC KEY"))
            return [Key(PEM, path, fingerprint, "", None)]
    except (IndexError, KeyError, ValueError):
        raise ValueError("it is damaged, or of a kind other than RSA, ECDSA or Ed25519") from None
    if b"-----BEGIN" in data and b"PGP PUBLIC KEY" not in data:
        kind = data.partition(b"-----BEGIN ")[2].partition(b"-----")[0].decode(errors="replace")
        raise ValueError(f"'{kind}' is no public key that can be used")
    return [Key(PGP, path, key.fingerprint, printable(key.name), key.expires)
            for key in openpgp.read_keys(data)]


def has_expired(key: Key, now: float | None = None) -> bool:
    """Say whether a key may not be believed any more."""
    return key.expires is not None and key.expires <= (time.time() if now is None else now)


def day(seconds: float) -> str:
    """Return a time as 2026-11-28 01:05:00 UTC."""
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return "an impossible day"
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def printable(text: str) -> str:
    """Return a name without what would move the cursor or break the line of a message."""
    return "".join(character for character in text if character.isprintable())[:200]


def pem_body(data: bytes, label: str) -> bytes:
    """Return what the first PEM block of this label holds (RFC 7468)."""
    begin = f"-----BEGIN {label}-----".encode()
    end = f"-----END {label}-----".encode()
    text = data.partition(begin)[2].partition(end)
    if not text[1]:
        raise IndexError("cut off")
    return base64.b64decode(b"".join(text[0].split()), validate=True)


def ssh_fingerprint(info: bytes) -> str:
    """Return OpenSSH's fingerprint of a SubjectPublicKeyInfo (RFC 5280, 4.1).

    Raises IndexError or KeyError for anything that is none.
    """
    (_, algorithm), (_, bits) = list(items(first(info)))[:2]
    names = list(items(algorithm))
    key = bits[1:]
    if names[0][1] == ED25519:
        fields = [b"ssh-ed25519", key]
    elif names[0][1] == RSA:
        (_, modulus), (_, exponent) = list(items(first(key)))[:2]
        fields = [b"ssh-rsa", exponent, modulus]
    elif names[0][1] == ELLIPTIC:
        curve = CURVES[names[1][1]]
        fields = [b"ecdsa-sha2-" + curve, curve, key]
    else:
        raise KeyError("algorithm")
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give tag and content of each element of a DER sequence's content (X.690)."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + length > len(data):
            raise IndexError("cut off")
        yield tag, data[at : at + length]
        at += length


def first(data: bytes) -> bytes:
    """Return the content of the first element. Raises IndexError where there is none."""
    for _, content in items(data):
        return content
    raise IndexError("empty")


def _certificate(path: str, data: bytes) -> Key:
    fields = list(items(first(first(data))))
    if fields[0][0] == 0xA0:  # the version; without it, it is the first
        fields = fields[1:]
    validity, subject, info = fields[3][1], fields[4][1], fields[5][1]
    tag, end = list(items(validity))[1]
    name = ""
    for _, attributes in items(subject):
        for _, attribute in items(attributes):
            identifier, value = list(items(attribute))[:2]
            if identifier[1] == COMMON_NAME:
                name = value[1].decode(errors="replace")
    header = bytes([0x30, 0x82]) + len(info).to_bytes(2, "big")
    return Key(CERTIFICATE, path, ssh_fingerprint(header + info), printable(name), _time(tag, end))


def _time(tag: int, text: bytes) -> float:
    # UTCTime has two digits of the year: RFC 5280, 4.1.2.5.1.
    digits = text.decode("ascii").rstrip("Z")
    if tag == 0x17:
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    moment = datetime.strptime(digits, "%Y%m%d%H%M%S")
    return moment.replace(tzinfo=timezone.utc).timestamp()
