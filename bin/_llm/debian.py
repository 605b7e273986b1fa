"""Debian packages without touching the system: look them up, fetch them, unpack them.

Everything goes through the host's own `apt-get` with a private state folder, so its mirror, proxy,
certificates and keys are used and nothing of the host changes. Works as an ordinary user. Try it:

    sh bin/_llm/tool.sh setup --show-packages apptainer
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from _llm.errors import LLMError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Archive:
    """One suite of one Debian mirror, as the host has it configured."""

    uri: str
    suite: str


@dataclass(frozen=True)
class Package:
    """One binary package as a mirror offers it; `path` is relative to the archive's root."""

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    path: str
    archive: str  # "main" or "security": which mirror has it

    @property
    def file_name(self) -> str:
        """A name for the package's file that no other package shares."""
        return os.path.basename(self.path)


def host_archives() -> tuple[Archive, ...]:
    """Return the Debian archives that this host's APT is configured with, the main one first.

    Empty where there is no `apt-get`, or where it knows no Debian suites (Ubuntu, Red Hat).
    """
    if not shutil.which("apt-get"):
        return ()
    # What an update would fetch: unlike `indextargets`, it is said without any list being there.
    listing = subprocess.run(
        ["apt-get", "update", "--print-uris", "-o", "Acquire::Queue-Mode=host"],
        capture_output=True, text=True, check=False,
    ).stdout
    return archives_in(listing)


def archives_in(listing: str) -> tuple[Archive, ...]:
    """Return the Debian archives in what `apt-get update --print-uris` printed, as configured.

    Its hosts stand in the reverse order of the configuration (each new queue goes in front).
    """
    lines = re.findall(r"^'(\S+/debian\S*)/dists/(\S+)/main/binary-", listing, re.MULTILINE)
    hosts = groupby(lines, key=lambda line: urllib.parse.urlsplit(line[0])[:2])
    by_host = [[Archive(f"{uri}/", suite) for uri, suite in of_host] for _, of_host in hosts]
    found = dict.fromkeys(archive for host in reversed(by_host) for archive in host)
    return tuple(sorted(found, key=lambda archive: "-" in archive.suite))


def debian_mirrors(env: dict[str, str], configured: str = "") -> dict[str, str]:
    """Return the first mirrors to fetch from: {"main": URI, "security": URI}.

    configured: the site profile's mirrors (see mirrors_of); LLM_DEBIAN_MIRROR in env goes before
    them, the host's own APT configuration is the fallback.
    Raises LLMError where none of them names one.
    """
    found = mirrors_of(env, configured, "unknown")
    if not found:
        raise LLMError(
            "no Debian mirror is known",
            "the images are made of Debian packages and this host's APT names no Debian archive",
            "set LLM_DEBIAN_MIRROR='URL-of-debian URL-of-debian-security'",
        )
    return found[0]


def mirrors_of(env: dict[str, str], configured: str, day: str) -> list[dict[str, str]]:
    """Return the mirrors to ask for packages locked on a day, each as {"main": …, "security": …}.

    configured: `BOTH`, `MAIN SECURITY`, or several pairs `MAIN SECURITY MAIN SECURITY …`, asked in
    this order. A pair with `{date}` names an archive of snapshots; it is asked last, first as of
    the day (YYYYMMDD), which is how it began, then as of the next. Where no other pair is named,
    the host's own APT archives go before it. Empty where nothing is known.
    Raises LLMError for an odd number of addresses.
    """
    words = (env.get("LLM_DEBIAN_MIRROR") or configured).split()
    if len(words) == 1:
        words *= 2
    if len(words) % 2:
        raise LLMError(f"{len(words)} Debian mirrors are no pairs", "LLM_DEBIAN_MIRROR or "
                       "[container] debian_mirror names them: " + " ".join(words),
                       "name two for each mirror: URL-of-debian URL-of-debian-security")
    pairs = list(zip(words[::2], words[1::2]))
    dated = [pair for pair in pairs if "{date}" in "".join(pair)]
    plain = [pair for pair in pairs if pair not in dated] or list(_own_mirrors())
    for date in _dates(day):
        plain += [(main.replace("{date}", date), security.replace("{date}", date))
                  for main, security in dated]
    return [{"main": main.rstrip("/") + "/", "security": security.rstrip("/") + "/"}
            for main, security in plain]


@functools.lru_cache(maxsize=1)
def _own_mirrors() -> list[tuple[str, str]]:
    """The archives that the host's APT is configured with, as one pair; empty without."""
    archives = host_archives()
    if not archives:
        return []
    security = [a.uri for a in archives if a.suite.endswith("-security")]
    return [(archives[0].uri, security[0] if security else archives[0].uri)]


def _dates(day: str) -> list[str]:
    """A day and the next as YYYYMMDD; empty for what is no day."""
    try:
        first = datetime.date.fromisoformat(day)
    except ValueError:
        return []
    return [f"{date:%Y%m%d}" for date in (first, first + datetime.timedelta(days=1))]


