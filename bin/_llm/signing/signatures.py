"""The signatures in an image file, as far as they say themselves whose they are.

Format: https://github.com/apptainer/sif/blob/main/pkg/sif/descriptor.go (signature: hash type and
fingerprint in the descriptor); PEM keys: https://github.com/secure-systems-lab/dsse
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from dataclasses import dataclass

from _llm.sif import DESCRIPTOR, SIGNATURE, Object, read_object, read_objects
from _llm.signing.keys import PEM, PGP, printable

CLEAR_SIGNED = b"-----BEGIN PGP SIGNED MESSAGE-----"
# Longer is none of Apptainer's signatures, which have some hundred bytes for each object.
MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Signature:
    """One signature.

    kind: PEM, PGP or "" for one of another kind. signer: the fingerprint of the key that it claims
    to be made with, as in keys.Key. created: seconds since 1970, by the file's own word. message:
    what was signed: the digests of the image's parts.
    """

    item: Object
    kind: str
    signer: str
    created: int
    message: bytes


def read_signatures(path: str) -> list[Signature]:
    """Return the signatures of an image file. Raises sif.DamagedError or OSError."""
    return [_read(path, item) for item in read_objects(path) if item.type == SIGNATURE]


def _read(path: str, item: Object) -> Signature:
    with open(path, "rb") as file:
        file.seek(item.at)
        fields = DESCRIPTOR.unpack(file.read(DESCRIPTOR.size))
    created, extra = int(fields[8]), bytes(fields[13])
    data = read_object(path, item) if item.size <= MOST_BYTES else b""
    if data.startswith(CLEAR_SIGNED):
        message = data.partition(b"\n\n")[2].partition(b"\n-----BEGIN PGP SIGNATURE-----")[0]
        return Signature(item, PGP, extra[4:24].hex().upper(), created, message)
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, binascii.Error,
                             AttributeError, RecursionError):
        envelope = json.loads(data)
        name = printable(str(envelope["signatures"][0].get("keyid") or ""))
        message = base64.b64decode(envelope["payload"], validate=True)
        return Signature(item, PEM, name or "a key without a name", created, message)
    return Signature(item, "", "an unknown kind of key", created, b"")
