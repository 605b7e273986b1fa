"""What the box and each node see in place of the host's folders: in a new mount namespace."""

from __future__ import annotations

import os
from pathlib import Path

from box.settings import FIXED, Box
from box.syscalls import MS_PRIVATE, MS_REC, bind, detach, mount, pivot_root

FUSE = "/dev/fuse"
# What /dev/fuse is on a node where users may not use it.
NO_FUSE = f"{FIXED}/no-fuse"
# Folders of the box that slurm.conf names, which knows no quotes: the state folder may have spaces.
FOR_SLURM = ("log", "slurmctld", "spool")


def is_inside(path: str, folder: str) -> bool:
    """Say whether a path is a folder or something below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def outermost(paths: list[str]) -> list[str]:
    """Return the paths that are not below another one of them."""
    return [p for p in paths if not any(q != p and is_inside(p, q) for q in paths)]


def hide(folder: str, kept: list[str], mode: str = "755") -> None:
    """Mount an empty RAM disk over a folder; the folders in `kept` stay where they are.

    mode: permissions in octal. Raises OSError.
    """
    inside = outermost([path for path in kept if is_inside(path, folder)])
    if folder in inside:
        return
    handles = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in inside}
    mount("tmpfs", folder, "tmpfs", options=f"mode={mode}")
    for path, handle in handles.items():
        os.makedirs(path)
        bind(f"/proc/self/fd/{handle}", path)
        os.close(handle)


def closed_folder_above(path: str) -> str:
    """Return the topmost folder above `path` that only its owner may enter, "" for none."""
    parent = "/"
    for part in path.strip("/").split("/")[:-1]:
        parent = os.path.join(parent, part)
        if not os.stat(parent).st_mode & 0o001:
            return parent
    return ""


def open_the_way(kept: list[str]) -> None:
    """Make each of these folders reachable for everybody.

    A checkout in /root, which nobody else may enter, is still there for the user of the box: in its
    place /root becomes an empty folder with nothing but the checkout in it.
    """
    for path in kept:
        closed = closed_folder_above(path)
        if closed:
            hide(closed, kept)


def change_root(box: Box, kept: list[str]) -> None:
    """Make another system's folder the root, with the host's /dev, /sys and the folders in `kept`.

    The folder itself stays as it is: what is written goes to a RAM disk over it. Raises OSError.
    """
    lower = os.open(box.root, os.O_PATH)
    handles = {path: os.open(path, os.O_PATH) for path in outermost(kept)}
    mount("tmpfs", "/mnt", "tmpfs", options="mode=755")
    os.chdir("/mnt")
    for name in ("upper", "work", "merged"):
        os.mkdir(name)
    # By descriptor and relative paths: commas and colons in a path mean something in the options.
    layers = f"lowerdir=/proc/self/fd/{lower},upperdir=upper,workdir=work"
    mount("overlay", "merged", "overlay", options=layers)
    os.close(lower)
    for name in ("dev", "sys", "proc"):
        bind(f"/{name}", f"merged/{name}")
    pivot_root("merged", "merged/mnt")
    os.chdir("/")
    for path, handle in handles.items():
        os.makedirs(path, exist_ok=True)
        bind(f"/proc/self/fd/{handle}", path)
        os.close(handle)
    detach("/mnt")


def mount_for_box(box: Box) -> None:
    """Mount what all nodes see alike. Raises OSError."""
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    kept = box.visible_paths()
    if box.root:
        change_root(box, kept)
    mount("proc", "/proc", "proc")
    open_the_way(kept)
    hide("/run", kept)
    for folder in (FIXED, "/run/munge", "/run/lock"):
        os.makedirs(folder)
    bind(box.path("slurm"), "/etc/slurm")
    for folder in FOR_SLURM:
        os.mkdir(f"{FIXED}/{folder}")
        bind(box.path(folder), f"{FIXED}/{folder}")
    for name in ("hosts", "passwd", "group", "shadow", "resolv.conf"):
        if box.root and not os.path.exists(f"/etc/{name}"):
            Path("/etc", name).touch()
        if os.path.exists(f"/etc/{name}"):
            bind(box.path("etc", name), f"/etc/{name}")
    for number in range(box.gpus):
        _bind_file("/dev/null", f"{FIXED}/fake-gpu{number}")
    _make_fuse()
    Path(NO_FUSE).touch(mode=0)
    if box.images:
        os.mkdir(FIXED + "/images")
        bind(os.path.realpath(box.images), FIXED + "/images", read_only=True)


def _bind_file(source: str, target: str) -> None:
    with open(target, "w", encoding="utf-8"):
        pass
    bind(source, target)


def mount_for_node(box: Box) -> None:
    """Mount what a node has of its own. Raises OSError."""
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc")
    _mount_sys()
    kept = box.visible_paths()
    hide("/tmp", kept, "1777")
    hide("/dev/shm", kept, "1777")
    mount("tmpfs", "/run/munge", "tmpfs", options="mode=755")


def _make_fuse() -> None:
    """Put a FUSE device for everybody in place of the host's, which may be root's alone."""
    device = f"{FIXED}/fuse"
    try:
        os.mknod(device, 0o20666, os.stat(FUSE).st_rdev)
        os.chmod(device, 0o666)
        bind(device, FUSE)
    except (PermissionError, FileNotFoundError):
        pass  # nobody makes devices in a user namespace; or this kernel has no FUSE


def _mount_sys() -> None:
    """Mount /sys anew, so that /sys/class/net lists the node's own interfaces.

    The cgroups below it come along: without them slurmd does not start.
    """
    temporary = f"{FIXED}/sys"
    os.makedirs(temporary, exist_ok=True)
    mount("sysfs", temporary, "sysfs")
    if os.path.isdir("/sys/fs/cgroup"):
        bind("/sys/fs/cgroup", temporary + "/fs/cgroup")
    bind(temporary, "/sys")
