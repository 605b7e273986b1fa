"""Assemble one version under a temporary name, and put it into its place in one step.

    make install PREFIX=/apps/llm
"""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from _llm import commit
from _llm.installation import manifest
from _llm.installation.layout import Layout

FOLDERS = ("bin", "recipes", "sites", "completions")
# What is copied or rendered.
SOURCES = (*FOLDERS, "modules")
FILES = ("LICENSE",)
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*_cache", "*~", ".*.sw?", "local")
PART = ".part-"
# Seconds. Programs that run keep the build with which they started; no job runs this long.
KEPT_S = 60 * 24 * 3600


def make_build(home: Path, layout: Layout) -> Path:
    """Copy the checkout `home` into a new build, complete but under a temporary name; return it.

    Its final path, which its bytecode names, is `final_path`.
    """
    prefix = f"{PART}{os.uname().nodename}-{os.getpid()}-{layout.version}-"
    build = Path(tempfile.mkdtemp(prefix=prefix, dir=layout.builds))
    try:
        fill_build(home, build, layout)
    except BaseException:
        shutil.rmtree(build, ignore_errors=True)
        raise
    return build


def fill_build(home: Path, build: Path, layout: Layout) -> None:
    """Copy the checkout `home` into the empty folder `build`."""
    for name in FOLDERS:
        shutil.copytree(home / name, build / name, symlinks=True, ignore=NOT_COPIED)
    for name in FILES:
        if (home / name).exists():
            shutil.copy2(home / name, build / name)
    (build / "images").symlink_to("../../images")
    (build / "sites/local").symlink_to("../../../sites")
    changed = has_changes(home)
    (build / ".commit").write_text(
        (commit.read_commit(str(home)) or "unknown") + (" changed" if changed else "") + "\n")
    # Users can't write bytecode beside the library, and each start would compile again.
    final = final_path(build, layout)
    compileall.compile_dir(str(build / "bin/_llm"), ddir=str(final / "bin/_llm"), quiet=2)
    make_readable(build)


def final_path(part: Path, layout: Layout) -> Path:
    """Return the path that a build under its temporary name `part` will have."""
    return layout.builds / f"{layout.version}-{part.name.rpartition('-')[2]}"


def has_changes(home: Path) -> bool:
    """Say whether something that is installed differs from the commit that is checked out."""
    done = subprocess.run(
        ["git", "-C", str(home), "status", "--porcelain", "--", *SOURCES],
        capture_output=True, text=True, check=False) if shutil.which("git") else None
    if done and done.returncode == 0:
        return bool(done.stdout.strip())
    # No git, or somebody else's checkout, which git refuses to read.
    return bool(commit.has_changes(str(home), tuple(f"{name}/" for name in SOURCES)))


def make_readable(folder: Path) -> None:
    """Let everybody read what is below `folder`, and only its owner write."""
    for parent, folders, files in os.walk(folder):
        for path in [Path(parent), *(Path(parent, name) for name in (*folders, *files))]:
            if not path.is_symlink():
                mode = path.stat().st_mode
                runs = path.is_dir() or mode & 0o100
                path.chmod((mode & 0o2000) | (0o755 if runs else 0o644))


def keep_own_files(old: Path, new: Path) -> list[str]:
    """Copy what the administrator added to or changed in the build `old` to `new`.

    What was changed gets the name NAME.old beside ours. Returns a sentence for each.
    """
    if not manifest.read_manifest(old)["files"]:
        return []
    said = []
    added, changed = manifest.foreign_files(old)
    for path in added:
        target = new / path.relative_to(old)
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)
    for path in changed:
        target = free_name(new / path.relative_to(old))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
        said.append(f"{path.relative_to(old)} differed from ours; it is now {target.name}")
    return said


def free_name(path: Path) -> Path:
    """Return PATH.old, or PATH.old2 and so on: a name that is not taken."""
    target, count = path.with_name(path.name + ".old"), 1
    while os.path.lexists(target):
        count += 1
        target = path.with_name(f"{path.name}.old{count}")
    return target


def put_in_place(part: Path, layout: Layout) -> Path:
    """Make a build that is complete the one in use; return its path.

    The build that it replaces stays for the programs that run from it.
    """
    old = layout.current()
    build = final_path(part, layout)
    part.rename(build)
    manifest.replace_link(layout.link, f"{layout.builds.name}/{build.name}")
    if old:
        os.utime(old)  # read by remove_old_builds: replaced now
    return build


def remove_old_builds(layout: Layout) -> None:
    """Remove builds that were replaced long ago, and what interrupted installations left."""
    used = {Layout(layout.prefix, version, layout.modulepath).current()
            for version in layout.installed()}
    remove_abandoned(layout.builds)
    for build in list(layout.builds.iterdir()):
        if build not in used and manifest.read_manifest(build)["files"]:
            with contextlib.suppress(OSError):
                if time.time() - build.stat().st_mtime > KEPT_S:
                    shutil.rmtree(build)  # what was added to it is in the build that replaced it


def remove_abandoned(folder: Path) -> None:
    """Remove what interrupted installations left in `folder`."""
    for part in folder.glob(f"{PART}*"):
        if is_abandoned(part):
            shutil.rmtree(part, ignore_errors=True)


def is_abandoned(part: Path) -> bool:
    """Say whether the process that was filling a folder is gone: `.part-HOST-PID-…-…`."""
    host, _, rest = part.name[len(PART):].rpartition("-")[0].rpartition("-")[0].rpartition("-")
    if host == os.uname().nodename and rest.isdigit():
        try:
            os.kill(int(rest), 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False
    return time.time() - part.stat().st_mtime > 24 * 3600
