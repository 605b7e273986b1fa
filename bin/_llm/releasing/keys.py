"""Signatures of a release: the public key that goes along, and the signed form of the manifest.

    apptainer verify --key keys/release.pem manifest.sif
    apptainer sif dump 1 manifest.sif | cmp - manifest.json

Apptainer signs image files only, so manifest and checksums are put into a small one.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from _llm import sif
from _llm.errors import LLMError
from _llm.programs import run_captured
from _llm.releasing.files import copy_file
from _llm.releasing.manifest import MANIFEST, SUMS
from _llm.signing import openpgp
from _llm.signing.check import clean_environment, private_folder, verify
from _llm.signing.keys import Key
from _llm.signing.openssl import public_half
from _llm.signing.sign import choose_signer, sign_image

GENERIC = 0x4007
# As `apptainer sif add --datatype` numbers them; both in the group that is signed.
PARTS = ((MANIFEST, "6", sif.JSON), (SUMS, "7", GENERIC))
GROUP, NO_GROUP = 1, 0xF0000000
MOST_SIGNED = 64 << 20


def public_key(apptainer: str, key: str, signer: str) -> tuple[str, bytes]:
    """Return file name and content of the public key that checks what key or signer sign.

    key: path of a private key in PEM, "" for the PGP key that `signer` names.
    Raises LLMError where it can't be found out.
    """
    if key:
        return "release.pem", public_half(apptainer, key)
    return "release.asc", _pgp_key(apptainer, signer)


def keyring() -> Path:
    """Where Apptainer keeps the public PGP keys of this user."""
    folder = os.environ.get("APPTAINER_KEYSDIR") or os.path.expanduser("~/.apptainer/keys")
    return Path(folder, "pgp-public")


def _pgp_key(apptainer: str, signer: str) -> bytes:
    wanted = choose_signer(apptainer, signer).fingerprint
    try:
        found = [key for name, key in split_keyring(keyring().read_bytes()) if name == wanted]
    except (OSError, ValueError) as error:
        raise LLMError(f"Apptainer's keyring {keyring()} can't be read", str(error),
                       "apptainer key list") from None
    if not found:
        raise LLMError(f"the public key of SIGNER={signer} is not known",
                       f"{keyring()} has none of the fingerprint {wanted}",
                       "make release … ARGS='--public-key FILE'")
    return armored(found[0])


def split_keyring(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Give fingerprint and packets of each key of an OpenPGP keyring.

    Raises ValueError for something else. https://www.rfc-editor.org/rfc/rfc4880, 4.2.
    """
    keys: list[bytes] = []
    try:
        for tag, body in openpgp.packets(data):
            if tag == openpgp.PUBLIC_KEY:
                keys.append(b"")
            keys[-1] += bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body
    except IndexError as error:
        raise ValueError(str(error)) from None
    for key in keys:
        with contextlib.suppress(ValueError):  # of a version that is not read, and signs nothing
            yield openpgp.read_keys(key)[0].fingerprint, key


def armored(key: bytes) -> bytes:
    """A PGP key as text. https://www.rfc-editor.org/rfc/rfc4880, 6.1."""
    crc = 0xB704CE
    for byte in key:
        crc ^= byte << 16
        for _ in range(8):
            crc = (crc << 1) ^ (0x1864CFB if crc & 0x800000 else 0)
    text = base64.b64encode(key).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    check = base64.b64encode((crc & 0xFFFFFF).to_bytes(3, "big")).decode()
    name = "PGP PUBLIC KEY BLOCK"
    return "\n".join([f"-----BEGIN {name}-----", "", *lines, f"={check}", f"-----END {name}-----",
                      ""]).encode()


def make_signed(apptainer: str, folder: Path, target: Path, key: str, signer: str) -> None:
    """Put manifest and checksums of `folder` into the small image file `target`, and sign it."""
    run(apptainer, "sif", "new", str(target))
    for name, kind, _ in PARTS:
        run(apptainer, "sif", "add", "--datatype", kind, "--groupid", str(GROUP),
            "--filename", name, str(target), str(folder / name))
    sign_image(apptainer, target, key, signer)
    target.chmod(0o644)


def check_signed(
    apptainer: str, path: Path, contents: tuple[bytes, bytes], keys: Sequence[Key],
) -> str:
    """Return who signed manifest and checksums. contents: what they hold.

    Raises LLMError where `path` is not signed with one of the keys, or signs something else.
    """
    with private_folder("") as work:
        # What is checked can't be changed meanwhile: nobody else writes here.
        own = Path(work, "manifest.sif")
        if os.lstat(path).st_size > MOST_SIGNED:
            raise LLMError(f"{path.name} is no signed manifest", "it is too big", "copy it again")
        copy_file(path, own)
        try:
            items = [item for item in sif.read_objects(str(own)) if item.type != sif.SIGNATURE]
            found = [(item.name, item.type, item.group, sif.read_object(str(own), item))
                     for item in items]
        except sif.DamagedError as error:
            raise LLMError(f"{path.name} is no signed manifest", str(error),
                           "copy it again") from None
        wanted = [(name, kind, GROUP | NO_GROUP, content)
                  for (name, _, kind), content in zip(PARTS, contents)]
        try:
            signed_by = str(verify(apptainer, str(own), keys))
        except LLMError as error:
            raise LLMError(error.what.replace(f"image {own}", "release"), error.why,
                           error.fix) from None
        if found != wanted:
            raise LLMError(f"{path.name} signs another manifest",
                           f"{MANIFEST} or {SUMS} was changed after it was signed",
                           "copy the release again from whom it came")
    return signed_by


def run(*command: str) -> None:
    """Run a program. Raises LLMError with its last words where it fails."""
    done = run_captured(command, clean_environment())
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise LLMError(f"{' '.join(command[:3])} failed", said[-1], f"{command[0]} version")
