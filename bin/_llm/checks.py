"""What the kernel and the administrator must allow before Apptainer works, each with its cure."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from _llm import apptainer, unpack

SUBORDINATE_IDS = ("/etc/subuid", "/etc/subgid")
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "afs", "ceph")


@dataclass(frozen=True)
class Problem:
    """Something missing: what, why it matters, the command that an administrator would run."""

    what: str
    why: str
    fix: str
    fatal: bool = True

    def __str__(self) -> str:
        kind = "" if self.fatal else "note: "
        return f"{kind}{self.what}\n  why: {self.why}\n  fix: {self.fix}"


def run(program: str = "") -> list[Problem]:
    """Return everything that keeps this user from running or building images here.

    program: path of the Apptainer to use, "" for none.
    """
    found = [user_namespaces(program), fuse_device(), subordinate_ids(), build_folder()]
    return [problem for problem in found if problem]


def user_namespaces(program: str = "") -> Problem | None:
    """Unprivileged user namespaces: Apptainer without setuid stands on them.

    program: path of the Apptainer to use. Only a note where it runs images all the same: a setuid
    one, or one of the system where AppArmor allows namespaces to programs with a profile.
    """
    if os.geteuid() == 0 and apptainer.has_all_capabilities():
        return None
    if subprocess.run(["unshare", "--user", "--map-root-user", "true"], check=False,
                      capture_output=True).returncode == 0:
        return None
    why = "Apptainer without setuid needs them to run any image"
    fix = "an administrator: sysctl -w user.max_user_namespaces=15000"
    fatal = True
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        fix = "an administrator: sysctl -w kernel.unprivileged_userns_clone=1"
    elif _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        fix = ("an administrator installs Ubuntu's package apptainer (it carries an AppArmor "
               "profile), or: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
        if program and "/.tools/" not in os.path.realpath(program):
            why = "AppArmor allows them to programs with a profile; Apptainer's package brings one"
            fatal = False
    if program and unpack.is_setuid(program):
        why = "the setuid Apptainer runs images without them; some builds need them"
        fatal = False
    if not fatal:
        fix = f"none needed, unless images don't start or can't be built; then {fix}"
    return Problem("unprivileged user namespaces are not available", why, fix, fatal)


def fuse_device() -> Problem | None:
    """/dev/fuse: image files are mounted through it; else each start unpacks the whole image."""
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return None
    return Problem("/dev/fuse is missing or not accessible",
                   "without it Apptainer unpacks the whole image for each start",
                   "an administrator: modprobe fuse && chmod 0666 /dev/fuse", fatal=False)


def may_use_subids() -> bool:
    """Whether this user can be several users in a namespace.

    It takes a range in /etc/subuid and /etc/subgid and, but for root, a newuidmap with root's
    rights, which no unpacked copy has.
    """
    user = _user_name()
    if not all(_has_range(path, user) for path in SUBORDINATE_IDS):
        return False
    if os.geteuid() == 0:
        return True
    path = apptainer.find_program("newuidmap", os.environ.get("PATH", "") or os.defpath)
    return bool(path) and _is_privileged(path)


def subordinate_ids() -> Problem | None:
    """Say that builds use the fakeroot program, and what would make them simpler and faster."""
    if (os.geteuid() == 0 and apptainer.has_all_capabilities()) or may_use_subids():
        return None
    user = _user_name()
    return Problem(
        f"user {user} has no subordinate ids to build images with",
        "no range in /etc/subuid and /etc/subgid, or no privileged newuidmap; images are built "
        "with the fakeroot program instead, which takes longer",
        "none needed. For faster builds an administrator: apt-get install uidmap && usermod "
        f"--add-subuids 100000-165535 --add-subgids 100000-165535 {user}", fatal=False)


def build_folder() -> Problem | None:
    """Where images are built: a network file system can't hold files of several users."""
    folder = Path(os.environ.get("LLM_BUILD_DIR") or os.environ.get("TMPDIR") or "/var/tmp")
    if not is_network_file_system(folder):
        return None
    return Problem(f"the build folder {folder} is on {file_system_of(folder)}",
                   "images can't be built on a network file system (running them is fine)",
                   "export LLM_BUILD_DIR=/path/on/a/local/disk", fatal=False)


def ensure_root_subids() -> None:
    """Give root a range where it has none: root with reduced capabilities builds with --fakeroot.

    Only these two lists of id ranges change, by appending a line; it is said on standard output.
    """
    for path in SUBORDINATE_IDS:
        if _has_range(path, "root"):
            continue
        taken = [line.split(":") for line in _read(path).splitlines() if line.count(":") == 2]
        start = max([int(first) + int(count) for _, first, count in taken] + [100000])
        with open(path, "a+") as stream:
            stream.seek(0)
            end = "" if stream.read()[-1:] in ("", "\n") else "\n"
            stream.write(f"{end}root:{start}:65536\n")
        print(f"setup: added 'root:{start}:65536' to {path} (this root lacks capabilities, so "
              "images are built in a user namespace)")


def file_system_of(folder: Path) -> str:
    """Type of the file system that holds a folder (proc(5), mountinfo)."""
    best, kind = "", ""
    path = os.path.realpath(folder)
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        point = fields[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return kind


def is_network_file_system(folder: Path) -> bool:
    """Whether builds there would fail: user namespaces and NFS or Lustre don't go together."""
    return file_system_of(folder) in NETWORK_FILE_SYSTEMS


def apptainer_version(path: str) -> str:
    """Version of an Apptainer program, as `1.4.5`."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().split()[-1] if done.stdout.strip() else "of unknown version"


def _user_name() -> str:
    """Name of this user, the number where the user database doesn't know it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _is_privileged(path: str) -> bool:
    """Whether a program runs as root: by setuid, or by capabilities of the file (Red Hat's)."""
    status = os.stat(path)
    if status.st_uid == 0 and status.st_mode & stat.S_ISUID:
        return True
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _has_range(path: str, user: str) -> bool:
    return any(line.split(":")[0] in (user, str(os.geteuid()))
               for line in _read(path).splitlines() if line.count(":") == 2)


def _read(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read().strip()
    except OSError:
        return ""
