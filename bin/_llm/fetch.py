"""Fetch one file over the network or from a folder, check its hash, keep it."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import netrc
import os
import socket
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _llm.errors import LLMError

ATTEMPTS = 3
CONNECT_SECONDS = 60
NOBODY = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT)
BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Access:
    """How servers are reached: a CA bundle ("" for the host's own) and the hosts that are believed
    without a certificate (pip's trusted-host: NAME or NAME:PORT).

    hosts: those that were asked, with "" where they answered, else why they could not be reached;
    nobody asks them again.
    """

    ca_bundle: str = ""
    trusted_hosts: tuple[str, ...] = ()
    hosts: dict[str, str] = field(default_factory=dict, compare=False)


class GoneError(LLMError):
    """The server answers, and does not have the file."""


class UnreachableError(LLMError):
    """The server can't be reached at all, for this file or another."""


class SilentError(OSError):
    """No connection to a server that has not answered before; its words say why."""


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
        except SilentError as error:
            raise UnreachableError(f"cannot fetch {what}", str(error),
                                   "check network and proxy") from None
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

    Raises OSError (urllib's URLError and HTTPError are some), SilentError where the host can't be
    reached, ValueError for what is no address.
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
    return _open(request, context, host, access.hosts)


def _open(  # type: ignore[no-untyped-def]
    request: urllib.request.Request, context: ssl.SSLContext | None, host: str,
    hosts: dict[str, str],
):
    """Open a request, unless its host could not be reached before.

    hosts: as Access has them. The first failure counts where a host never answered: with hundreds
    of files to ask it for, nobody would see the end of it.
    """
    if hosts.get(host):
        raise SilentError(hosts[host])
    try:
        answer = urllib.request.urlopen(request, timeout=CONNECT_SECONDS, context=context)
    except urllib.error.HTTPError:
        hosts[host] = ""
        raise
    except urllib.error.URLError as error:
        why = error.reason
        if host and hosts.get(host) != "" and isinstance(why, OSError) and _is_nobody(why):
            hosts[host] = f"{host}: {why.strerror or why}"
            raise SilentError(hosts[host]) from None
        raise
    hosts[host] = ""
    return answer


def _is_nobody(error: OSError) -> bool:
    """Whether nobody is there: an unknown name, a refused connection, no way, no answer."""
    return isinstance(error, (socket.gaierror, socket.timeout)) or error.errno in NOBODY


def _account(split: urllib.parse.SplitResult) -> str:
    """`name:password` for an address, "" where none is known."""
    if split.username:
        return urllib.parse.unquote(f"{split.username}:{split.password or ''}")
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(split.hostname or "")
    except (OSError, netrc.NetrcParseError):
        return ""
    return f"{found[0]}:{found[2]}" if found else ""
