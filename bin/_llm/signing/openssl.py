"""The public half of a private PEM key, which Apptainer does not tell and openssl does."""

from __future__ import annotations

import os
import shutil

from _llm.errors import LLMError
from _llm.programs import run_captured
from _llm.signing.check import clean_environment


def public_half(apptainer: str, key: str) -> bytes:
    """Return the public key, in PEM, of the private one in the file `key`.

    Raises LLMError where it is none, or where openssl is missing.
    """
    # An Apptainer that `make setup` unpacked brought its own.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(apptainer)])
    program = shutil.which("openssl", path=path)
    if not program:
        raise LLMError("the public key of KEY is not known", "openssl would tell and is missing",
                       "make release … ARGS='--public-key FILE'")
    done = run_captured([program, "pkey", "-in", os.path.abspath(key), "-pubout"],
                        clean_environment())
    if done.returncode or "PUBLIC KEY" not in done.stdout:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise LLMError(f"{key} is no private key", said[0],
                       "KEY= is a PEM file: openssl genpkey -algorithm ed25519 -out release.pem")
    return done.stdout.encode()
