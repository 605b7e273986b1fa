"""Check an image's signature with public keys, through Apptainer.

    make verify IMAGE=base KEY=site.pub

Apptainer checks; here is decided with which key, and only that key: not with what happens to be in
the user's keyring, nor with a key server. A signature has to cover every object of the image.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from _llm.environment import is_dropped
from _llm.errors import LLMError
from _llm.files import share_blocks
from _llm.image_digest import unchanged
from _llm.programs import run_captured
from _llm.sif import SIGNATURE, DamagedError, read_objects
from _llm.signing.keys import CERTIFICATE, PGP, Key, day, has_expired, load_keys
from _llm.signing.signatures import Signature, read_signatures

# What Apptainer says where the image holds something that nobody signed.
UNCOVERED = ("object not signed", "signature not found for object", "not associated with object")
EXPIRED = ("key expired", "certificate has expired", "signature expired")


@dataclass(frozen=True)
class Verified:
    """A signature that holds.

    signer: name of the key's owner, or its file. fingerprint: of the key. created: when it was
    signed, in seconds since 1970. expires: when the key does, None for never.
    """

    signer: str
    fingerprint: str
    created: int
    expires: float | None

    def __str__(self) -> str:
        return f"signed by {self.signer}, {self.fingerprint}, on {day(self.created)}"


def check_signature(apptainer: str, path: str, keys: Sequence[str]) -> str:
    """Return who signed an image, with the key's fingerprint and the day.

    keys: files with public keys; a signature by one of them will do. Raises LLMError where there is
    none, or where it does not hold.
    """
    return str(verify(apptainer, path, load_keys(keys)))


def verify(apptainer: str, path: str, keys: Sequence[Key], scratch: str = "") -> Verified:
    """Return the first signature by one of the keys that holds.

    scratch: a folder for a copy of the image, which is needed where others signed it too; "" for
    the system's. Raises LLMError as check_signature does.
    """
    signatures, count = _read(path)
    if not signatures:
        raise LLMError(
            f"the image {path} is not signed",
            "it has no signature at all",
            f"sign it: make sign, or get a signed one; {_wanted(keys)}",
        )
    before = os.stat(path)
    faults: list[LLMError] = []
    for key in keys:
        own = [item for item in signatures if _is_by(item, key)]
        if not own:
            continue
        if has_expired(key):
            faults.append(_expired(path, key))
            continue
        others = [item for item in signatures if item not in own]
        with _without(apptainer, path, others, scratch) as file:
            fault = _ask(apptainer, path, file, key, count, scratch)
        if not fault and not unchanged(path, before):
            fault = _broken(path, "the file changed while it was read")
        if not fault:
            name = key.name or key.path
            return Verified(name, own[0].signer, max(s.created for s in own), key.expires)
        faults.append(fault)
    if faults:
        raise faults[0]
    signers = ", ".join(dict.fromkeys(item.signer for item in signatures))
    raise LLMError(
        f"the image {path} is signed by somebody else",
        f"it names {signers}; {_wanted(keys)}",
        "get the image from where you meant to, or, if that key is to be trusted too, its public "
        "key",
    )


def clean_environment(keyring: str = "") -> dict[str, str]:
    """Return an environment in which Apptainer uses this keyring, "" for the user's."""
    names = ("APPTAINER_KEYSDIR", "SINGULARITY_KEYSDIR")
    env = {n: v for n, v in os.environ.items() if not is_dropped(n) or n in names}
    return {**env, **dict.fromkeys(names, keyring)} if keyring else env


def words_of(output: str) -> str:
    """Return why Apptainer did not do what it was asked, in its own words."""
    lines = [line for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("FATAL:", "ERROR:"))] or lines
    said = "; ".join(line.partition(":")[2].strip() or line for line in told[-2:])
    return said or "it gave no reason"


def private_folder(scratch: str) -> tempfile.TemporaryDirectory[str]:
    """Return a new folder that is removed again. Raises LLMError where it can't be made."""
    try:
        return tempfile.TemporaryDirectory(prefix=".llm-signing-", dir=scratch or None)
    except OSError as error:
        raise LLMError(
            f"no temporary folder can be made in {scratch or tempfile.gettempdir()}",
            error.strerror or str(error),
            "make room, or choose another one: export TMPDIR=/path/with/room",
        ) from None


def _read(path: str) -> tuple[list[Signature], int]:
    """Return the signatures and the number of other objects. Raises LLMError for what is no SIF."""
    try:
        if os.path.isdir(path):
            raise DamagedError("it is an unpacked folder, and only image files have signatures")
        count = sum(item.type != SIGNATURE for item in read_objects(path))
        return read_signatures(path), count
    except DamagedError as error:
        raise LLMError(
            f"the image {path} has no signature that could be checked",
            str(error),
            "use an image file as `make image` makes it; copy it again if it is damaged",
        ) from None
    except OSError as error:
        raise LLMError(
            f"the image {path} cannot be read", error.strerror or str(error), f"ls -l '{path}'"
        ) from None


