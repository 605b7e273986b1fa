"""A local Debian repository made of exactly the locked packages, for dpkg and apt-get.

Every file's SHA-256 was checked against the lock when it was fetched, and the lock was made from
the archive's signed lists, so the repository itself is not signed.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from _llm.debian import Package
from _llm.errors import LLMError

SUITE = "bookworm"


def make_repository(packages: Iterable[tuple[Package, Path]], folder: Path) -> None:
    """Fill `folder` with packages, given with their files, and the indices that APT reads."""
    pool = folder / "pool"
    pool.mkdir(parents=True)
    stanzas = []
    for package, file in packages:
        target = pool / package.file_name
        try:
            os.link(file, target)
        except OSError:  # another file system, or links are not allowed
            shutil.copyfile(file, target)
        stanzas.append(
            f"{control_of(file).rstrip()}\nFilename: pool/{package.file_name}\n"
            f"Size: {package.size}\nSHA256: {package.sha256}\n"
        )
    index = folder / "dists" / SUITE / "main" / "binary-amd64"
    index.mkdir(parents=True)
    text = "".join(f"{stanza}\n" for stanza in stanzas).encode()
    (index / "Packages").write_bytes(text)
    (folder / "dists" / SUITE / "Release").write_text(
        f"Origin: locked\nDate: Thu, 01 Jan 1970 00:00:00 UTC\nSuite: {SUITE}\n"
        f"Codename: {SUITE}\nArchitectures: amd64\nComponents: main\nSHA256:\n"
        f" {hashlib.sha256(text).hexdigest()} {len(text)} main/binary-amd64/Packages\n"
    )


def control_of(file: Path) -> str:
    """Return the control stanza of a .deb (deb(5)): what an index says about a package."""
    with open(file, "rb") as stream:
        stream.read(8)
        while header := stream.read(60):
            name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
            data = stream.read(size + size % 2)
            if name.startswith("control.tar"):
                with tarfile.open(fileobj=io.BytesIO(data[:size])) as archive:
                    member = archive.extractfile("./control")
                    assert member is not None
                    return member.read().decode()
    raise LLMError(f"{file} is no Debian package", "it holds no control file", f"rm {file}")
