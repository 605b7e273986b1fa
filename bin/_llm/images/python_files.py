"""The Python files that a lock stands for: which one of each package, and where to get it.

A lock names each package's version and the hashes of all its files. The file to take is the one
that pip would: the best wheel for the images' Python (PEP 425), else the source. It is looked for
in the archive first, then in the folders and indexes (PEP 503) that pip is configured with. A file
with another hash is never taken.
"""

from __future__ import annotations

import html.parser
import http.client
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _llm import fetch, setup
from _llm.debian import sha256_of
from _llm.errors import LLMError
from _llm.images import parallel, store
from _llm.images.pip_settings import PipSettings, folder_of

# The images' Python and glibc (Debian bookworm's).
PYTHON_MINOR = 11
GLIBC_MINOR = 36
LEGACY_PLATFORMS = {17: "manylinux2014_x86_64", 12: "manylinux2010_x86_64",
                    5: "manylinux1_x86_64"}
# What the parser raises for `<![` and words that HTML does not know, depending on Python's version.
BROKEN_PAGE = (AssertionError, NotImplementedError)
SOURCE_ENDINGS = (".tar.gz", ".zip", ".tar.bz2")
GONE = ("`make lock IMAGE=…` takes today's versions; or let pip's configuration (index-url, "
        "extra-index-url, find-links) reach what has it, or name an archive in LLM_ARCHIVE_DIR")
TORCH = ("\ntorch's CPU build is not in the general package index: add PyTorch's own wheel index "
         "or a\nfolder with the wheel to pip's configuration: pip config set global.find-links DIR")


@dataclass(frozen=True)
class Locked:
    """One package of a lock: name and version as the lock writes them, its files' hashes."""

    name: str
    version: str
    hashes: frozenset[str]


@dataclass(frozen=True)
class Link:
    """A file that an index or a folder offers. sha256: "" where it does not say."""

    name: str
    uri: str
    sha256: str


def read_python_lock(path: Path) -> list[Locked]:
    """Return the packages of a lock. Raises LLMError that names every line of another form."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    found, faults = [], []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "--index", "--extra-index")):
            continue
        package = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?={2,3}([^\s;]+)", line)
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)", line)
        if package and hashes and len(hashes) == line.count("--hash="):
            found.append(Locked(package.group(1), package.group(2), frozenset(hashes)))
        else:
            faults.append(line.strip()[:70])
    if faults:
        raise LLMError(f"{path} is not a lock of Python packages", "no version with SHA-256 in: "
                       + "\n       ".join(faults), f"make lock IMAGE={path.parent.name}, or "
                       "restore the file from git")
    return found


def normalized(name: str) -> str:
    """A package's name as indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def canonical(version: str) -> str:
    """A version as locks write it: a file may be named 2024.02.02 (PEP 440)."""
    return re.sub(r"(?<![0-9A-Za-z])0+(?=\d)", "", version.lower())


def _platforms() -> list[str]:
    found = []
    for minor in range(GLIBC_MINOR, 4, -1):
        found.append(f"manylinux_2_{minor}_x86_64")
        if minor in LEGACY_PLATFORMS:
            found.append(LEGACY_PLATFORMS[minor])
    return [*found, "linux_x86_64"]


def _tags() -> dict[str, int]:
    """Wheel tags that the images' Python takes -> rank, 0 the best; pip's order (PEP 425)."""
    this, older = PYTHON_MINOR, range(PYTHON_MINOR - 1, 1, -1)
    platforms = _platforms()
    tags = [f"cp3{this}-{abi}-{p}" for abi in (f"cp3{this}", "abi3", "none") for p in platforms]
    tags += [f"cp3{minor}-abi3-{p}" for minor in older for p in platforms]
    pythons = [f"py3{this}", "py3", *(f"py3{minor}" for minor in range(this - 1, -1, -1))]
    tags += [f"{python}-none-{p}" for python in pythons for p in platforms]
    tags += [f"{python}-none-any" for python in (f"cp3{this}", *pythons)]
    return {tag: rank for rank, tag in enumerate(tags)}


TAGS = _tags()


