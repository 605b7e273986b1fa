"""Fetch one file over the network or from a folder, check its hash, keep it."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from _llm.errors import LLMError

ATTEMPTS = 3


def fetch_file(uri: str, sha256: str, target: Path, what: str, gone: str) -> Path:
    """Return `target`, fetched from `uri` when it is not there yet.

    uri: http(s):// or file://. The host's proxy variables and SSL_CERT_FILE are honoured by
    urllib. what: names the file in messages; gone: what to do when the server has it no more.
    The file appears under its name only when it is complete and its SHA-256 is right.
    Raises LLMError otherwise.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=".part-")
        digest = hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as output, _open(uri) as source:
                for block in iter(lambda: source.read(1 << 20), b""):
                    digest.update(block)
                    output.write(block)
                output.flush()
                os.fsync(output.fileno())
            if digest.hexdigest() == sha256:
                os.chmod(part, 0o644)
                os.replace(part, target)
                return target
            reason = f"SHA-256 is {digest.hexdigest()[:16]}…, the lock says {sha256[:16]}…"
        except urllib.error.HTTPError as error:
            reason = f"{uri.rsplit('/', 1)[-1]}: HTTP status {error.code}"
            if error.code in (403, 404, 410):
                raise LLMError(f"cannot fetch {what}", reason, gone) from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
            if uri.startswith("file:") or isinstance(error, PermissionError):
                raise LLMError(f"cannot fetch {what}", reason, gone) from None
        finally:
            if os.path.exists(part):
                os.unlink(part)
        if attempt < ATTEMPTS:
            time.sleep(attempt)
    raise LLMError(f"cannot fetch {what}", f"{reason} (tried {ATTEMPTS} times)",
                   "check network and proxy, or the disk's free space; then the same command again")


def _open(uri: str):  # type: ignore[no-untyped-def]  # urllib's answer has no public type
    bundle = os.environ.get("SSL_CERT_FILE") or os.environ.get("CURL_CA_BUNDLE")
    context = ssl.create_default_context(cafile=bundle) if bundle else None
    return urllib.request.urlopen(uri, timeout=60, context=context)
