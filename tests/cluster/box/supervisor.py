"""The process that holds a box: bridge, munged, slurmctld and nodes are in its namespaces.

Started by `up`. When it ends, however it ends, the kernel takes everything with it. It takes
commands as lines of JSON through a socket in the state folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO

from box import cgroups, munge
from box import node as node_process
from box.mounts import FUSE, NO_FUSE, mount_for_box
from box.namespaces import hold
from box.settings import CHECKOUT, CONTROLLER, USER_ID, Box, load
from box.state import delete
from box.syscalls import bind, detach, setns

BRIDGE = "box0"


class Node:
    """A running node: the process that holds it, pipes to it, its first process, and its link."""

    def __init__(self, holder: int, to_node: IO[str], from_node: IO[str]) -> None:
        self.holder = holder
        self.to_node = to_node
        self.from_node = from_node
        self.pid = 0
        self.is_cut = False
        self.speed = ""
        self.has_fuse = True


class CommandError(Exception):
    """A command that the supervisor could not carry out."""


def main(state: str, ready: int, lifeline: bool) -> int:
    """Hold the box in this state folder.

    ready: a file descriptor that gets `ready` when all nodes have been started. lifeline: end when
    standard input is closed, and delete the state folder then.
    """
    os.umask(0o022)

    def started(pid: int) -> None:
        temporary = os.path.join(state, ".pid")
        Path(temporary).write_text(f"{pid}\n", encoding="utf-8")
        os.replace(temporary, os.path.join(state, "pid"))
        os.close(ready)

    box = load(state)
    # In another system's folder the state folder is a mount, which can't be removed under its name.
    parent = os.open(os.path.dirname(state), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = hold(started, lambda: Supervisor(box).run(ready, lifeline), box.rootless)
    # All that the kernel does not take away by itself.
    for folder in box.cgroup_folders:
        cgroups.remove(folder)
    if lifeline:
        delete(state)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.basename(state), dir_fd=parent)
    return status


class Supervisor:
    """All that one box consists of."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.nodes: dict[str, Node] = {}

    def run(self, ready: int, lifeline: bool) -> None:
        """Set everything up, then take commands until told to stop."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: os._exit(0))
        socket.sethostname(CONTROLLER)
        self._make_home()
        mount_for_box(self.box)
        self._ip(
            "link set lo up",
            f"link add {BRIDGE} type bridge forward_delay 0",
            f"addr add {self.box.address(CONTROLLER)}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        )
        self._start_daemons()
        self._start(self.box.all_nodes)
        listener = self._listen()
        os.write(ready, b"ready\n")
        os.close(ready)
        watched: list[socket.socket | IO[str]] = [listener]
        if lifeline:
            watched.append(sys.stdin)
        while True:
            for source in select.select(watched, [], [], 1.0)[0]:
                if source is sys.stdin:
                    if not os.read(0, 1024):
                        return
                elif not self._serve(listener):
                    return
            self._bury()

    def _make_home(self) -> None:
        """Make the user's home folder, with a profile that does what a module would."""
        home = self.box.home
        if os.path.isdir(home):
            return
        os.mkdir(home, 0o755)
        profile = Path(home, ".profile")
        path = shlex.quote(os.path.join(CHECKOUT, "bin"))
        profile.write_text(f"export PATH={path}:$PATH LLM_SITE=box\n", encoding="utf-8")
        for made in (home, profile):
            os.chown(made, USER_ID, USER_ID)

    def _bury(self) -> None:
        """Wait for every process that has ended. Orphans of the whole box come here."""
        while True:
            try:
                pid = os.waitpid(-1, os.WNOHANG)[0]
            except ChildProcessError:
                return
            if not pid:
                return
            for name in [name for name, node in self.nodes.items() if node.holder == pid]:
                del self.nodes[name]

    def _ip(self, *lines: str) -> None:
        done = subprocess.run(
            ["ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True
        )
        if done.returncode:
            raise CommandError(done.stderr.strip())

    def _start_daemons(self) -> None:
        munge.start(self.box, CONTROLLER)
        self._daemon("slurmctld", "slurmctld", "-D")

    def _daemon(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with open(self.box.path("log", name + ".out"), "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.box.state
            )

    def _start(self, names: list[str]) -> None:
        """Start nodes, all at the same time."""
        for name in names:
            if self.box.cgroups:
                cgroups.make(self.box.cgroup_folders, name)
            self.nodes[name] = self._fork_node(name)
        for name in names:
            self._connect(name, self.nodes[name])
        for name in names:
            self._expect(name, self.nodes[name])

    def _fork_node(self, name: str) -> Node:
        """Start a node's holder. No new Python: this one's files may be out of sight by now."""
        (node_in, to_node), (from_node, node_out) = os.pipe(), os.pipe()
        holder = os.fork()
        if holder == 0:
            status = 1
            try:
                log = os.open(self.box.path("log", f"node-{name}.out"), node_process.APPEND, 0o644)
                for number, descriptor in enumerate((node_in, node_out, log)):
                    os.dup2(descriptor, number)
                os.closerange(3, 1024)
                status = node_process.main(self.box, name)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(node_in)
        os.close(node_out)
        return Node(holder, open(to_node, "w"), open(from_node))

    def _expect(self, name: str, node: Node) -> str:
        line = node.from_node.readline().strip()
        if not line:
            raise CommandError(f"{name} ended: see {self.box.path('log', f'node-{name}.out')}")
        return line

    def _connect(self, name: str, node: Node) -> None:
        """Lay a cable from the bridge to a node and let the node go on."""
        node.pid = int(self._expect(name, node))
        self._ip(
            f"link add {name} type veth peer name eth0 netns {node.pid}",
            f"link set {name} master {BRIDGE} up",
        )
        node.to_node.write("go\n")
        node.to_node.flush()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        Path(self.box.control).unlink(missing_ok=True)
        listener.bind(self.box.control)
        os.chmod(self.box.control, 0o600)
        listener.listen(16)
        return listener

    def _serve(self, listener: socket.socket) -> bool:
        """Carry out one command. Returns False when the box should end."""
        connection = listener.accept()[0]
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            connection.settimeout(10)
            try:
                request = json.loads(stream.readline())
                answer = self._answer(**request)
            except (CommandError, OSError, ValueError, TypeError) as error:
                answer = {"error": str(error)}
            try:
                stream.write(json.dumps(answer) + "\n")
                stream.flush()
            except OSError:
                pass
            return "stopping" not in answer

    def _answer(self, verb: str, node: str = "", value: str = "") -> dict[str, object]:
        if verb == "stop":
            return {"stopping": True}
        if verb == "status":
            return {"nodes": {name: self._describe(name) for name in self.box.all_nodes}}
        if node not in self.box.all_nodes:
            names = " ".join(self.box.all_nodes)
            raise CommandError(f"there is no node '{node}'; nodes: {names}")
        actions = {"cut": self._cut, "mend": self._mend, "kill": self._kill, "start": self._restart}
        if verb in actions:
            actions[verb](node)
        elif verb == "speed":
            self._speed(node, value)
        elif verb == "fuse":
            self._set_fuse(node, value == "on")
        else:
            raise CommandError(f"unknown command '{verb}'")
        return {}

    def _describe(self, name: str) -> dict[str, object]:
        node = self.nodes.get(name)
        if node is None:
            return {"up": False}
        link = {"cut": node.is_cut, "speed": node.speed}
        return {"up": True, "pid": node.pid, "fuse": node.has_fuse, **link}

    def _set_fuse(self, name: str, usable: bool) -> None:
        """Lay a closed file over a node's /dev/fuse, or take it away."""
        node = self._running(name)
        if usable == node.has_fuse:
            return
        child = os.fork()
        if child == 0:
            status = 1
            try:
                setns(f"/proc/{node.pid}/ns/mnt")
                detach(FUSE) if usable else bind(NO_FUSE, FUSE)
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1]:
            raise CommandError(f"/dev/fuse of {name} can't be changed")
        node.has_fuse = usable

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CommandError(done.stderr.strip())

    def _running(self, name: str) -> Node:
        if name not in self.nodes:
            raise CommandError(f"{name} is not running: start-node {name}")
        return self.nodes[name]

    def _cut(self, name: str) -> None:
        self._running(name).is_cut = True
        self._ip(f"link set {name} down")

    def _mend(self, name: str) -> None:
        self._running(name).is_cut = False
        self._ip(f"link set {name} up")

    def _kill(self, name: str) -> None:
        """Switch a node off. The cable goes first: a dead machine says no goodbye to others."""
        node = self._running(name)
        self._cut(name)
        os.kill(node.pid, signal.SIGKILL)
        os.waitpid(node.holder, 0)
        del self.nodes[name]
        # The kernel takes the cable away with the node, but later; the name is needed at once.
        cable = f"/proc/sys/net/ipv4/conf/{name}"
        try:
            if os.path.exists(cable):
                self._ip(f"link del {name}")
        except CommandError:  # gone in between
            if os.path.exists(cable):
                raise

    def _restart(self, name: str) -> None:
        if name in self.nodes:
            raise CommandError(f"{name} is running")
        self._start([name])

    def _speed(self, name: str, rate: str) -> None:
        """Limit a link in both directions. rate: as for tc(8), such as 100mbit; "" for none."""
        node = self._running(name)
        inside = ["nsenter", f"--net=/proc/{node.pid}/ns/net"]
        for prefix, device in (([], name), (inside, "eth0")):
            change = [*prefix, "tc", "qdisc"]
            if rate:
                shape = ["root", "tbf", "rate", rate, "burst", "128kb", "latency", "100ms"]
                self._run(*change, "replace", "dev", device, *shape)
            else:
                subprocess.run([*change, "del", "dev", device, "root"], capture_output=True)
        node.speed = rate

