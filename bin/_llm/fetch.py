"""Fetch one file over the network or from a folder, check its hash, keep it."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import netrc
import os
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from _llm.errors import LLMError

ATTEMPTS = 3
BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Access:
    """How servers are reached: a CA bundle ("" for the host's own) and the hosts that are believed
    without a certificate (pip's trusted-host: NAME or NAME:PORT)."""

    ca_bundle: str = ""
    trusted_hosts: tuple[str, ...] = ()


class GoneError(LLMError):
    """The server answers, and does not have the file."""


class StoppedError(Exception):
    """Another thread was told to end."""


def fetch_file(
    uri: str, sha256: str, target: Path, what: str, gone: str, access: Access | None = None,
) -> Path:
    """Return `target`, fetched from `uri` when it is not there yet.

    uri: http(s):// or file://. The host's proxy variables and SSL_CERT_FILE are honoured.
    what: names the file in messages; gone: what to do when the server has it no more.
    The file appears under its name only when it is complete and its SHA-256 is right.
    Raises LLMError otherwise.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part, _ = download(uri, (sha256,), target.parent, what, gone, access or Access())
    os.chmod(part, 0o644)
    os.replace(part, target)
    return target


def download(
    uri: str, accepted: Collection[str], folder: Path, what: str, gone: str, access: Access,
    stop: threading.Event | None = None, headers: Mapping[str, str] | None = None,
) -> tuple[Path, str]:
    """Fetch a file whose SHA-256 is one of the accepted ones.

    Returns its temporary file in `folder`, complete and flushed, and its hash; the caller renames
    it. Its name tells host and process, whose end it may outlive. stop: ends the download from
    another thread.
    Raises GoneError where the server has it no more, LLMError where it can't be had otherwise.
    """
    reason, prefix = "", f".part-{os.uname().nodename}-{os.getpid()}-"
    for attempt in range(1, ATTEMPTS + 1):
        handle, name = tempfile.mkstemp(dir=folder, prefix=prefix)
        part, done = Path(name), False
        digest = hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as output, open_uri(uri, access, headers) as source:
                for block in iter(lambda: source.read(BLOCK), b""):
                    if stop and stop.is_set():
                        raise StoppedError
                    digest.update(block)
                    output.write(block)
                output.flush()
                os.fsync(output.fileno())
            if digest.hexdigest() in accepted:
                done = True
                return part, digest.hexdigest()
            wanted = ", ".join(f"{sha256[:16]}…" for sha256 in sorted(accepted)[:2])
            reason = f"SHA-256 is {digest.hexdigest()[:16]}…, the lock says {wanted}"
        except urllib.error.HTTPError as error:
            host = urllib.parse.urlsplit(uri).netloc.rpartition("@")[2]
            reason = f"HTTP status {error.code} from {host}"
            if error.code in (403, 404, 410):
                raise GoneError(f"cannot fetch {what}", reason, gone) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", error))
            if isinstance(error, OSError) and error.errno in FULL:
                raise LLMError(f"cannot keep {what}", f"{reason}: {folder}",
                               "LLM_CACHE_DIR=/path/with/room make image") from None
            if uri.startswith("file:") or isinstance(error, (PermissionError, ValueError)):
                raise GoneError(f"cannot fetch {what}", reason, gone) from None
        finally:
            if not done:
                with contextlib.suppress(OSError):
                    part.unlink()
        if attempt < ATTEMPTS:
            time.sleep(attempt)
    raise LLMError(f"cannot fetch {what}", f"{reason} (tried {ATTEMPTS} times)",
                   "check network and proxy, or the disk's free space; then the same command again")


def open_uri(  # type: ignore[no-untyped-def]  # urllib's answer has no public type
    uri: str, access: Access, headers: Mapping[str, str] | None = None, method: str = "GET",
):
    """Open an address: a name and password in it, or in ~/.netrc, are sent to its host alone.

    Raises OSError (urllib's URLError and HTTPError are some), ValueError for what is no address.
    """
    split = urllib.parse.urlsplit(uri)
    host = split.netloc.rpartition("@")[2]
    request = urllib.request.Request(urllib.parse.urlunsplit(split._replace(netloc=host)),
                                     headers=dict(headers or {}), method=method)
    if split.scheme in ("http", "https") and not request.has_header("Authorization"):
        account = _account(split)
        if account:
            word = base64.b64encode(account.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {word}")
    context = None
    if host in access.trusted_hosts or split.hostname in access.trusted_hosts:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        bundle = (access.ca_bundle or os.environ.get("SSL_CERT_FILE")
                  or os.environ.get("CURL_CA_BUNDLE"))
        if bundle and split.scheme == "https":
            context = ssl.create_default_context(cafile=bundle)
    return urllib.request.urlopen(request, timeout=60, context=context)


def _account(split: urllib.parse.SplitResult) -> str:
    """`name:password` for an address, "" where none is known."""
    if split.username:
        return urllib.parse.unquote(f"{split.username}:{split.password or ''}")
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(split.hostname or "")
    except (OSError, netrc.NetrcParseError):
        return ""
    return f"{found[0]}:{found[2]}" if found else ""
