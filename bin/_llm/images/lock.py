"""Refresh the locks of an image: Debian packages and Python packages, versions and hashes.

    make lock IMAGE=llm            # every variant whose index is reachable
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _llm.debian import Package, PrivateApt, host_archives
from _llm.errors import LLMError
from _llm.images import pip_settings
from _llm.images.catalog import children_of, load_image, parent_of, variants_of
from _llm.images.locks import read_apt_lock, read_names, write_apt_lock, write_text

DEBIAN_SUITE = "bookworm"
PYTHON_VERSION = "3.11"
# Debian 12 has glibc 2.36; wheels for anything older install.
PYTHON_PLATFORM = "x86_64-manylinux_2_31"


def lock_image(
    containers: Path, name: str, variants: Sequence[str], state: Path, uv: str,
    keep: bool = False,
) -> list[str]:
    """Lock an image; return a line a changed lock for people.

    variants: the ones to lock, empty for all. state: folder for APT's lists. uv: the program.
    keep: only what requirements.in demands changes; versions that are locked stay as they are.
    Debian's packages must fit the parent's exactly (libc6-dev wants its own libc6), so when they
    moved since the parent was locked, the parent's and its children's Debian packages are locked
    again too.
    """
    load_image(containers, name, (variants_of(containers, name) or [""])[0])
    report = [] if keep else lock_debian(containers, name, state)
    chosen = list(variants) or variants_of(containers, name)
    unreachable = []
    for variant in sorted(chosen, key=lambda v: v != "cpu"):
        try:
            report += lock_python(containers / name, variant, uv, keep)
        except LLMError as error:
            # cpu must be lockable everywhere, and the others are held to what it pins.
            if variant in variants or variant == "cpu":
                raise
            unreachable.append((variant, error.why))
    if chosen and not keep:
        report += lock_file(containers / "build.in", containers / "build.lock", uv)
        for source in sorted((containers / name).glob("*/*.in")):
            report += lock_file(source, source.with_suffix(".lock"), uv, dependencies=False)
    return report + [f"{name}-{variant}: not locked: {why}" for variant, why in unreachable]


def lock_debian(containers: Path, name: str, state: Path) -> list[str]:
    """Lock the Debian packages of an image, and of its relatives where they have to move along."""
    archives = [a for a in host_archives() if a.suite.startswith(DEBIAN_SUITE)]
    if not archives:
        raise LLMError("Debian packages can't be locked on this host", f"its APT names no archive "
                       f"of Debian {DEBIAN_SUITE}, whose signed lists it takes", "run make lock on "
                       "a Debian 12 machine")
    apt = PrivateApt(state / "apt-lock", archives)
    apt.update()
    root = name
    while parent_of(containers / root / "image.def"):
        root = parent_of(containers / root / "image.def")
    base = apt.resolve([*apt.required(), *read_names(containers / root / "apt.in")])
    if root == name:
        family = [root, *children_of(containers, root)]
    else:
        moved = set(base) != set(read_apt_lock(containers / root / "apt.lock"))
        family = [root, *children_of(containers, root)] if moved else [name]
    report = []
    for member in family:
        for variant in variants_of(containers, member) or [""]:
            folder = containers / member
            suffix = f"-{variant}" if variant else ""
            packages: Sequence[Package] = base
            if member != root:
                names = read_names(folder / "apt.in") + read_names(folder / f"apt{suffix}.in")
                everything = apt.resolve([*(p.name for p in base), *names])
                packages = [p for p in everything if p not in base]
            lock = folder / f"apt{suffix}.lock"
            old = {p.name: p.version for p in read_apt_lock(lock)}
            if set(packages) != set(read_apt_lock(lock)) or not lock.exists():
                write_apt_lock(lock, packages, f"make lock IMAGE={member}")
                report += changes(lock, old, {p.name: p.version for p in packages})
    return report


def lock_python(folder: Path, variant: str, uv: str, keep: bool = False) -> list[str]:
    """Lock the Python packages of one variant.

    Every variant pins what cpu pins, except torch.
    """
    sources = [folder / "requirements.in", folder / f"requirements-{variant}.in"]
    target = folder / f"requirements-{variant}.lock"
    constraints = []
    if variant != "cpu":
        cpu = folder / "requirements-cpu.lock"
        constraints = [f"{n}=={v}" for n, v in pins(cpu).items() if n != "torch"]
    if keep:
        constraints += [f"{name}=={version}" for name, version in pins(target).items()]
    return compile_lock(sources, target, uv, constraints, True,
                        f"make lock IMAGE={folder.name} VARIANT={variant}")


def lock_file(source: Path, target: Path, uv: str, dependencies: bool = True) -> list[str]:
    """Lock a single file of requirements."""
    return compile_lock([source], target, uv, [], dependencies, "make lock")


def compile_lock(
    sources: Sequence[Path], target: Path, uv: str, constraints: Sequence[str],
    dependencies: bool, command: str,
) -> list[str]:
    """Resolve requirements with uv into a lock with hashes. Raises LLMError with uv's words."""
    settings = pip_settings.read_pip_settings(os.environ, Path(os.path.expanduser("~")))
    env = {**os.environ, **pip_settings.package_environment(settings, "", os.environ)}
    with tempfile.TemporaryDirectory() as scratch:
        constraint = Path(scratch) / "constraints.txt"
        constraint.write_text("\n".join(constraints) + "\n")
        output = Path(scratch) / "lock"
        done = subprocess.run(
            [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes",
             "--upgrade", "--python-version", PYTHON_VERSION, "--python-platform", PYTHON_PLATFORM,
             *([] if dependencies else ["--no-deps"]),
             *(["--no-index"] if settings.no_index else []), "--constraint", str(constraint),
             "--output-file", str(output), *map(str, sources)],
            capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            tail = "\n       ".join(done.stderr.strip().splitlines()[-6:])
            raise LLMError(f"{target.name} could not be resolved", tail,
                           "correct the requirements, or let pip's configuration reach the index "
                           "that has the packages")
        text = output.read_text()
    old = pins(target)
    today = datetime.date.today().isoformat()
    if target.exists() and body(target.read_text()) == text:
        return []
    write_text(target, f"# locked: {today}\n# by: {command}\n{text}")
    return changes(target, old, pins(target))


def pins(lock: Path) -> dict[str, str]:
    """Return package -> version of a lock of Python packages; empty where there is none."""
    if not lock.exists():
        return {}
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?==(\S+)", lock.read_text(), re.MULTILINE)
    return dict(found)


def body(text: str) -> str:
    """A lock without its two lines of header."""
    return re.sub(r"\A(# (locked|by): .*\n)+", "", text)


def changes(lock: Path, old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Describe what changed between two sets of pins, a line a package."""
    where = f"{lock.parent.name}/{lock.name}"
    if not old:
        return [f"{where}: {len(new)} packages"]
    lines = [f"{where}: {name} {old.get(name, 'none')} -> {new.get(name, 'none')}"
             for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return lines or [f"{where}: hashes changed"]


def find_uv(home: Path) -> str:
    """Path of uv: the project's own environment, else PATH. Raises LLMError without one."""
    own = home / ".tools" / "venv" / "bin" / "uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if not found:
        raise LLMError("uv is missing", "it resolves the Python packages", "make lock")
    return found
