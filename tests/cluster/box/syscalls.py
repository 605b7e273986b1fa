"""System calls that Python 3.9's standard library lacks, by ctypes: see the manual pages named."""

from __future__ import annotations

import ctypes
import os
import signal

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1


def _check(result: int, *what: object) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), " ".join(str(w) for w in what))


def unshare(flags: int) -> None:
    """Leave namespaces for new ones: unshare(2). Raises OSError."""
    _check(LIBC.unshare(flags), "unshare")


def setns(path: str) -> None:
    """Join the namespace that a file in /proc/PID/ns stands for: setns(2). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(LIBC.setns(descriptor, 0), "setns", path)
    finally:
        os.close(descriptor)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount: mount(2), with the file system type as `kind`. Raises OSError."""
    encoded = [os.fsencode(text) if text else None for text in (source, target, kind)]
    data = os.fsencode(options) if options else None
    result = LIBC.mount(*encoded, ctypes.c_ulong(flags), data)
    _check(result, "mount", kind or source, "on", target)


def bind(source: str, target: str, read_only: bool = False) -> None:
    """Show a file or a folder, with what is mounted below it, at another path. Raises OSError."""
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        # In a user namespace what the original mount forbids has to stay forbidden.
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def detach(target: str) -> None:
    """Unmount, now or when nobody uses it any more: umount2(2). Raises OSError."""
    _check(LIBC.umount2(os.fsencode(target), MNT_DETACH), "umount", target)


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root of this mount namespace; the old root appears at `old`: pivot_root(2)."""
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]  # libc has no function for it
    _check(LIBC.syscall(number, os.fsencode(new), os.fsencode(old)), "pivot_root", new)


def die_with_parent() -> None:
    """Be killed when the process (strictly: the thread) that started this one ends: prctl(2).

    Lost when the user id changes: call it after that.
    """
    _check(LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")