def rank_of(name: str) -> tuple[int, int, str] | None:
    """How good a file is for the images, smaller is better; None for one that does not fit."""
    if name.endswith(SOURCE_ENDINGS):
        return len(TAGS), 0, name
    fields = name.removesuffix(".whl").split("-")
    if not name.endswith(".whl") or len(fields) not in (5, 6):
        return None
    pythons, abis, platforms = (field.split(".") for field in fields[-3:])
    ranks = [TAGS[tag] for p in pythons for a in abis for o in platforms
             if (tag := f"{p}-{a}-{o}") in TAGS]
    build = re.match(r"\d+", fields[2]) if len(fields) == 6 else None
    return (min(ranks), -int(build.group()) if build else 0, name) if ranks else None


def belongs_to(name: str, package: Locked) -> bool:
    """Whether a file's name says that it is of this package and version."""
    if name.endswith(".whl"):
        fields = name.split("-")
        return (normalized(fields[0]) == normalized(package.name) and len(fields) > 1
                and canonical(fields[1]) == canonical(package.version))
    stem = next((name[:-len(end)] for end in SOURCE_ENDINGS if name.endswith(end)), "")
    project, _, version = stem.rpartition("-")
    return (normalized(project) == normalized(package.name)
            and canonical(version) == canonical(package.version))


def candidates(packages: store.Store, package: Locked) -> list[tuple[str, str]]:
    """The package's files in the archive that fit, as (hash, name), the best first; not checked."""
    found = [(rank, name, sha256) for sha256 in package.hashes
             for name in store.names_of(packages, sha256) if (rank := rank_of(name)) is not None]
    return [(sha256, name) for _, name, sha256 in sorted(found)]


def kept(packages: store.Store, package: Locked) -> Path | None:
    """The package's best file in the archive, its content checked, None where it has none."""
    for sha256, name in candidates(packages, package):
        found = store.find(packages, sha256, name)
        if found:
            return found
    return None


class Links(html.parser.HTMLParser):
    """The files that a page of an index names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page
        self.found: list[Link] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the address of each link, its hash from the fragment."""
        values = dict(attrs)
        if tag == "base" and values.get("href"):
            self.page = urllib.parse.urljoin(self.page, values["href"])
        if tag != "a" or not values.get("href"):
            return
        try:
            uri, fragment = urllib.parse.urldefrag(
                urllib.parse.urljoin(self.page, values["href"] or ""))
            name = urllib.parse.unquote(urllib.parse.urlsplit(uri).path.rsplit("/", 1)[-1])
        except ValueError:
            return
        digest = re.search(r"(?:^|&)sha256=([0-9a-f]{64})", fragment)
        self.found.append(Link(name, uri, digest.group(1) if digest else ""))


def links_on(page: str, access: fetch.Access) -> list[Link]:
    """The files that a page names; empty where there is no such page.

    Raises LLMError where the server can't be reached or sends no page.
    """
    try:
        with fetch.open_uri(page, access, {"Accept": "text/html"}) as answer:
            parser = Links(answer.geturl())
            parser.feed(answer.read().decode("utf-8", "replace"))
            parser.close()
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):
            return []
        raise LLMError(f"cannot read {_without_account(page)}", f"HTTP status {error.code}",
                       "check pip's configuration and the network") from None
    except (OSError, ValueError, http.client.HTTPException, *BROKEN_PAGE) as error:
        if isinstance(error, OSError) and page.startswith("file:"):
            return []
        kind = fetch.UnreachableError if isinstance(error, fetch.SilentError) else LLMError
        raise kind(f"cannot read {_without_account(page)}",
                   str(getattr(error, "reason", error)),
                   "check pip's configuration, network and proxy, or name an archive of all "
                   "inputs in LLM_ARCHIVE_DIR") from None
    return parser.found


def _without_account(uri: str) -> str:
    """An address without the name and password that may be in it."""
    split = urllib.parse.urlsplit(uri)
    return urllib.parse.urlunsplit(split._replace(netloc=split.netloc.rpartition("@")[2]))


def page_of(index: str, name: str) -> str:
    """Address of an index's page of a package."""
    folder = folder_of(index)
    if folder:
        return Path(folder, normalized(name), "index.html").as_uri()
    return f"{index.rstrip('/')}/{normalized(name)}/"


