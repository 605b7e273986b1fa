"""The last step before a file tree is packed: nothing of the build's time, place or user stays.

    env -i PYTHONHASHSEED=0 python3 -S -s -B /mnt/normalise.py /mnt/tree DAY WORK_FOLDER

The tree is seen as a folder beside the running system, not as the running system: there, Apptainer
shows the host's /etc/passwd, /tmp and others in place of the tree's own.

DAY: the day on which the image's inputs were locked, YYYY-MM-DD. WORK_FOLDER: name of the folder in
which the build ran; it must stand nowhere in the image. Times and owners are set by mksquashfs.
"""

from __future__ import annotations

import datetime
import glob
import json
import os
import shutil
import stat
import subprocess
import sys

# What a build leaves behind and nobody needs at run time; each name below the tree's root. Contents
# of folders of which the running system has its own (dev, proc, sys, run, tmp) are no use either.
LEFTOVERS = (
    "dev/*", "proc/*", "sys/*", "run/*", "tmp/*", "tmp/.[!.]*", "var/tmp/*", "var/tmp/.[!.]*",
    "mnt/*",
    "root/.cache", "root/.bash_history", "root/.python_history", "root/.wget-hsts", "root/.local",
    "var/cache/apt/*", "var/lib/apt/lists/*", "var/cache/debconf/*-old", "var/lib/dpkg/*-old",
    "var/cache/ldconfig/aux-cache",  # inode numbers and times
    "var/cache/fontconfig/*", "var/lib/systemd/random-seed", "var/lib/systemd/catalog/database",
    "var/lib/dbus/machine-id", "var/lib/urandom/*", "etc/ssh/ssh_host_*", "etc/.pwd.lock",
    "etc/hostname", "etc/mailname", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-",
    "etc/subuid-", "etc/subgid-", "etc/ssl/private/*",
    ".singularity.d/bootstrap_history",
)
# Emptied and not removed: programs and Apptainer's mounts expect them to be there.
EMPTY = ("etc/machine-id", "etc/resolv.conf", "etc/hosts")
# Notes of installers to themselves, with times and places.
NOTES = ("uv_cache.json", "uv_build.json")
# Labels that Apptainer adds, with the time of the build and the folder in which it ran.
LABELS_OF_THE_BUILD = (
    "org.label-schema.build-date", "org.label-schema.usage.singularity.deffile.from",
    "org.label-schema.usage.singularity.deffile.bootstrap",
)
STICKY = ("tmp", "var/tmp", "run/lock", "var/lock")
PYTHON = ("usr/lib/python3", "usr/lib/python3.[0-9]*")
PIECE = 1 << 20
UNCHECKED_HASH = 1  # of the flags in a .pyc, PEP 552


def remove_leftovers(tree: str) -> None:
    """Remove logs, caches, keys and ids of a machine, and notes about the build."""
    for pattern in LEFTOVERS:
        for path in glob.glob(os.path.join(glob.escape(tree), pattern)):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    for folder, _, files in os.walk(os.path.join(tree, "var/log")):
        for name in files:
            os.unlink(os.path.join(folder, name))
    for name in EMPTY:
        path = os.path.join(tree, name)
        if os.path.lexists(path):
            os.unlink(path)
        with open(path, "wb"):
            pass


def set_password_days(tree: str, day: datetime.date) -> None:
    """Let the passwords of /etc/shadow be last changed on a fixed day; no account has one.

    Field 3 is in days since 1970 (shadow(5)); tools that make accounts write today's.
    """
    path = os.path.join(tree, "etc/shadow")
    if not os.path.exists(path):
        return
    days = (day - datetime.date(1970, 1, 1)).days
    with open(path, encoding="utf-8") as stream:
        rows = [line.rstrip("\n").split(":") for line in stream]
    with open(path, "w", encoding="utf-8") as stream:
        for row in rows:
            if len(row) > 2 and row[2]:
                row[2] = str(days)
            stream.write(":".join(row) + "\n")


def write_labels(tree: str) -> None:
    """Sort the labels; those that tell when and where the image was built go."""
    path = os.path.join(tree, ".singularity.d/labels.json")
    with open(path, encoding="utf-8") as stream:
        labels = json.load(stream)
    for name in LABELS_OF_THE_BUILD:
        labels.pop(name, None)
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(labels, stream, indent=1, sort_keys=True)
        stream.write("\n")


def is_checked_by_time(path: str) -> bool:
    """Whether a .pyc is valid only for a file time, or is damaged."""
    with open(path, "rb") as stream:
        head = stream.read(8)
    return len(head) < 8 or int.from_bytes(head[4:], "little") != UNCHECKED_HASH


def leave_out_notes(record: str) -> None:
    """Remove the installer's notes from a package's list of files."""
    with open(record, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        lines = stream.readlines()
    kept = [line for line in lines if os.path.basename(line.partition(",")[0]) not in NOTES]
    if kept != lines:
        with open(record, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            stream.writelines(kept)


def walk(tree: str, work: str) -> list[str]:
    """Set modes, remove installers' notes and bytecode that is checked by time, and look for the
    build's own path; return the files that hold it.

    Modes follow from one question, whether the owner may execute a file: 755 or 644, folders 755,
    and 1777 for folders of temporary files. So they don't depend on anybody's umask. Everybody may
    read everything, as all files belong to root and everybody runs the image; set-user-id bits mean
    nothing there, since Apptainer mounts images without them.
    """
    needle = os.fsencode(work)
    holding = []
    for folder, folders, files in os.walk(tree):
        folders.sort()
        inside = os.path.relpath(folder, tree)
        os.chmod(folder, 0o1777 if inside in STICKY else 0o755)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*files, *links]):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                if needle in os.fsencode(os.readlink(path)):
                    holding.append(path)
                continue
            mode = os.lstat(path).st_mode
            if not stat.S_ISREG(mode) or name in NOTES:
                os.unlink(path)  # devices, sockets, pipes
                continue
            if name == "RECORD" and folder.endswith(".dist-info"):
                leave_out_notes(path)
            if name.endswith(".pyc") and is_checked_by_time(path):
                os.unlink(path)
                continue
            os.chmod(path, 0o755 if mode & stat.S_IXUSR else 0o644)
            if contains(path, needle):
                holding.append(path)
    return sorted(os.path.join("/", os.path.relpath(path, tree)) for path in holding)


def contains(path: str, needle: bytes) -> bool:
    """Whether a file holds some bytes."""
    with open(path, "rb") as stream:
        end = b""
        while piece := stream.read(PIECE):
            if needle in end + piece:
                return True
            end = piece[-len(needle):]
    return False


def main(arguments: list[str]) -> int:
    """Normalise the tree that the command line names."""
    tree, day, work = arguments
    remove_leftovers(tree)
    set_password_days(tree, datetime.date.fromisoformat(day))
    write_labels(tree)
    # Debian's packages compile when they are configured, with file times.
    folders = [path for pattern in PYTHON
               for path in glob.glob(os.path.join(glob.escape(tree), pattern))]
    compiler = os.path.join(os.path.dirname(os.path.abspath(__file__)), "compile_bytecode.py")
    subprocess.run([sys.executable, "-S", "-s", "-B", compiler, "--below", tree, *sorted(folders)],
                   check=True)
    holding = walk(tree, work)
    for path in holding:
        print(f"normalise: {path} holds the path of its build, {work}", file=sys.stderr)
    return 1 if holding else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
