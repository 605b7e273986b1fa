"""What a build fetches: the locks of an image that name files from elsewhere, and the files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from _llm import fetch
from _llm.debian import Package
from _llm.images import debian_files, pip_settings, python_files, store
from _llm.images.catalog import Image, load_image
from _llm.images.locks import locked_on, read_apt_lock

COMPILED = "llama.cpp"


@dataclass(frozen=True)
class Needs:
    """Locks of one sandbox. debian: of the image and its parents; python: of its own packages and
    of the tools that a build needs. image: its name, for messages."""

    image: str
    debian: tuple[Path, ...]
    python: tuple[Path, ...]


@dataclass(frozen=True)
class Files:
    """The files of the locks, in the archive."""

    debian: tuple[tuple[Package, Path], ...]
    python: tuple[Path, ...]


def apt_lock_of(image: Image) -> Path:
    """The image's own lock of Debian packages."""
    return image.folder / (f"apt-{image.variant}.lock" if image.variant else "apt.lock")


def needs_of(image: Image, containers: Path) -> Needs:
    """What the sandbox of an image takes from outside."""
    debian, chain = [], image
    while True:
        debian.append(apt_lock_of(chain))
        if not chain.parent:
            break
        chain = load_image(containers, chain.parent)
    python = [image.folder / f"requirements-{image.variant}.lock"] if image.variant else []
    python += [lock for lock in sorted(image.folder.glob("*/*.lock"))
               if lock.parent.name != COMPILED]
    return Needs(image.name, tuple(debian), tuple(with_tools(python, containers)))


def needs_of_compiling(image: Image, flavour: str, containers: Path) -> Needs:
    """What the sandbox takes from outside in which a flavour of llama.cpp is compiled.

    image: in the variant whose Debian packages it compiles with.
    """
    scripts = image.folder / COMPILED
    compiler = scripts / f"{flavour}-compiler.lock"
    python = [scripts / "source.lock", *([compiler] if compiler.exists() else [])]
    return Needs(image.name, needs_of(image, containers).debian,
                 tuple(with_tools(python, containers)))


def with_tools(python: list[Path], containers: Path) -> list[Path]:
    """Locks of Python packages and that of the tools which install them."""
    tools = containers / "build.lock"
    return [*python, tools] if python and tools.exists() else python


def collect(needs: Needs, packages: store.Store, mirror: str) -> Files:
    """Fetch what the archive lacks and return all files.

    mirror: [container] debian_mirror. Raises LLMError that names everything that can't be had.
    """
    settings = pip_settings.read_pip_settings(os.environ, Path.home())
    source = debian_files.Source(mirror, dict(os.environ), fetch.Access())
    wanted = [debian_files.Locked(package, locked_on(lock))
              for lock in needs.debian for package in read_apt_lock(lock)]
    return Files(tuple(debian_files.collect(wanted, packages, source, needs.image)),
                 tuple(python_files.collect(needs.python, packages, settings)))