class PrivateApt:
    """`apt-get` on a state folder of its own, for the given archives, knowing no installed package.

    folder: kept between calls (package lists). archives: what to look packages up in.
    """

    def __init__(self, folder: Path, archives: Sequence[Archive]) -> None:
        self.folder = folder.resolve()
        self.archives = archives
        for name in ("lists/partial", "cache/archives/partial", "empty"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_text("")
        signed = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""
        (self.folder / "sources.list").write_text(
            "".join(f"deb {signed}{a.uri} {a.suite} main\n" for a in archives)
        )
        (self.folder / "apt.conf").write_text(
            f'Dir::State "{self.folder}";\n'
            f'Dir::State::lists "{self.folder}/lists";\n'
            f'Dir::State::status "{self.folder}/status";\n'
            f'Dir::Cache "{self.folder}/cache";\n'
            f'Dir::Etc::sourcelist "{self.folder}/sources.list";\n'
            f'Dir::Etc::sourceparts "{self.folder}/empty";\n'
            f'Dir::Etc::preferencesparts "{self.folder}/empty";\n'
            'Dir::Etc::preferences "/dev/null";\n'
            'Debug::NoLocking "1";\nAPT::Sandbox::User "";\n'
            'Acquire::Languages "none";\nAPT::Architectures { "amd64"; };\n'
        )

    def run(self, program: str, *arguments: str) -> str:
        """Run an APT program on this state and return what it printed.

        Raises LLMError with APT's own last lines when it fails.
        """
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False,
            env={**os.environ, "APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C"},
        )
        if done.returncode:
            raise LLMError(
                f"{program} {arguments[0]} failed",
                "\n       ".join((done.stderr or done.stdout).strip().splitlines()[-4:]),
                "check the mirror in /etc/apt and the network, then the same command again",
            )
        return done.stdout

    def update(self) -> None:
        """Fetch the package lists."""
        self.run("apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any")

    def resolve(self, names: Iterable[str]) -> list[Package]:
        """Return the named packages with everything that they depend on, sorted by name."""
        listing = self.run(
            "apt-get", "install", "-qq", "--yes", "--no-install-recommends", "--print-uris", *names
        )
        uris = [line.split("'")[1] for line in listing.splitlines() if line.startswith("'")]
        records = self._records()
        return sorted((records[urllib.parse.unquote(uri)] for uri in uris), key=lambda p: p.name)

    def required(self) -> list[str]:
        """Names of the packages that every Debian system has, with `apt`."""
        names = {"apt"}
        for record in _stanzas(self.run("apt-cache", "dumpavail")):
            if record.get("Priority") == "required" or record.get("Essential") == "yes":
                names.add(record["Package"])
        return sorted(names)

    def _records(self) -> dict[str, Package]:
        """Every package file of the archives, by its URI."""
        found: dict[str, Package] = {}
        for archive in self.archives:
            security = archive.suite.endswith("-security")
            targets = self.run(
                "apt-get", "indextargets", "--format", "$(FILENAME)",
                "Created-By: Packages", f"Release: {archive.suite}",
            )
            for filename in targets.splitlines():
                text = self.run("/usr/lib/apt/apt-helper", "cat-file", filename)
                for record in _stanzas(text):
                    package = Package(
                        record["Package"], record["Version"], record["Architecture"],
                        record["SHA256"], int(record["Size"]), record["Filename"],
                        "security" if security else "main",
                    )
                    found[urllib.parse.unquote(archive.uri + record["Filename"])] = package
        return found


def fetch(package: Package, mirrors: dict[str, str], cache: Path) -> Path:
    """Return the package's file from the cache folder, fetched when absent, its SHA-256 checked.

    Files lie in the cache under their hash, so that two versions never meet.
    Raises LLMError where the mirror no longer has it or sent something else.
    """
    from _llm.fetch import fetch_file

    target = cache / package.sha256[:2] / f"{package.sha256}.deb"
    uri = mirrors[package.archive] + urllib.parse.quote(package.path)
    return fetch_file(
        uri, package.sha256, target, what=f"Debian package {package.name} {package.version}",
        gone="the mirror no longer carries this version: `make lock IMAGE=…` takes today's "
        "versions, or name a snapshot mirror in LLM_DEBIAN_MIRROR",
    )


def unpack(file: Path, folder: Path) -> None:
    """Unpack a binary package's files into a folder (owners are ignored).

    A .deb is an `ar` archive with one compressed tar of files in it (deb(5)); read here, so that
    hosts without dpkg can do it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(file, "rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise LLMError(f"{file} is no Debian package", "it does not begin as one", f"rm {file}")
        while header := stream.read(60):
            name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
            data = stream.read(size + size % 2)
            if name.startswith("data.tar"):
                with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                    _extract(archive, folder)
                return
    raise LLMError(f"{file} is no Debian package", "it holds no data.tar", f"rm {file}")


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Extract without owners, special modes or anything that points outside the folder, also by a
    link that another package made."""
    root = os.path.realpath(folder) + os.sep

    @functools.lru_cache(maxsize=1)  # files of a folder follow each other
    def is_inside(parent: Path) -> bool:
        return f"{os.path.realpath(parent)}{os.sep}".startswith(root)

    for member in archive.getmembers():
        path = os.path.normpath(member.name)
        if path.startswith(("..", "/")) or not (member.isfile() or member.isdir()
                                                or member.issym() or member.islnk()):
            continue
        target, source_of_link = folder / path, folder / os.path.normpath(member.linkname)
        if not is_inside(target.parent) or (member.islnk() and not is_inside(source_of_link)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.isdir():
            target.mkdir(exist_ok=True)
        elif member.issym():
            target.unlink(missing_ok=True)
            target.symlink_to(member.linkname)
        elif member.islnk():
            target.unlink(missing_ok=True)
            shutil.copy2(source_of_link, target)
        else:
            source = archive.extractfile(member)
            assert source is not None
            target.unlink(missing_ok=True)
            target.write_bytes(source.read())
            target.chmod(member.mode & 0o777)


def _stanzas(text: str) -> Iterable[dict[str, str]]:
    """Parse Debian control stanzas; continuation lines are dropped."""
    for block in text.split("\n\n"):
        record: dict[str, str] = {}
        for line in block.splitlines():
            if line[:1] not in (" ", "\t") and ": " in line:
                key, value = line.split(": ", 1)
                record[key] = value.strip()
        if "Filename" in record or "Package" in record:
            yield record


def sha256_of(file: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
