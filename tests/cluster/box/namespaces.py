"""The start of a process that is the first one in namespaces of its own."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable

from box.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    die_with_parent,
    unshare,
)

# In the namespace of an ordinary user root is that user, all others are from the subordinate ids.
SUBORDINATE_IDS = 65535
EVERYTHING = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET


def become_root() -> None:
    """Enter a user namespace where this user is root, with the ids of /etc/subuid for others.

    Raises OSError or subprocess.CalledProcessError where that is not to be had: newuidmap(1).
    """
    me, user, group = os.getpid(), os.getuid(), os.getgid()
    first = {kind: subordinate_ids(kind) for kind in ("uid", "gid")}
    reading, writing = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(writing)
        status = 1
        if os.read(reading, 1):  # the namespace is there; only a process outside may fill its maps
            for kind, own in (("uid", user), ("gid", group)):
                ids = (0, own, 1, 1, first[kind], SUBORDINATE_IDS)
                status = subprocess.call([f"new{kind}map", str(me), *map(str, ids)])
                if status:
                    break
        os._exit(status)
    try:
        unshare(CLONE_NEWUSER)
        os.write(writing, b"x")
    finally:
        os.close(writing)
        os.close(reading)
        status = os.waitpid(helper, 0)[1]
    if status:
        raise PermissionError("newuidmap or newgidmap failed")
    os.setgid(0)
    os.setuid(0)


def subordinate_ids(kind: str) -> int:
    """Return the first of this user's subordinate ids, of which there must be enough.

    kind: uid or gid. Raises PermissionError: subuid(5).
    """
    names = {str(os.getuid()), pwd.getpwuid(os.getuid()).pw_name}
    with open(f"/etc/sub{kind}", encoding="utf-8") as stream:
        for line in stream:
            name, _, numbers = line.strip().partition(":")
            begin, _, count = numbers.partition(":")
            if name in names and count.isdigit() and int(count) >= SUBORDINATE_IDS:
                return int(begin)
    raise PermissionError(f"no {SUBORDINATE_IDS} subordinate ids in /etc/sub{kind}")


def hold(
    started: Callable[[int], object], first_process: Callable[[], None], rootless: bool = False
) -> int:
    """Run `first_process` as process 1 of new namespaces and wait until it has ended.

    started: called with its process id here. rootless: enter a user namespace first. When this
    process is killed, so is process 1, and the kernel kills with it all that is left in its
    namespaces. Returns its exit status.
    Raises OSError where namespaces can't be made.
    """
    if rootless:
        become_root()
    unshare(EVERYTHING)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(writing)
            die_with_parent()
            # Wait until `started` is done, before files move; no word: the parent is dead already.
            if os.read(reading, 1):
                first_process()
                status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGKILL))
    started(child)
    os.write(writing, b"x")
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
