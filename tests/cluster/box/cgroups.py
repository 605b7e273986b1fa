"""Control groups for the nodes of a box, where the host still has the first version of them.

Slurm keeps a job's processes in groups named after user, job and step. A job that runs on two nodes
of a box would share them, so each node sees only a part of the host's tree as if it were all of it:
/sys/fs/cgroup/CONTROLLER of a node is the host's .../llm-box-NAME/NODE.
"""

from __future__ import annotations

import os
import time

from box.settings import Box
from box.syscalls import CLONE_NEWCGROUP, bind, unshare

TOP = "/sys/fs/cgroup"
# What Slurm's plugins proctrack/cgroup and task/cgroup use.
CONTROLLERS = ("freezer", "cpuset", "memory", "devices")


def find_version() -> str:
    """Return "v1" where this process may make groups for Slurm, else ""."""
    for controller in CONTROLLERS:
        parent = _own_group(controller)
        if not os.path.isfile(os.path.join(parent, "cgroup.procs")):
            return ""
        probe = os.path.join(parent, f"llm-box-probe-{os.getpid()}")
        try:
            os.mkdir(probe)
            os.rmdir(probe)
        except OSError:
            return ""
    return "v1"


def box_folders(box: Box) -> list[str]:
    """Folders of a box in the trees of all controllers."""
    return [os.path.join(_own_group(c), box.cgroup_name) for c in CONTROLLERS]


def _own_group(controller: str) -> str:
    """Folder of the group that this process is in: a box stays within its limits."""
    with open("/proc/self/cgroup", encoding="utf-8") as stream:
        for line in stream:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controller in controllers.split(","):
                return os.path.join(TOP, controller, path.lstrip("/"))
    return os.path.join(TOP, controller)


def make(folders: list[str], name: str) -> None:
    """Make the groups of a node anew, in these folders of the box."""
    for folder in folders:
        remove(os.path.join(folder, name))
        os.makedirs(os.path.join(folder, name))
        for group in (folder, os.path.join(folder, name)):
            _inherit_cpus(group)


def _inherit_cpus(group: str) -> None:
    """Give a new cpuset what its parent has: a new one is empty, and nothing can run in it."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        path = os.path.join(group, file)
        if not os.path.exists(path):
            return
        with open(os.path.join(os.path.dirname(group), file), encoding="utf-8") as stream:
            value = stream.read()
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(value)


def enter(folders: list[str], name: str) -> None:
    """Move this process into a node's groups and show it nothing else: in a mount namespace."""
    for folder in folders:
        with open(os.path.join(folder, name, "cgroup.procs"), "w", encoding="utf-8") as stream:
            stream.write("0\n")
    unshare(CLONE_NEWCGROUP)
    for controller, folder in zip(CONTROLLERS, folders):
        bind(os.path.join(folder, name), os.path.join(TOP, controller))


def remove(folder: str, timeout: float = 30.0) -> None:
    """Remove a group with all groups below it, which needs all its processes to be gone.

    Raises OSError after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    for top, _, _ in os.walk(folder, topdown=False):
        while True:
            try:
                os.rmdir(top)
                break
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
