"""Find Apptainer and the build tools, install what is missing, say what only an administrator can.

    make setup

Order: what is on PATH; as root, the distribution's package; else unpacked into `.tools/` of the
checkout, from the distribution's newer packages or upstream's release. Nothing of the system's C
library is touched: an unpacked program brings its own loader and libraries.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from _llm import apptainer, checks
from _llm.debian import Archive, PrivateApt, debian_mirrors, fetch, host_archives, unpack
from _llm.errors import LLMError
from _llm.settings import load_settings

HOME = Path(__file__).resolve().parent.parent.parent
TOOLS = HOME / ".tools"
# Debian 12 and 13 have no Apptainer; this suite does.
NEWER_SUITE = "unstable"
APPTAINER_PACKAGES = ("apptainer", "squashfs-tools", "squashfuse", "fuse-overlayfs", "fuse3",
                      "uidmap")
# Programs of those packages that are started on this host and so need their own loader.
PROGRAMS = ("usr/bin/apptainer", "usr/lib/*/apptainer/bin/starter", "usr/bin/mksquashfs",
            "usr/bin/unsquashfs", "usr/bin/squashfuse", "usr/bin/squashfuse_ll",
            "usr/bin/fuse-overlayfs", "usr/bin/fusermount3", "usr/bin/newuidmap",
            "usr/bin/newgidmap", "usr/sbin/mount.fuse3")
UPSTREAM_INSTALLER = ("https://raw.githubusercontent.com/apptainer/apptainer/main/tools/"
                      "install-unprivileged.sh")
UPSTREAM_NEEDS = ("curl", "rpm2cpio", "cpio")


def main(arguments: Sequence[str]) -> int:
    """`setup [--check]`: install what is missing, then check what the kernel allows.

    --check: install nothing. --show-packages NAME…: what would be unpacked for a package of the
    newer suite. --pip-wheel: path of a pip wheel from the host's release (used by venv.sh).
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if arguments and arguments[0] == "--show-packages":
        for package in newer_apt().resolve(arguments[1:]):
            print(package.name, package.version, package.size)
        return 0
    if arguments and arguments[0] == "--pip-wheel":
        print(pip_wheel())
        return 0
    unknown = [word for word in arguments if word != "--check"]
    if unknown:
        raise LLMError(f"setup knows no '{unknown[0]}'", "its options are --check, --show-packages "
                       "NAME and --pip-wheel", "make setup")
    path = ""
    if "--check" not in arguments:
        path = ensure_apptainer()
        ensure_build_tools()
    else:
        try:
            path = find_apptainer()
        except LLMError as error:
            print(f"setup: {error}", file=sys.stderr)
    problems = checks.run(path)
    for problem in problems:
        print(f"setup: {problem}", file=sys.stderr)
    if not path or any(problem.fatal for problem in problems):
        return 2
    if not problems:
        print(f"setup: {path} {checks.apptainer_version(path)} is ready")
    return 0


def configured_apptainer() -> str:
    """What LLM_APPTAINER or the site profile's `[container] apptainer` names, "" for neither."""
    return load_settings(os.environ, str(HOME)).get("container", "apptainer")


def find_apptainer() -> str:
    """Return the path of the Apptainer that llm-run would use. Raises LLMError for none."""
    return apptainer.find_apptainer(os.environ, str(HOME), configured_apptainer()).path


def ensure_apptainer() -> str:
    """Return the path of an Apptainer, installed first where there is none and none is named."""
    try:
        return find_apptainer()
    except LLMError:
        if configured_apptainer():
            raise
    for step in (install_system_package, install_newer_debian, install_upstream):
        if step():
            return find_apptainer()
    missing = [name for name in UPSTREAM_NEEDS if not shutil.which(name)]
    upstream = (f"installer needs {' and '.join(missing)} (not on PATH)" if missing
                else "release could not be fetched")
    raise LLMError(
        "Apptainer could not be installed",
        "no package of the distribution, no Debian archive in APT's configuration, and upstream's "
        + upstream,
        "an administrator runs: apt-get install apptainer   (or: dnf install epel-release && dnf "
        "install apptainer)\nor use images that an administrator built: LLM_IMAGE=/path/to/x.sif",
    )


def install_system_package() -> bool:
    """As root: the distribution's own package, where it has one. Return whether it is there now."""
    if os.geteuid() != 0:
        return False
    if shutil.which("apt-get"):
        policy = _output(["apt-cache", "policy", "apptainer"])
        if "Candidate:" not in policy or "Candidate: (none)" in policy:
            return False
        command = ["apt-get", "install", "-y", "-qq", "apptainer"]
    elif shutil.which("dnf"):
        subprocess.run(["dnf", "install", "-y", "-q", "epel-release"], check=False)
        command = ["dnf", "install", "-y", "-q", "apptainer"]
    else:
        return False
    print("setup: " + " ".join(command), flush=True)
    done = subprocess.run(command, check=False, env={**os.environ,
                                                     "DEBIAN_FRONTEND": "noninteractive"})
    return done.returncode == 0 and shutil.which("apptainer") is not None


