"""The staging folder of a build: what goes to the sandbox's /mnt and doesn't stay in the image."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from _llm import checks
from _llm.apptainer import has_all_capabilities
from _llm.errors import LLMError
from _llm.images import pip_settings
from _llm.images.needs import Files
from _llm.images.repository import make_repository
from _llm.images.store import Store

INSIDE = "/mnt"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seen with Apptainer 1.4.5: `apptainer build` ends with "could not inspect container".
SHELL_CHARACTERS = frozenset("'\"`\\;&|<>()$*?[]!#\n\t:,")


def build_folder(env: Mapping[str, str]) -> Path:
    """Where sandboxes are built: LLM_BUILD_DIR, else TMPDIR, else /var/tmp.

    Raises LLMError on a network file system, where user namespaces can't own files, and for a path
    that Apptainer can't build in.
    """
    folder = Path(os.path.abspath(env.get("LLM_BUILD_DIR") or env.get("TMPDIR") or "/var/tmp"))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise LLMError(f"the build folder {folder} is not a writable folder", "LLM_BUILD_DIR or "
                       "TMPDIR names it", "LLM_BUILD_DIR=/path/on/a/local/disk make image")
    bad = sorted(set(str(folder)) & SHELL_CHARACTERS)
    if bad:
        raise LLMError(
            f"an image can't be built in {folder}",
            f"its path has {' '.join(map(repr, bad))}, and Apptainer looks at what it has built "
            "with a shell that takes this for a part of the command",
            "LLM_BUILD_DIR=/path/with/ordinary/letters make image",
        )
    if checks.is_network_file_system(folder):
        raise LLMError(
            f"the build folder {folder} is on {checks.file_system_of(folder)}",
            "an image can't be built on a network file system: its files belong to several users",
            "LLM_BUILD_DIR=/path/on/a/local/disk make image",
        )
    return folder


@contextmanager
def work_folder(env: Mapping[str, str], need_gib: float) -> Iterator[Path]:
    """Give a folder for one build and remove it afterwards, whatever happened.

    Folders of builds that were killed are removed first. Raises LLMError when the disk has less
    than need_gib GiB free.
    """
    parent = build_folder(env)
    remove_stale(parent)
    free = shutil.disk_usage(parent).free / 2**30
    if free < need_gib:
        raise LLMError(f"{parent} has {free:.1f} GiB free, the build needs about {need_gib:.0f}",
                       "the unpacked image is kept there while it is built",
                       "LLM_BUILD_DIR=/path/with/room make image")
    folder = Path(tempfile.mkdtemp(prefix=f"llm-build-{os.getuid()}-{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        with uninterrupted():
            remove_tree(folder)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C, SIGTERM or SIGHUP wait until something is put in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def remove_stale(parent: Path) -> None:
    """Remove work folders of this user whose process is gone."""
    for folder in parent.glob(f"llm-build-{os.getuid()}-*"):
        process = folder.name.split("-")[3]
        if process.isdigit() and not os.path.exists(f"/proc/{process}"):
            remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder whose files may belong to this user's subordinate ids."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        # Inside a namespace that maps the subordinate ids they can be removed.
        subprocess.run(["unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", folder],
                       check=False, capture_output=True)
    if folder.exists():
        print(f"image: could not remove {folder}; it belongs to a build that ended", flush=True)


def make_staging(
    folder: Path, containers: Path, files: Files, packages: Store, cache: Path,
) -> list[str]:
    """Fill a staging folder and return the `--bind` options that show it to a build as /mnt.

    It gets a repository of the Debian packages (debs/), a folder of the Python files (python/), the
    shared build scripts, settings for pip and uv that know nothing but that folder (packages.env),
    uv's cache and room for temporary files (scratch/). Python files are links into the archives,
    which a build sees below archive/: CUDA's are several GB.
    """
    folder.mkdir()
    folder.chmod(0o755)
    make_repository(files.debian, folder / "debs")
    for pattern in ("*.sh", "*.py", "*.lock"):
        for file in containers.glob(pattern):
            shutil.copy2(file, folder / file.name)
    binds = ["--bind", f"{folder}:{INSIDE}"]
    (folder / "python").mkdir()
    for number, archive in enumerate(packages.folders):
        inside = [file for file in files.python if archive in file.parents]
        (folder / "archive" / str(number)).mkdir(parents=True)
        if inside:
            binds += ["--bind", f"{archive}:{INSIDE}/archive/{number}:ro"]
        for file in inside:
            seen_as = Path(INSIDE, "archive", str(number), file.relative_to(archive))
            (folder / "python" / file.name).symlink_to(seen_as)
    variables = pip_settings.folder_environment(f"{INSIDE}/python")
    (folder / "packages.env").write_text(pip_settings.as_shell(variables))
    uv_cache = cache / "uv"
    uv_cache.mkdir(parents=True, exist_ok=True)
    for name in ("uv-cache", "scratch"):
        (folder / name).mkdir()
    return [*binds, "--bind", f"{uv_cache}:{INSIDE}/uv-cache"]


def fakeroot_flags() -> list[str]:
    """Options with which `apptainer build` may install packages here.

    An ordinary user needs a range of subordinate ids and a setuid newuidmap to be several users;
    without them the fakeroot program pretends (checks.may_use_subids).
    """
    if os.geteuid() == 0 and has_all_capabilities():
        return []
    return ["--fakeroot"] if checks.may_use_subids() else ["--fakeroot", "--ignore-subuid"]
