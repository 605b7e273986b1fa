"""Every path of an installation, in one place.

    PREFIX/0.1.0             link to the build of this version that is in use
    PREFIX/.versions/…       the builds: bin, recipes, sites, share
    PREFIX/images            images, for all versions
    PREFIX/sites             the administrator's own site profiles, for all versions
    PREFIX/.tools            an Apptainer of its own, where the checkout has one
    MODULEPATH/llm/0.1.0     modulefiles

A version's name is a link, so that it changes in one step, and so that a job that runs keeps the
build with which it started. Every link is relative: PREFIX may be moved or mounted elsewhere.

    make install PREFIX=/apps/llm
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULE = "llm"
# No dash: `0.1.0-cpu` is a module of 0.1.0, `0.1.0-x8k2p1aq` a build of it.
VERSION_NAME = re.compile(r"\d+(\.\d+)*[\w.+]*")


@dataclass(frozen=True)
class Layout:
    """The paths of one version below `prefix`, its modulefiles in `modulepath`."""

    prefix: Path
    version: str
    modulepath: Path

    @property
    def link(self) -> Path:
        """What users and modulefiles name: the link to the build in use."""
        return self.prefix / self.version

    @property
    def builds(self) -> Path:
        """The folder of all builds of all versions."""
        return self.prefix / ".versions"

    @property
    def images(self) -> Path:
        """Images of all versions."""
        return self.prefix / "images"

    @property
    def sites(self) -> Path:
        """The administrator's own site profiles."""
        return self.prefix / "sites"

    @property
    def tools(self) -> Path:
        """Programs that the checkout brought with it."""
        return self.prefix / ".tools"

    @property
    def modules(self) -> Path:
        """The folder of the modulefiles; its name is the module's."""
        return self.modulepath / MODULE

    def current(self) -> Path | None:
        """Return the build in use, None where this version is not installed."""
        if not self.link.is_symlink():
            return None
        build = self.builds / os.path.basename(os.readlink(self.link))
        return build if build.is_dir() else None

    def is_foreign(self) -> bool:
        """Say whether something is in the place of this version that `make install` did not make.

        That is: no link to one of the builds.
        """
        if not os.path.lexists(self.link):
            return False
        return not self.link.is_symlink() or os.path.dirname(
            os.readlink(self.link)) != self.builds.name

    def installed(self) -> list[str]:
        """Return the versions that are installed below `prefix`, the oldest first."""
        found = []
        for link in self.prefix.iterdir() if self.prefix.is_dir() else ():
            other = Layout(self.prefix, link.name, self.modulepath)
            if VERSION_NAME.fullmatch(link.name) and not other.is_foreign() and other.current():
                found.append(link.name)
        return sorted(found, key=version_order)

    def builds_of_this_version(self) -> Iterator[Path]:
        """Give the folders of all builds of this version, in use and replaced."""
        for build in sorted(self.builds.glob("*")) if self.builds.is_dir() else ():
            if build_version(build.name) == self.version:
                yield build


def build_version(name: str) -> str:
    """Return the version that a build's folder names: `0.1.0-x8k2p1aq` is one of 0.1.0."""
    return name.rpartition("-")[0]


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts versions: 0.9 before 0.10, and 1.0rc1 before 1.0.

    Numbers come before the end, letters before both (PEP 440 has it so, too).
    """
    parts = re.findall(r"\d+|[a-zA-Z]+", version)
    key = [(2, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
    return (*key, (1, 0, ""))


def make_folders(*folders: Path) -> None:
    """Make folders that are not there, with those above them."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