def newer_apt() -> PrivateApt:
    """A private APT on the newer suite of the host's own Debian mirror, its lists fetched."""
    archives = host_archives()
    if not archives:
        raise LLMError("this host's APT names no Debian archive")
    apt = PrivateApt(TOOLS / "apt" / NEWER_SUITE, [Archive(archives[0].uri, NEWER_SUITE)])
    apt.update()
    return apt


def install_newer_debian() -> bool:
    """Unpack Apptainer from Debian's newer packages into `.tools/apptainer` and make it start."""
    if not host_archives():
        return False
    tools = folder_for_unpacking()
    folder = tools / "apptainer"
    if tools != TOOLS and (folder / "here").is_symlink():  # of another checkout
        link_apptainer(folder)
        return True
    print(f"setup: unpacking Apptainer from Debian {NEWER_SUITE} into {folder}", flush=True)
    part = tools / f".apptainer-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    remove_stale_parts(tools)
    mirrors = {"main": host_archives()[0].uri}
    apt = newer_apt()
    patchelf = ensure_debian_tool("patchelf", "usr/bin/patchelf")
    for package in apt.resolve(APPTAINER_PACKAGES):
        unpack(fetch(package, mirrors, cache_folder() / "debian"), part)
    relocate(part, folder, patchelf)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    if tools != TOOLS:
        link_apptainer(folder)
    return True


def folder_for_unpacking() -> Path:
    """`.tools` of the checkout, or of the cache folder where the checkout's path has a space.

    Apptainer looks for its own mounts in the kernel's table, which writes a space as a number, and
    gives up after 10 s (seen with 1.4.5).

    Raises LLMError where the cache folder's path has a space too.
    """
    for tools in (TOOLS, cache_folder() / ".tools"):
        if not re.search(r"\s", str(tools.resolve())):
            return tools
    raise LLMError(
        "Apptainer can't be unpacked into a folder whose path has a space",
        f"{TOOLS} and {cache_folder()} have one, and Apptainer doesn't find its mounts there",
        "LLM_CACHE_DIR=/path/without/spaces make setup")


def link_apptainer(folder: Path) -> None:
    """Let `.tools/apptainer` of the checkout lead to an Apptainer that was unpacked elsewhere."""
    link = TOOLS / "apptainer"
    if link.is_symlink():
        link.unlink()
    shutil.rmtree(link, ignore_errors=True)
    TOOLS.mkdir(exist_ok=True)
    link.symlink_to(folder.resolve())