def offered(package: Locked, settings: PipSettings, access: fetch.Access) -> list[Link]:
    """Every file of the package that pip's folders and indexes offer and the lock allows."""
    found: list[Link] = []
    pages = [] if settings.no_index else [page_of(index, package.name) for index in
                                          (settings.index, *settings.extra_indexes)]
    unreachable = []
    for link in settings.find_links:
        folder = folder_of(link)
        if not folder:
            pages.append(link)
            continue
        try:
            found += [Link(name, Path(folder, name).as_uri(), "")
                      for name in sorted(os.listdir(folder)) if belongs_to(name, package)]
        except OSError as error:
            unreachable.append(LLMError(f"cannot read {folder}", str(error.strerror),
                                        "make it readable, or leave it out of pip's find-links"))
    for page in pages:
        try:
            found += links_on(page, access)
        except LLMError as error:
            unreachable.append(error)
    fitting = [link for link in found if (link.sha256 in package.hashes if link.sha256
                                          else belongs_to(link.name, package))]
    if not fitting and unreachable:
        raise unreachable[0]
    return sorted((link for link in fitting if rank_of(link.name) is not None),
                  key=lambda link: (rank_of(link.name), not link.sha256))


def get(
    package: Locked, packages: store.Store, folder: Path, settings: PipSettings,
    access: fetch.Access, stop: threading.Event,
) -> Path:
    """Fetch the package's best file into the archive.

    folder: for files that are under way. Raises LLMError where no index offers one of the lock's.
    """
    what = f"Python package {package.name} {package.version}"
    gone = GONE + (TORCH if package.name == "torch" else "")
    reason = "none of the indexes and folders that pip is configured with has a file with one of " \
             "the lock's SHA-256"
    for link in offered(package, settings, access):
        local = folder_of(link.uri)
        if not link.sha256 and local and sha256_of(Path(local)) not in package.hashes:
            continue
        accepted = {link.sha256} if link.sha256 else package.hashes
        try:
            part, sha256 = fetch.download(link.uri, accepted, folder, what, gone, access, stop)
        except fetch.GoneError as error:
            reason = error.why
            continue
        return store.add(packages, part, sha256, link.name)
    raise fetch.GoneError(f"cannot fetch {what}", reason, gone)


def collect(
    locks: Sequence[Path], packages: store.Store, settings: PipSettings,
) -> list[Path]:
    """Return the files in the archive that the locks stand for, fetched where they are missing.

    Raises one LLMError that names every package that can't be had.
    """
    wanted = list(dict.fromkeys(p for lock in locks for p in read_python_lock(lock)))
    have = parallel.run_all([lambda stop, p=p: kept(packages, p) for p in wanted])  # type: ignore[misc]
    missing = [p for p, path in zip(wanted, have) if not isinstance(path, Path)]
    got: dict[Locked, Path] = {p: path for p, path in zip(wanted, have) if isinstance(path, Path)}
    if missing:
        folder = store.incoming(packages)
        if not settings.index and not settings.no_index:
            settings = with_default_index(settings)
        access = fetch.Access(settings.ca_bundle, settings.trusted_hosts)
        results = parallel.run_all(
            [lambda stop, p=p: get(p, packages, folder, settings, access, stop)  # type: ignore[misc]
             for p in missing], f"fetching {len(missing)} Python files")
        failed = [r.error for r in results if isinstance(r, parallel.Failed)]
        if failed:
            raise parallel.together(failed, len(missing))
        got.update((p, r) for p, r in zip(missing, results) if isinstance(r, Path))
    return list(dict.fromkeys(got[p] for p in wanted))


def with_default_index(settings: PipSettings) -> PipSettings:
    """The settings with the index that pip itself has when none is configured.

    Its address is pip's to know: `pip download --help` tells it. Raises LLMError without a pip.
    """
    from dataclasses import replace

    for command in ([sys.executable, "-m", "pip"], ["python3", "-m", "pip"],
                    [sys.executable, "wheel"]):
        try:
            if command[-1] == "wheel":
                command[-1] = f"{setup.pip_wheel()}/pip"
            done = subprocess.run([*command, "download", "--help"], capture_output=True, text=True,
                                  check=False, env={**os.environ, "COLUMNS": "500"})
        except (OSError, LLMError):
            continue
        found = re.search(r"Package Index\s+\(default\s+(\S+?)\)", done.stdout)
        if found:
            return replace(settings, index=found.group(1))
    raise LLMError("no index of Python packages is known", "pip's configuration names none and "
                   "there is no pip on this host", "pip config set global.index-url ADDRESS, or "
                   "PIP_INDEX_URL=ADDRESS make image")
