"""A node: namespaces and their first process, which starts slurmd and buries orphans.

Forked by the supervisor with pipes as standard input and output: it prints its process id, waits
for a line (by then its network link is there), and prints `up`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

from box import cgroups, munge
from box.mounts import mount_for_node
from box.namespaces import hold
from box.settings import LOGIN, Box

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def main(box: Box, name: str) -> int:
    """Be a node until it is killed."""
    return hold(
        lambda pid: os.write(1, f"{pid}\n".encode()),
        lambda: _first_process(box, name),
    )


def _first_process(box: Box, name: str) -> None:
    socket.sethostname(name)
    if box.cgroups:
        cgroups.enter(box.cgroup_folders, name)
    mount_for_node(box)
    if not os.read(0, 16):
        return
    script = f"link set lo up\naddr add {box.address(name)}/24 dev eth0\nlink set eth0 up\n"
    subprocess.run(["ip", "-batch", "-"], input=script, text=True, check=True)
    munge.start(box, name)
    signal.signal(signal.SIGCHLD, _bury)
    if name != LOGIN:
        spool = box.path("spool", name)
        os.makedirs(spool, exist_ok=True)
        with open(box.path("log", f"slurmd-{name}.out"), "ab") as log:
            subprocess.Popen(
                ["slurmd", "-D"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=spool
            )
    os.write(1, b"up\n")
    while True:
        time.sleep(1)
        _bury()


def _bury(*_: object) -> None:
    """Wait for every process that has ended: all orphans of a node are its first one's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

