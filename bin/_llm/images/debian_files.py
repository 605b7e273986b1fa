"""The Debian packages that a lock names: from the archive, else from the mirrors, by SHA-256."""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _llm import fetch
from _llm.debian import Package, mirrors_of
from _llm.errors import LLMError
from _llm.images import parallel, store


@dataclass(frozen=True)
class Locked:
    """A package and the day on which it was locked (YYYY-MM-DD), "unknown" without one."""

    package: Package
    day: str


@dataclass(frozen=True)
class Source:
    """Where packages may come from. mirror: as [container] debian_mirror has it, "" for the host's
    own; env: the environment, whose LLM_DEBIAN_MIRROR goes before it."""

    mirror: str
    env: dict[str, str]
    access: fetch.Access


def get(
    locked: Locked, packages: store.Store, folder: Path, source: Source, image: str,
    stop: threading.Event,
) -> Path:
    """Fetch one package into the archive from the first mirror that has it.

    Raises GoneError where none has, LLMError where a mirror could not be asked.
    """
    package = locked.package
    gone = f"make lock IMAGE={image}   (today's versions), or name a mirror that keeps old ones, " \
           "such as\nLLM_DEBIAN_MIRROR='https://SNAPSHOTS/debian/{date}T000000Z " \
           "https://SNAPSHOTS/debian-security/{date}T000000Z',\nor an archive of all inputs in " \
           "LLM_ARCHIVE_DIR"
    what = f"Debian package {package.name} {package.version}"
    errors: list[LLMError] = []
    for mirrors in mirrors_of(source.env, source.mirror, locked.day):
        uri = mirrors[package.archive] + urllib.parse.quote(package.path)
        try:
            part, sha256 = fetch.download(uri, {package.sha256}, folder, what, gone, source.access,
                                          stop)
        except LLMError as error:
            errors.append(error)
            continue
        return store.add(packages, part, sha256, package.file_name)
    if not errors:
        raise LLMError(f"cannot fetch {what}", "no Debian mirror is known: this host's APT names "
                       "no Debian archive", "set LLM_DEBIAN_MIRROR='URL-of-debian URL-of-debian-"
                       "security', or an archive of all inputs in LLM_ARCHIVE_DIR")
    found = next((e for e in errors if not isinstance(e, fetch.GoneError)), errors[0])
    if isinstance(found, fetch.UnreachableError):
        raise fetch.UnreachableError(found.what, found.why, f"{found.fix}, or name another mirror "
                                     "in LLM_DEBIAN_MIRROR, or an archive of all inputs in "
                                     "LLM_ARCHIVE_DIR")
    raise found


def collect(
    wanted: Sequence[Locked], packages: store.Store, source: Source, image: str,
) -> list[tuple[Package, Path]]:
    """Return the packages with their files in the archive, fetched where they are missing.

    image: whose lock they are of, for messages. Raises one LLMError that names every package that
    can't be had.
    """
    have = parallel.run_all([
        lambda stop, p=w.package: store.find(packages, p.sha256, p.file_name)  # type: ignore[misc]
        for w in wanted])
    files = {w.package: path for w, path in zip(wanted, have) if isinstance(path, Path)}
    missing = [w for w in wanted if w.package not in files]
    if missing:
        folder = store.incoming(packages)
        results = parallel.run_all(
            [lambda stop, w=w: get(w, packages, folder, source, image, stop)  # type: ignore[misc]
             for w in missing], f"fetching {len(missing)} Debian packages, "
            f"{sum(w.package.size for w in missing) / 1e6:.0f} MB")
        failed = [r.error for r in results if isinstance(r, parallel.Failed)]
        if failed:
            raise parallel.together(failed, len(missing))
        files.update((w.package, r) for w, r in zip(missing, results) if isinstance(r, Path))
    return [(w.package, files[w.package]) for w in wanted]
