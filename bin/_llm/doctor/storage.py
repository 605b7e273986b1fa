"""Folders: file system, whether they can be written, locks, room, and what breaks caches there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from _llm.binds import is_inside
from _llm.checks import NETWORK_FILE_SYSTEMS, file_system_of
from _llm.doctor.finding import FAIL, OK, WARN, Finding
from _llm.doctor.limits import Stage
from _llm.doctor.machine import gib, memory_limit
from _llm.settings import Settings

MARK = ".llm-doctor-"
# A model of 7 billion parameters in 16 bits is 15 GB: below it, one download fills the folder.
ROOM_FOR_A_MODEL = 20 << 30
ROOM_FOR_FILES = 1 << 30
FEWEST_INODES = 20_000
# Homes with less than this in all are under quota; a few models fill them.
SMALL_HOME = 100 << 30
OTHER_CACHE = "export LLM_CACHE_DIR=/path/with/room, or [paths] cache of the site profile"


@dataclass(frozen=True)
class Folder:
    """A folder that programs use.

    name: what it is for, such as `cache`. fix: how to choose another one. needs: `write` if
    programs fail without, `locks` and `exec` likewise, `room` if models go there. writable: it has
    been written to.
    """

    name: str
    path: str
    fix: str
    needs: tuple[str, ...] = ()
    writable: bool = False


def folders(settings: Settings, env: Mapping[str, str], user: str, cwd: str) -> list[Folder]:
    """The folders that matter here, each path once. user: the home folder. cwd: where we are."""
    get = settings.get
    local = get("paths", "local")
    models = settings.items("paths", "models")
    cache = ("write", "locks", "room", "exec")
    found = [
        Folder("working folder", cwd, "cd to a folder that you may write to"),
        Folder("home", user, "export HOME=/another/folder"),
        Folder("cache", get("paths", "cache"), OTHER_CACHE, cache),
        Folder("data", get("paths", "data"), "correct LLM_DATA_DIR or [paths] data"),
        Folder("scratch", get("paths", "scratch"), "correct LLM_SCRATCH_DIR or [paths] scratch"),
        Folder(
            "local", local, "export LLM_LOCAL_DIR=/disk/of/this/node", ("write", "locks", "exec")
        ),
        *(Folder("models", path, "correct LLM_MODELS_DIR or [paths] models") for path in models),
        Folder("tmp", "/tmp", "ask the administrator", ("write",)),
        Folder("TMPDIR", env.get("TMPDIR", ""), "export TMPDIR=/tmp", ("write",)),
        Folder("ramdisk", get("paths", "ramdisk"), "correct LLM_RAMDISK_DIR or [paths] ramdisk"),
    ]
    by_path: dict[str, Folder] = {}
    for folder in found:
        other = by_path.get(folder.path)
        if other is None:
            by_path[folder.path] = folder
        elif folder.needs:  # one folder for two things
            needs = tuple(dict.fromkeys(other.needs + folder.needs))
            by_path[folder.path] = replace(other, needs=needs, fix=folder.fix)
    by_path.pop("", None)
    return list(by_path.values())


def check_folder(
    folder: Folder, env: Mapping[str, str], user: str, token: str, stage: Stage
) -> list[Finding]:
    """Everything about one folder, as one line for what is fine and one for each fault."""
    check, path = folder.name, folder.path
    stage(f"looking for {path}")
    where = existing(path)
    if where != path and "write" not in folder.needs:
        return [Finding(check, WARN, f"{path} does not exist", folder.fix)]
    if not os.path.isdir(where):
        return [Finding(check, FAIL, f"{where} is no folder", folder.fix)]
    stage(f"asking for the file system of {where}")
    kind = file_system_of(Path(where))
    space = os.statvfs(where)
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    data = {"path": path, "file_system": kind, "free_bytes": free, "total_bytes": total}
    data.update(free_inodes=space.f_favail, inodes=space.f_files)
    faults, written = _try_writing(folder, where, token, stage)
    locks = ", locks work" if written and not faults else ""
    if written:
        faults += _room(folder, free, total, space)
        if "write" in folder.needs:
            faults += _purpose(folder, kind, total, space.f_flag, user)
    if check == "ramdisk":
        faults += _ramdisk(folder, kind)
    if any(fault.status == FAIL for fault in faults):
        return faults
    state = "writable" if written else "read only"
    text = f"{path} is on {kind}, {state}{locks}"
    measured = f"{gib(free)} of {gib(total)} free"
    if check == "ramdisk" and (limit := memory_limit(env)):
        measured += f"; files there count against the job's {gib(limit)}"
    return [
        Finding(check, OK, text, measured=measured, data={**data, "writable": written}),
        *faults,
    ]


def mark_path(folder: Folder, token: str, where: str = "") -> str:
    """The file that we put into a folder to try it, or into `where` while it does not exist.

    token: of this run, because several may be under way. Two folders may be one: hence the name.
    """
    name = f"{MARK}{token}-{folder.name.replace(' ', '-').lower()}"
    return os.path.join(where or folder.path, name)


def remove_mark(folder: Folder, token: str) -> None:
    """Remove what this run may have left in a folder."""
    path = mark_path(folder, token, existing(folder.path))
    for end in ("", ".renamed", ".reply"):
        with contextlib.suppress(OSError):
            os.unlink(path + end)


def existing(path: str) -> str:
    """The folder itself or, where it is still to be made, the one in which it would be made."""
    while not os.path.lexists(path) and path not in ("", "/"):
        path = os.path.dirname(path)
    return path or "."


def _try_writing(
    folder: Folder, where: str, token: str, stage: Stage
) -> tuple[list[Finding], bool]:
    """Write, rename and lock a small file as caches do."""
    name = mark_path(folder, token, where)
    must = "write" in folder.needs
    try:
        stage(f"writing a file in {where}")
        with open(name, "wb") as file:
            file.write(b"llm-doctor")
            file.flush()
            os.fsync(file.fileno())
            faults = _try_locks(folder, file.fileno(), where, stage)
        os.replace(name, name + ".renamed")
        os.unlink(name + ".renamed")
        return faults, True
    except OSError as error:
        remove_mark(folder, token)
        text = f"{where} can't be written: {error.strerror}"
        if not must and not os.access(where, os.W_OK):
            return [], False  # read only as it is meant to be
        return [Finding(folder.name, FAIL if must else WARN, text, folder.fix)], False


def _try_locks(folder: Folder, file: int, where: str, stage: Stage) -> list[Finding]:
    broken = []
    for name, lock in (("flock", fcntl.flock), ("fcntl", fcntl.lockf)):
        stage(f"taking a lock ({name}) on a file in {where}")
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock(file, fcntl.LOCK_UN)
        except OSError as error:
            broken.append(f"{name}: {error.strerror}")
    if not broken:
        return []
    text = f"files in {where} can't be locked ({'; '.join(broken)}): caches and datasets need it"
    fix = f"{folder.fix}\n(an administrator: mount Lustre with -o flock, NFS with local locks)"
    return [Finding(folder.name, FAIL if "locks" in folder.needs else WARN, text, fix)]


def _room(folder: Folder, free: int, total: int, space: os.statvfs_result) -> list[Finding]:
    found = []
    if "write" in folder.needs and free < ROOM_FOR_FILES:
        text = f"{folder.path} has less than {gib(ROOM_FOR_FILES)} free"
        found.append(Finding(folder.name, FAIL, text, folder.fix, f"{gib(free)} of {gib(total)}"))
    elif "room" in folder.needs and free < ROOM_FOR_A_MODEL:
        text = f"{folder.path} has no room for a model of 7 billion parameters"
        found.append(Finding(folder.name, WARN, text, folder.fix, f"{gib(free)} of {gib(total)}"))
    # Some file systems (btrfs, some network ones) count no inodes: 0 of 0.
    if space.f_files and space.f_favail < FEWEST_INODES and "write" in folder.needs:
        text = f"{folder.path} can hold few more files, whatever their size"
        fix = f"remove files there, or {folder.fix}"
        found.append(Finding(folder.name, WARN, text, fix, f"{space.f_favail} inodes free"))
    return found


def _purpose(folder: Folder, kind: str, total: int, flags: int, user: str) -> list[Finding]:
    found = []
    if "exec" in folder.needs and flags & os.ST_NOEXEC:
        text = f"{folder.path} is mounted noexec: compiled kernels and packages can't be loaded"
        found.append(Finding(folder.name, WARN, text, folder.fix))
    if folder.name == "local" and kind in NETWORK_FILE_SYSTEMS:
        text = f"{folder.path} is on {kind}: compilers' caches break on network file systems"
        found.append(Finding(folder.name, WARN, text, folder.fix))
    if folder.name == "cache" and user != "/" and is_inside(folder.path, user):
        shared_with_system = os.stat(existing(user)).st_dev == os.stat("/").st_dev
        if total < SMALL_HOME and not shared_with_system:
            text = f"the cache is in a home of {gib(total)}: a few models fill it"
            found.append(Finding(folder.name, WARN, text, folder.fix))
    return found


def _ramdisk(folder: Folder, kind: str) -> list[Finding]:
    if kind in ("tmpfs", "ramfs"):
        return []
    text = f"{folder.path} is on {kind}, so it is no RAM disk"
    return [Finding(folder.name, WARN, text, folder.fix)]