def _is_by(signature: Signature, key: Key) -> bool:
    return (signature.kind == PGP) == (key.kind == PGP) and signature.signer == key.fingerprint


def _wanted(keys: Sequence[Key]) -> str:
    names = [f"{key.fingerprint} ({key.path})" for key in keys]
    return "wanted: " + (" or ".join(names) or "no key is named")


def _expired(path: str, key: Key) -> LLMError:
    when = f"{key.kind} {key.path} ended on {day(key.expires)}" if key.expires else key.path
    return LLMError(
        f"the image {path} is signed with a key that has expired",
        f"{when}; what was signed before that day counts no more either",
        "sign it again with a key that is valid, or get the renewed public key",
    )


def _ask(
    apptainer: str, path: str, file: str, key: Key, count: int, scratch: str
) -> LLMError | None:
    """Return what Apptainer has against the signature by `key` of `file`; None if it holds.

    path: the image's own. count: of the objects that it has to cover.
    """
    with private_folder(scratch) as keyring:
        if key.kind == PGP:
            words = ["--local"]
            done = run_captured([apptainer, "key", "import", os.path.abspath(key.path)],
                                clean_environment(keyring))
            if done.returncode:
                return LLMError(
                    f"Apptainer does not take the PGP key {key.path}",
                    words_of(done.stderr),
                    f"'{apptainer}' key import '{key.path}'",
                )
        elif key.kind == CERTIFICATE:
            # The certificate itself is what is trusted, whoever issued it.
            words = ["--certificate", key.path, "--certificate-roots", key.path]
        else:
            words = ["--key", key.path]
        done = run_captured([apptainer, "verify", "--json", *words, os.path.abspath(file)],
                            clean_environment(keyring))
    said = words_of(done.stderr)
    if done.returncode == 0:
        if _covers(done.stdout, key, count):
            return None
        said = "it reports another key than the one that was asked for, or not all objects"
    if any(word in said for word in EXPIRED):
        return _expired(path, key)
    if "revoked" in said:
        return LLMError(
            f"the image {path} is signed with a key that was revoked",
            f"Apptainer says: {said}; the key is {key.fingerprint} ({key.path})",
            "get the image again, signed with a key that is valid",
        )
    if any(word in said for word in UNCOVERED):
        return LLMError(
            f"the image {path} holds something that its signature does not cover",
            f"{said}; it was added after signing",
            "do not use it; get the image again",
        )
    return _broken(path, said)


def _broken(path: str, said: str) -> LLMError:
    return LLMError(
        f"the signature of the image {path} does not hold",
        f"Apptainer says: {said}",
        "do not use it: it was changed after signing, or damaged; get the image again",
    )


def _covers(output: str, key: Key, count: int) -> bool:
    try:
        signers = [item["Signer"] for item in json.loads(output)["SignerKeys"]]
    except (ValueError, KeyError, TypeError):
        return False
    if len(signers) < count or not all(signer["DataCheck"] for signer in signers):
        return False
    names = {str(signer["Fingerprint"]).upper() for signer in signers}
    return key.kind != PGP or names == {key.fingerprint}


@contextlib.contextmanager
def _without(
    apptainer: str, path: str, signatures: Sequence[Signature], scratch: str
) -> Iterator[str]:
    """Give the path of the image without some of its signatures: a copy, or itself without any.

    Apptainer refuses an image as soon as it can't check one of its signatures, and takes no more
    than one PEM key at a time.
    """
    if not signatures:
        yield path
        return
    with private_folder(scratch) as folder:
        copy = os.path.join(folder, "image.sif")
        try:
            copy_file(path, copy)
        except OSError as error:
            raise LLMError(
                f"the image {path} cannot be copied to {os.path.dirname(folder)}",
                f"{error.strerror or error}; it has signatures by several keys, and Apptainer "
                "checks one key at a time",
                "make room, or choose another folder: export TMPDIR=/path/with/room",
            ) from None
        for signature in signatures:
            done = run_captured([apptainer, "sif", "del", str(signature.item.id), copy],
                                clean_environment(folder))
            if done.returncode:
                raise _broken(path, words_of(done.stderr))
        yield copy


def copy_file(source: str, target: str) -> None:
    """Copy a file, where the file system can in no time and without room. Raises OSError."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        if not share_blocks(reader.fileno(), writer.fileno()):
            shutil.copyfileobj(reader, writer, 1 << 22)
        writer.flush()
        os.fsync(writer.fileno())