def remove_stale_parts(tools: Path) -> None:
    """Remove what an unpacking left behind that was interrupted: its process is gone."""
    for part in tools.glob(".apptainer-*"):
        try:
            os.kill(int(part.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(part, ignore_errors=True)
        except (OSError, ValueError):
            pass


def relocate(part: Path, folder: Path, patchelf: Path) -> None:
    """Make unpacked programs, which will lie in `folder`, start with their own C library.

    The paths that Apptainer looks for are `PREFIX/usr/etc` and, from its starter,
    `PREFIX/usr/lib/var` (seen with `apptainer buildcfg`): two links make both right.
    """
    final = folder.resolve()
    loaders = sorted(part.glob("usr/lib*/**/ld-linux-x86-64.so.2"))
    if not loaders:
        raise LLMError("the unpacked C library has no loader",
                       "only x86-64 Linux is supported by this way of installing Apptainer",
                       "ask an administrator to install apptainer")
    libraries = part / "usr/lib/x86_64-linux-gnu"
    loader = final / loaders[0].relative_to(part)
    for pattern in PROGRAMS:
        for program in part.glob(pattern):
            # DT_RPATH, not DT_RUNPATH: it holds for the libraries' own libraries too.
            subprocess.run(
                [patchelf, "--force-rpath", "--set-interpreter", loader,
                 "--set-rpath", final / libraries.relative_to(part), program], check=True)
    (part / "usr/etc").symlink_to("../etc")
    (part / "usr/lib/etc").symlink_to("../../etc")
    (part / "usr/var").mkdir(exist_ok=True)
    (part / "usr/lib/var").symlink_to("../var")
    (part / "usr/var/lib/apptainer/mnt/session").mkdir(parents=True, exist_ok=True)
    bindir = part / "bin"
    shutil.rmtree(bindir, ignore_errors=True) if not bindir.is_symlink() else bindir.unlink()
    bindir.symlink_to("usr/bin")
    conf = part / "etc/apptainer/apptainer.conf"
    lines = [line for line in conf.read_text().splitlines() if not line.startswith("binary path")]
    conf.write_text("\n".join(lines) + f"\nbinary path = {final}/usr/bin:{final}/usr/sbin:$PATH:\n")
    (part / "here").symlink_to(final)


def install_upstream() -> bool:
    """Run upstream's own unprivileged installer where the network reaches it."""
    if not all(shutil.which(name) for name in UPSTREAM_NEEDS):
        return False
    script = subprocess.run(["curl", "-fsSL", "--max-time", "60", UPSTREAM_INSTALLER],
                            capture_output=True, check=False)
    if script.returncode:
        return False
    folder = TOOLS / "apptainer"
    part = folder / "upstream"
    # The installer refuses what an interrupted one left behind.
    shutil.rmtree(folder, ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["bash", "-s", "-", str(part)], input=script.stdout, check=False)
    if done.returncode:
        return False
    # Builds look for mksquashfs beside apptainer. No link: it is a script that goes by its folder.
    packer = part / "bin" / "mksquashfs"
    program = part.resolve() / os.uname().machine / "utils" / "bin" / "mksquashfs"
    packer.write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"\n')
    packer.chmod(0o755)
    (folder / "usr").mkdir()
    for name, target in (("usr/bin", part / "bin"), ("bin", part / "bin"),
                         ("here", folder.resolve())):
        (folder / name).symlink_to(target)
    return True


def ensure_build_tools() -> None:
    """Have what building an image needs: as root a range of ids, else maybe fakeroot.

    A missing fakeroot is only a note: who has an image builds none.
    """
    if os.geteuid() == 0 and not apptainer.has_all_capabilities():
        checks.ensure_root_subids()
    try:
        ensure_fakeroot()
    except LLMError as error:
        print(f"setup: note: images can't be built here: {error}", file=sys.stderr)


def needs_fakeroot() -> bool:
    """Whether builds need the fakeroot program here."""
    is_root = os.geteuid() == 0 and apptainer.has_all_capabilities()
    return not is_root and not checks.may_use_subids()


def find_fakeroot() -> str:
    """Return the folder of a fakeroot program where builds need one here and it is there, or ""."""
    search = f"{os.environ.get('PATH', os.defpath)}:{TOOLS}/debian/usr/bin"
    found = shutil.which("fakeroot", path=search)
    return os.path.dirname(found) if found and needs_fakeroot() else ""


def ensure_fakeroot() -> str:
    """Return the folder of a fakeroot program where builds need one here, else "".

    Raises LLMError where it is missing and can't be had.
    """
    if not needs_fakeroot():
        return ""
    found = shutil.which("fakeroot")
    if found:
        return os.path.dirname(found)
    ensure_debian_tool("fakeroot", "usr/bin/fakeroot-sysv", ("libfakeroot",))
    folder = TOOLS / "debian" / "usr"
    library = next(folder.glob("lib/*/libfakeroot"))
    text = (folder / "bin" / "fakeroot-sysv").read_text()
    for name, value in (("FAKEROOT_PREFIX", folder), ("FAKEROOT_BINDIR", folder / "bin"),
                        ("PATHS", library)):
        text = re.sub(rf"(?m)^{name}=.*$", f"{name}='{value}'", text)
    script = folder / "bin" / "fakeroot"
    # Its paths are absolute: a checkout that was moved needs another one.
    if not script.exists() or script.read_text() != text:
        script.write_text(text)
        script.chmod(0o755)
    return str(folder / "bin")


def ensure_debian_tool(name: str, program: str, also: Sequence[str] = ()) -> Path:
    """Return the path of a program: on PATH, or unpacked from the host's own Debian release.

    name: program and package. program: its path in the package. also: packages that it needs.
    """
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found:
        return Path(found)
    folder = TOOLS / "debian"
    if not (folder / program).exists():
        archives = host_archives()
        if not archives:
            raise LLMError(f"{name} is missing", "this host has no Debian archive to take it from",
                           f"an administrator installs the package {name}")
        print(f"setup: unpacking {name} into {folder}", file=sys.stderr, flush=True)
        apt = PrivateApt(TOOLS / "apt" / archives[0].suite, archives)
        apt.update()
        packages = [p for p in apt.resolve([name]) if p.name in (name, *also)]
        for package in packages:
            unpack(fetch(package, debian_mirrors({}), cache_folder() / "debian"), folder)
    return folder / program


def pip_wheel() -> Path:
    """Path of pip as a wheel file, for a system whose Python has neither pip nor ensurepip."""
    folder = ensure_debian_tool("python3-pip-whl", "usr/share/python-wheels")
    wheels = sorted(folder.glob("pip-*.whl"))
    if not wheels:
        raise LLMError("pip could not be found", f"{folder} holds no wheel of it",
                       "an administrator installs python3-venv")
    return wheels[-1]


def cache_folder() -> Path:
    """The user's cache folder of this project, as the site profile has it."""
    return Path(load_settings(os.environ, str(HOME)).get("paths", "cache"))


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
