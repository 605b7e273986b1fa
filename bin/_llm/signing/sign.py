"""Sign an image with Apptainer's own keys: a PEM file, or a PGP key of Apptainer's keyring.

    make sign IMAGE=base KEY=site.pem
    make sign IMAGE=llm VARIANT=cpu SIGNER=ann@example.org

A copy in the same folder is signed and looked at, and takes the image's place at the end: whatever
happens meanwhile, the image is the old one or the signed one. Its digest stays the same.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _llm import setup
from _llm.errors import LLMError
from _llm.gpus import find_gpus, variants_for
from _llm.image import HOME, end_like_ctrl_c
from _llm.image_digest import unchanged
from _llm.lookup import find_image, image_folders, is_path
from _llm.programs import run_captured
from _llm.settings import VARIANTS, load_settings
from _llm.sif import SIGNATURE, DamagedError, object_sha256, payload_digest, read_objects
from _llm.signing import check
from _llm.signing.keys import MOST_BYTES, Key, load_keys
from _llm.signing.openssl import public_half
from _llm.signing.signatures import Signature, read_signatures

# "0) User: Ann (comment) <ann@example.org>", "Fingerprint: 0E24...": `apptainer key list`.
LISTED = re.compile(r"^(\d+)\)\s+User:\s+(.*?)\s*\n(?:\s+.*\n)*?\s+Fingerprint:\s+([0-9A-F]{40})",
                    re.MULTILINE)
STANDARD_ERROR = 2
NO_ROOM = "make room there: signing needs as much again as the image has"


@dataclass(frozen=True)
class Signer:
    """Whose key it is. fingerprint: as signatures name it. words: the options of apptainer sign."""

    name: str
    fingerprint: str
    words: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Sign one image. Raises LLMError for a user's mistake."""
    parser = argparse.ArgumentParser(prog="sign", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_image_options(parser)
    parser.add_argument("--key", default="", help="a PEM file with a private key (RSA, ECDSA or "
                        "Ed25519); empty: a PGP key of Apptainer's keyring")
    parser.add_argument("--signer", default="", help="which PGP key: fingerprint, key id, part of "
                        "the name or e-mail, or index; empty: the only one")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    path = image_file(options.image, options.variant)
    key = os.path.expanduser(options.key)
    sign_image(setup.ensure_apptainer(), Path(path), key, options.signer)
    for signature in read_signatures(path):
        print(f"signed by {signature.signer}")
    print(f"{path}\n{payload_digest(path)}")
    return 0


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add --image and --variant."""
    parser.add_argument("--image", default="llm", help="name of an image, or path of its file")
    parser.add_argument("--variant", default="", help="cpu, cuda13, cuda12; empty: by the GPU here")


def image_file(name: str, variant: str) -> str:
    """Return the path of an image's file, without links. Raises LLMError where there is none."""
    settings = load_settings(os.environ, str(HOME))
    wanted = f"{name}-{variant}" if variant and not is_path(name) else name
    best = variants_for(find_gpus(os.environ), None)
    order = best + [other for other in VARIANTS if other not in best]
    return find_image(wanted, image_folders(settings, str(HOME)), order, str(HOME)).path


def sign_image(apptainer: str, path: Path, key: str, signer: str) -> None:
    """Add a signature to an image file; what was signed with this key before is left as it is.

    key: a PEM file with a private key, "" for a PGP key of Apptainer's keyring. signer: which of
    these: fingerprint, key id, part of its name, or index; "" for the only one. Raises LLMError,
    and then the file is as it was.
    """
    if key and signer:
        raise LLMError("KEY and SIGNER are both given", "KEY is a PEM file, SIGNER names a PGP key "
                       "of Apptainer's keyring", "give one of them")
    path = Path(os.path.realpath(path))
    try:
        status = path.stat()
        objects = [item for item in read_objects(str(path)) if item.type != SIGNATURE]
        before = read_signatures(str(path))
    except (DamagedError, OSError) as error:
        raise LLMError(f"the image {path} cannot be signed", str(error),
                       "sign a file as `make image` makes it") from None
    loose = [str(item.id) for item in objects if not item.group & 0x0FFFFFFF]
    if loose:
        raise LLMError(f"the image {path} cannot be signed",
                       f"no signature would cover its objects {', '.join(loose)}, which belong to "
                       "no group", "build it again: make image")
    who = pem_signer(apptainer, key) if key else choose_signer(apptainer, signer)
    own = [item for item in before if item.signer == who.fingerprint]
    if any(covers(item.message, str(path)) for item in own):
        print(f"sign: {path.name} is already signed by {who.name}; nothing was done",
              file=sys.stderr)
        return
    if own:
        raise LLMError(
            f"{path} was changed after {who.name} had signed it",
            "its signature does not fit what the image holds",
            "get or build the image again; or, to sign it as it is now, take the signature off: "
            f"'{apptainer}' sif del {own[0].item.id} '{path}'",
        )
    _replace_by_signed(apptainer, path, status, who, key, before)


def _replace_by_signed(
    apptainer: str,
    path: Path,
    status: os.stat_result,
    who: Signer,
    key: str,
    before: Sequence[Signature],
) -> None:
    """Sign a copy and move it into the image's place.

    status, before: of the image, and the signatures it has. Raises LLMError.
    """
    copy = path.with_name(f".{path.name}.signing-{os.getpid()}")
    try:
        _copy(path, copy)
        _run_sign(apptainer, who, copy, path)
        _check_copy(apptainer, path, copy, who, key, before)
        copy.chmod(status.st_mode & 0o7777)
        with contextlib.suppress(OSError):  # only root may give files away
            os.chown(copy, status.st_uid, status.st_gid)
        _flush(copy)
        if not unchanged(str(path), status):
            raise LLMError(f"the image {path} was changed while a copy of it was signed",
                           "perhaps somebody else signed it at the same time", "sign it again")
        copy.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise LLMError(f"the image {path} cannot be signed", error.strerror or str(error),
                       _cure(error)) from None
    finally:
        copy.unlink(missing_ok=True)


def covers(message: bytes, path: str) -> bool:
    """Say whether what was signed names exactly the objects of an image, with their digests.

    Format: https://github.com/apptainer/sif/blob/main/pkg/integrity/metadata.go
    """
    try:
        named = [item["objectDigest"] for item in json.loads(message)["objects"]]
    except (ValueError, KeyError, TypeError):
        return False
    objects = [item for item in read_objects(path) if item.type != SIGNATURE]
    if len(named) != len(objects):
        return False
    return all(digest == f"sha256:{object_sha256(path, item)}"
               for digest, item in zip(named, objects))


def choose_signer(apptainer: str, wanted: str) -> Signer:
    """Return the private key of Apptainer's keyring that `wanted` names. Raises LLMError."""
    done = run_captured([apptainer, "key", "list", "--secret"], check.clean_environment())
    listed = [Signer(name, fingerprint, ("--keyidx", index))
              for index, name, fingerprint in LISTED.findall(done.stdout)]
    digits = wanted.upper().replace(" ", "")
    digits = digits[2:] if digits.startswith("0X") else digits
    if wanted in [item.words[1] for item in listed]:
        return next(item for item in listed if item.words[1] == wanted)
    found = [item for item in listed if wanted.lower() in item.name.lower()
             or (len(digits) >= 8 and item.fingerprint.endswith(digits))]
    if len(found) == 1:
        return found[0]
    names = "; ".join(f"{item.words[1]}: {item.name}, {item.fingerprint}" for item in listed)
    if not listed:
        raise LLMError("Apptainer's keyring has no private key", "signing needs one",
                       f"'{apptainer}' key newpair, or give a PEM file: make sign KEY=site.pem")
    which = f"{len(found)} keys fit '{wanted}'" if wanted else f"there are {len(listed)} keys"
    raise LLMError("which PGP key is to sign?", f"{which}; {names}",
                   "make sign SIGNER=FINGERPRINT")


def why_not_private(key: str, apptainer: str) -> str:
    """Say why a file is no private PEM key that Apptainer can sign with; "" where it may be one."""
    try:
        with open(key, "rb") as file:
            data = file.read(MOST_BYTES)
    except OSError as error:
        return error.strerror or str(error)
    if b"PGP PRIVATE KEY" in data:
        return (f"it is a PGP key; import it: '{apptainer}' key import '{key}', then name it: "
                "SIGNER=...")
    if b"ENCRYPTED PRIVATE KEY-----" in data and b"SIGSTORE" not in data:
        return "it has a passphrase, which Apptainer does not ask for in PEM files"
    if b"PRIVATE KEY-----" not in data:
        return "it holds no private key in PEM form"
    return ""


def pem_signer(apptainer: str, key: str) -> Signer:
    """Return the signer that a PEM file is. Learned by signing something small with it."""
    why = why_not_private(key, apptainer)
    if not why:
        with check.private_folder("") as folder:
            small, part = os.path.join(folder, "small.sif"), os.path.join(folder, "part")
            Path(part).write_bytes(b"{}")
            env, sif = check.clean_environment(), [apptainer, "sif"]
            run_captured([*sif, "new", small], env)
            run_captured([*sif, "add", "--datatype", "6", "--groupid", "1", small, part], env)
            done = run_captured([apptainer, "sign", "--key", os.path.abspath(key), small], env)
            if done.returncode == 0:
                [signature] = read_signatures(small)
                return Signer(key, signature.signer, ("--key", os.path.abspath(key)))
            why = check.words_of(done.stderr)
    raise LLMError(f"the private key {key} cannot be used", why,
                   "name a PEM file with a private key that has no passphrase (RSA, ECDSA or "
                   "Ed25519), or a PGP key: make sign SIGNER=...")


def _copy(path: Path, copy: Path) -> None:
    try:
        check.copy_file(str(path), str(copy))
    except OSError as error:
        raise LLMError(f"the image {path} cannot be copied to its folder, to be signed",
                       error.strerror or str(error), _cure(error)) from None


def _cure(error: OSError) -> str:
    """Return what to do about a folder in which no copy of an image can be made."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "let somebody sign it who may write there, or sign a copy: make sign IMAGE=COPY.sif"
    return NO_ROOM


def _run_sign(apptainer: str, who: Signer, copy: Path, path: Path) -> None:
    """Sign the copy. A PGP key's passphrase is asked for on the terminal."""
    # Its words go to the terminal too, for the question comes among them.
    command = [apptainer, "sign", *who.words, str(copy)]
    sys.stdout.flush()
    done = subprocess.run(command, stdout=STANDARD_ERROR, stderr=subprocess.PIPE, text=True,
                          errors="replace", check=False, env=check.clean_environment())
    if done.returncode == 0:
        return
    said = check.words_of(done.stderr)
    fix = NO_ROOM if "no space" in said else "check the key: make sign KEY=... or SIGNER=..."
    if "passphrase" in said or "checksum" in said or "ioctl" in said:
        fix = "start it on a terminal and type the key's passphrase, or use a PEM key: KEY=site.pem"
    raise LLMError(f"the image {path} could not be signed by {who.name}", said, fix)


def _check_copy(
    apptainer: str, path: Path, copy: Path, who: Signer, key: str, before: Sequence[Signature]
) -> None:
    """Raise LLMError unless the copy is the image, with one more signature, which holds."""
    signatures = read_signatures(str(copy))
    new = [item for item in signatures if item.signer == who.fingerprint]
    fault = ""
    if len(signatures) != len(before) + 1 or len(new) != 1:
        fault = "it has not one signature more"
    elif payload_digest(str(copy)) != payload_digest(str(path)):
        fault = "it holds something else than the image"
    elif not covers(new[0].message, str(copy)):
        fault = "the signature does not cover all of it"
    elif not key and not before:
        done = run_captured([apptainer, "verify", "--local", str(copy)], check.clean_environment())
        fault = check.words_of(done.stderr) if done.returncode else ""
    if not fault and key:
        with check.private_folder(str(path.parent)) as folder:
            public = _public_key(apptainer, key, folder)
            if public:
                check.verify(apptainer, str(copy), public, str(path.parent))
    if fault:
        raise LLMError(f"the signature that Apptainer made by {who.name} would not hold", fault,
                       "use another key; the image is as it was")


def _public_key(apptainer: str, key: str, folder: str) -> list[Key]:
    """Return the public key of a private one, none where there is no openssl to tell it."""
    target = Path(folder, "public.pem")
    try:
        target.write_bytes(public_half(apptainer, key))
    except LLMError:
        return []
    return load_keys([str(target)])


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
