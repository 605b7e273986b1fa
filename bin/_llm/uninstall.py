"""Remove one installed version, and nothing else.

    make uninstall PREFIX=/apps/llm VERSION=0.1.0

What was changed or added since stays and is named. Images and the administrator's site profiles
always stay.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from _llm.errors import LLMError, report
from _llm.install import find_layout
from _llm.installation import build, manifest, modulefiles, tools
from _llm.installation.layout import Layout
from _llm.run import VERSION


def main(arguments: Sequence[str]) -> int:
    """`uninstall --prefix FOLDER [--modulepath FOLDER] [--version VERSION]`."""
    parser = argparse.ArgumentParser(prog="make uninstall", description=__doc__.partition("\n")[0])
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--modulepath", default="")
    parser.add_argument("--version", default="")
    options = parser.parse_args(arguments)
    layout, faults = find_layout(options.prefix, options.modulepath, options.version or VERSION)
    if not faults and not layout.current():
        there = ", ".join(layout.installed()) or "none"
        faults.append(LLMError(
            f"version {layout.version} is not installed in {layout.prefix}",
            f"versions there: {there}", f"make uninstall PREFIX='{layout.prefix}' VERSION=…"))
    if faults:
        return report("uninstall", faults)
    stays = uninstall(layout)
    for path in stays:
        print(f"uninstall: {path} stays: it is not as it was installed")
    print(f"uninstall: {layout.version} is removed from {layout.prefix}")
    return 0


def uninstall(layout: Layout) -> list[Path]:
    """Remove a version; return what stays. Interrupted, it can be done again."""
    stays: list[Path] = []
    # Modulefiles first: nobody shall load what is about to vanish.
    modules = {layout.modules}
    hashes: dict[str, set[str]] = {}
    for folder in layout.builds_of_this_version():
        for path, hashed in manifest.read_manifest(folder).get("modulefiles", {}).items():
            modules.add(Path(path).parent)
            hashes.setdefault(os.path.basename(path), set()).add(hashed)
    for folder in modules:
        stays += remove_modulefiles(folder, hashes)
        stays += move_default(Layout(layout.prefix, layout.version, folder.parent))
    for folder in list(layout.builds_of_this_version()):
        if folder != layout.current():
            stays += manifest.remove_installed(folder)
    current = layout.current()
    if current:
        stays += manifest.remove_installed(current)
    layout.link.unlink()
    stays += tools.remove_unused(layout)
    build.remove_abandoned(layout.builds)
    for folder in modules:
        remove_if_empty(folder)
        if folder.parent.is_relative_to(layout.prefix):
            remove_if_empty(folder.parent)
    if not layout.installed():
        for name in (layout.builds, layout.images, layout.sites, layout.tools, layout.prefix):
            remove_if_empty(name)
    return sorted(set(stays))


def remove_modulefiles(folder: Path, hashes: dict[str, set[str]]) -> list[Path]:
    """Remove those modulefiles that are as they were written; return the others.

    hashes: name -> what each installation of this version wrote.
    """
    stays = []
    for name, written in hashes.items():
        path = folder / name
        if path.is_file():
            if manifest.fingerprint(path) in written:
                path.unlink()
            else:
                stays.append(path)
    return stays


def move_default(layout: Layout) -> list[Path]:
    """Let `module load llm` mean the newest version that is left, where it meant this one.

    Returns the files of a default that somebody else wrote, when no version is left.
    """
    current = modulefiles.read_default(layout)
    left = [version for version in layout.installed()
            if version != layout.version and (layout.modules / version).exists()]
    if current == layout.version:
        modulefiles.write_default(layout, left[-1] if left else "")
    if current is not None or left:
        return []
    files = [layout.modules / name for name in modulefiles.DEFAULT_FILES]
    return [path for path in files if path.exists()]


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that has nothing in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


