"""Does an image have what the site requires: a signature by one of its keys, one of its digests?

    LLM_REQUIRE=digest llm-run true

Part of every start of llm-run where a requirement holds. A signature that was checked is kept in
the user's cache, by the file's status and the keys' contents, until a key ends.
"""

from __future__ import annotations

import errno
import os

from _llm.errors import LLMError
from _llm.image_digest import (
    cached_digest,
    is_same_file,
    keep,
    kept_file,
    note_reading,
    owner_line,
    read_kept,
    unchanged,
    with_lock,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _llm.settings import Settings

FOLDER = "image-signatures"
# A release's manifest has 32 MiB at most.
MOST_BYTES = 1 << 25
# How long a check counts whose key has no end.
KEPT_SECONDS = 30 * 86400


def check_required(
    settings: Settings, path: str, apptainer: Callable[[], str], cache: str, local: str
) -> list[str]:
    """Return what the image has of what the site requires, in words; nothing if it wants nothing.

    path: of the image, without links. apptainer: gives the program's path, where it is needed.
    cache: the user's cache folder. local: one on this node, for locks. Raises LLMError with the
    reason where something required is missing.
    """
    found = []
    wanted = settings.items("container", "require")
    if wanted != ["none"] and os.path.isdir(path):
        raise _refused(
            settings, path, "it is an unpacked folder, which anybody may have changed", "use the "
            "image file that it was made from"
        )
    if "digest" in wanted:
        allowed = allowed_digests(settings.items("container", "digests"))
        digest = cached_digest(path, cache, local)
        if digest not in allowed:
            why = f"its digest is {digest}, which is none of the {len(allowed)} that are allowed"
            raise _refused(settings, path, why, "use an image of the site, or tell the "
                           "administrator: [container] digests names those that are allowed")
        found.append(digest)
    if "signature" in wanted:
        keys = settings.items("container", "keys")
        if not keys:
            raise _refused(settings, path, "no key is named to check a signature with",
                           "name public keys in [container] keys of the site profile")
        found.append(_signature(settings, path, keys, apptainer, cache, local))
    return found


def allowed_digests(items: Sequence[str]) -> set[str]:
    """Return the digests in a list of digests and of files with digests. Raises LLMError."""
    allowed = {item for item in items if not item.startswith("/")}
    for path in items:
        if not path.startswith("/"):
            continue
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(MOST_BYTES + 1)
            if len(text) > MOST_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        except OSError as error:
            raise LLMError(
                f"the list of allowed digests {path} cannot be read",
                error.strerror or str(error),
                "an administrator: correct [container] digests of the site profile",
            ) from None
        for part in text.split("sha256:")[1:]:
            if len(part) >= 64 and not part[:64].strip("0123456789abcdef"):
                allowed.add("sha256:" + part[:64])
    if not allowed:
        raise LLMError(
            "the site allows no image at all",
            "a digest is required by [container] require or LLM_REQUIRE, and [container] digests "
            "names none",
            "an administrator: name digests there; sh bin/_llm/tool.sh image digest --image NAME "
            "prints an image's",
        )
    return allowed


def _signature(
    settings: Settings,
    path: str,
    keys: Sequence[str],
    apptainer: Callable[[], str],
    cache: str,
    local: str,
) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        raise LLMError(
            f"the image {path} cannot be read", error.strerror or str(error), f"ls -l '{path}'"
        ) from None
    contents = _contents(keys)
    file = kept_file(cache, FOLDER, status)

    def check() -> str:
        known = _known(file, path, status, contents)
        if known:
            return known
        from _llm.signing.check import verify
        from _llm.signing.keys import load_keys

        note_reading(path, status.st_size, "signature")
        import time

        now = time.time()
        try:
            found = verify(apptainer(), path, load_keys(keys), cache)
        except LLMError as error:
            raise _refused(settings, path, f"{error.what}; {error.why}", error.fix) from None
        until = now + KEPT_SECONDS
        until = until if found.expires is None else min(until, found.expires)
        lines = [f"{until:.0f}", owner_line(path, status), " ".join(str(found).split()), contents]
        if unchanged(path, status):
            keep(cache, file, "\n".join(lines) + "\n")
        return lines[2]

    return _known(file, path, status, contents) or with_lock(local, "image-signatures.lock", check)


def _known(file: str, path: str, status: os.stat_result, contents: str) -> str:
    import time

    until, owner, who, kept, *_ = [*read_kept(file), "", "", "", ""]
    device, _, owner_path = owner.partition(" ")
    is_fresh = until.isdigit() and time.time() < int(until) and kept == contents
    return who if is_fresh and is_same_file(device, owner_path, path, status) else ""


def _contents(keys: Sequence[str]) -> str:
    """Return what the key files hold, as one line of text."""
    found = []
    for path in keys:
        try:
            with open(path, "rb") as file:
                found.append(file.read(MOST_BYTES).hex())
        except OSError as error:
            raise LLMError(
                f"the public key {path} cannot be read",
                error.strerror or str(error),
                "an administrator: correct [container] keys of the site profile",
            ) from None
    return " ".join(found)


def _refused(settings: Settings, path: str, why: str, fix: str) -> LLMError:
    wanted = " and ".join(settings.items("container", "require"))
    origin = settings.origin("container", "require")
    return LLMError(
        f"the image {path} must not be used: a {wanted} is required ({origin})", why, fix
    )
