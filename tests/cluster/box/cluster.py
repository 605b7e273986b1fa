"""The verbs: start a box, run commands in its nodes, break things, stop it.

from box.cluster import Cluster; Cluster.up(Box(state="/var/tmp/llm-box-test")).run("sinfo")
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from box import cgroups, settings, slurm_conf
from box.settings import (
    DEFAULT_PARTITION,
    LOGIN,
    SEARCH_PATH,
    URGENT_PARTITION,
    USER,
    USER_ID,
    Box,
)
from box.state import (
    PROGRAM,
    START_TIMEOUT_S,
    BoxError,
    clean,
    default_state,
    is_up,
    prepare,
    start_supervisor,
)

Seen = TypeVar("Seen")


class Cluster:
    """A running box."""

    def __init__(self, box: Box, supervisor: int) -> None:
        self.box = box
        self.supervisor = supervisor
        self.process: subprocess.Popen[bytes] | None = None

    # --- life ---

    @classmethod
    def up(cls, box: Box, attached: bool = False) -> Cluster:
        """Start a box and wait until all its nodes are idle.

        attached: the box ends with this process, however that ends, and leaves no files.
        Raises BoxError.
        """
        if box.cgroups:
            box = dataclasses.replace(box, cgroup_folders=cgroups.box_folders(box))
        lock = prepare(box)
        try:
            process = start_supervisor(box, lock, attached)
        finally:
            os.close(lock)
        cluster = cls(box, int(Path(box.path("pid")).read_text(encoding="utf-8")))
        cluster.process = process
        try:
            cluster.wait_for_nodes()
        except BaseException:
            cluster.down()
            raise
        return cluster

    @classmethod
    def find(cls, state: str) -> Cluster:
        """Return the box that runs in this state folder. Raises BoxError."""
        if not is_up(state):
            raise BoxError(f"no box is up in {state}: make cluster-up")
        try:
            return cls(settings.load(state), int(Path(state, "pid").read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise BoxError(f"the box in {state} is just starting or ending") from None

    def down(self) -> None:
        """Stop the box and wait until all of it is gone. The user's files stay."""
        try:
            self.command("stop")
        except (BoxError, OSError):
            self._kill()
        deadline = time.monotonic() + 20
        while is_up(self.box.state):
            if time.monotonic() > deadline:
                self._kill()
            time.sleep(0.02)
        if self.process:
            if self.process.stdin:
                self.process.stdin.close()
            self.process.wait()
        clean(self.box.state)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.supervisor, signal.SIGKILL)

    def wait_for_nodes(self, timeout: float = START_TIMEOUT_S) -> None:
        """Wait until all compute nodes are idle. Raises BoxError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        seen = ""
        while time.monotonic() < deadline:
            done = self.run(["sinfo", "-h", "-N", "-p", DEFAULT_PARTITION, "-o", "%N %T"],
                            user=False, timeout=30)  # fmt: skip
            seen = done.stdout + done.stderr
            states = dict(line.split() for line in done.stdout.splitlines())
            if list(states.values()) == ["idle"] * self.box.nodes:
                return
            if "fatal:" in done.stderr:
                break
            time.sleep(0.1)
        raise BoxError(f"not all nodes came up; logs: {self.box.path('log')}\n{seen}")

    # --- commands ---

    @property
    def nodes(self) -> list[str]:
        """Names of the compute nodes."""
        return self.box.compute_nodes

    @property
    def home(self) -> Path:
        """The user's home folder, the same path inside and outside."""
        return Path(self.box.home)

    @property
    def shared(self) -> Path:
        """A folder that everybody may write to, the same path inside and outside."""
        return Path(self.box.shared)

    def start(
        self,
        command: str | Sequence[str],
        node: str = LOGIN,
        user: bool = True,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command in a node, as `ssh NODE COMMAND` would.

        command: words, or text for bash. user: as the user, else as root. cwd: else the home
        folder. env: variables on top of those of a login. options: Popen's. Raises BoxError.
        """
        words = ["bash", "-c", command] if isinstance(command, str) else list(command)
        home = self.box.home if user else "/root"
        variables = {"PATH": SEARCH_PATH, "HOME": home, "SHELL": "/bin/bash", "LANG": "C.UTF-8"}
        variables["USER"] = variables["LOGNAME"] = USER if user else "root"
        variables.update(LLM_SITE="box", TERM=os.environ.get("TERM", "dumb"))
        variables.update(env or {})
        request = {
            "namespaces": self._namespaces(node),
            "uid": USER_ID if user else 0,
            "gid": USER_ID if user else 0,
            "cwd": os.fspath(cwd) if cwd else home if user else "/",
            "env": variables,
            "command": words,
        }
        enter = [sys.executable, "-I", "-S", os.path.join(PROGRAM, "enter.py")]
        return subprocess.Popen([*enter, json.dumps(request)], text=True, **options)

    def run(
        self,
        command: str | Sequence[str],
        node: str = LOGIN,
        user: bool = True,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout: float = 120,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a node to its end: see `start`. timeout: in seconds.

        Raises subprocess.TimeoutExpired, with check also CalledProcessError.
        """
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        source = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.start(command, node, user, cwd, env, stdin=source, **pipes) as process:
            try:
                out, errors = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(command, process.returncode, out, errors)
        if check:
            done.check_returncode()
        return done

    def _namespaces(self, node: str) -> list[str]:
        nodes = self.status()
        if node not in nodes:
            raise BoxError(f"there is no node '{node}'; nodes: {' '.join(nodes)}")
        if not nodes[node]["up"]:
            raise BoxError(f"{node} is switched off: start-node {node}")
        folder = f"/proc/{self.supervisor}/root/proc/{nodes[node]['pid']}/ns"
        kinds = ["user"] if self.box.rootless else []
        return [f"{folder}/{name}" for name in (*kinds, "pid", "net", "uts", "ipc", "mnt")]

    # --- breaking things ---

    def command(self, verb: str, node: str = "", value: str = "") -> dict[str, Any]:
        """Send a command to the supervisor and return its answer. Raises BoxError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(120)
            connection.connect(self.box.control)
            request = json.dumps({"verb": verb, "node": node, "value": value})
            with connection.makefile("rw", encoding="utf-8") as stream:
                stream.write(request + "\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline() or "{}")
        if "error" in answer:
            raise BoxError(str(answer["error"]))
        return answer

    def status(self) -> dict[str, dict[str, Any]]:
        """Return for each node whether it is up, its link and its /dev/fuse."""
        nodes: dict[str, dict[str, Any]] = self.command("status")["nodes"]
        return nodes

    def kill_node(self, node: str) -> None:
        """Switch a node off, as if by its power cord."""
        self.command("kill", node)

    def start_node(self, node: str) -> None:
        """Switch a node on again."""
        self.command("start", node)

    def cut(self, node: str) -> None:
        """Pull a node's network cable."""
        self.command("cut", node)

    def mend(self, node: str) -> None:
        """Plug it in again."""
        self.command("mend", node)

    def set_speed(self, node: str, rate: str = "") -> None:
        """Limit a node's link in both directions. rate: such as 100mbit; "" for no limit."""
        self.command("speed", node, rate)

    def set_fuse(self, node: str, usable: bool) -> None:
        """Let users use /dev/fuse on a node, or don't."""
        self.command("fuse", node, "on" if usable else "off")

    def repair(self) -> None:
        """Cancel all jobs and make every node whole and idle again. Raises BoxError."""
        self.run(["scancel", "--user", USER], user=False)
        for name, node in self.status().items():
            if not node["up"]:
                self.start_node(name)
                continue
            if node["cut"]:
                self.mend(name)
            if node["speed"]:
                self.set_speed(name)
            if not node["fuse"]:
                self.set_fuse(name, True)
        done = self.run(["sinfo", "-h", "-N", "-o", "%N %T"], user=False)
        for name, state in sorted({tuple(line.split()) for line in done.stdout.splitlines()}):
            if state.startswith(("drain", "down")):
                self.resume(name)
        self.wait_for_nodes()

    # --- Slurm ---

    def scontrol(self, *words: str) -> str:
        """Run scontrol as root. Raises BoxError with what it says."""
        done = self.run(["scontrol", *words], user=False)
        if done.returncode:
            raise BoxError(f"scontrol {shlex.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def drain(self, node: str) -> None:
        """Let no more jobs start on a node."""
        self.scontrol("update", f"NodeName={node}", "State=DRAIN", "Reason=by hand")

    def resume(self, node: str) -> None:
        """Let jobs start on a drained or failed node again."""
        self.scontrol("update", f"NodeName={node}", "State=RESUME")

    def requeue(self, job: str | int) -> None:
        """Stop a job and put it into the queue again."""
        self.scontrol("requeue", str(job))

    def preempt(self, node: str, seconds: int = 5) -> str:
        """Send a job of the urgent partition to a node, which pushes others out. Returns its id."""
        done = self.run(
            ["sbatch", "--parsable", f"--partition={URGENT_PARTITION}", f"--nodelist={node}",
             "--exclusive", "--output=/dev/null", f"--wrap=sleep {seconds}"])  # fmt: skip
        if done.returncode:
            raise BoxError(done.stderr.strip())
        return done.stdout.strip()

    def set_grace(self, seconds: int) -> None:
        """Give jobs of the default partition so long between preemption's SIGTERM and the end."""
        partition = f"PartitionName={DEFAULT_PARTITION}"
        self.scontrol("update", partition, f"GraceTime={seconds}")

    def configure(self, **lines: str) -> None:
        """Change lines of slurm.conf; "" takes one away. Daemons reread what they can reread."""
        merged = {**self.box.slurm, **lines}
        self.box = dataclasses.replace(self.box, slurm=merged)
        self.box.save()
        slurm_conf.write_all(self.box)
        self.scontrol("reconfigure")

    def job(self, job: str | int) -> dict[str, str]:
        """Return what `scontrol show job` says. Raises BoxError where there is no such job."""
        text = self.scontrol("--oneliner", "show", "job", str(job)).splitlines()[0]
        return _fields(text)

    def wait(
        self, job: str | int, states: str | Sequence[str], timeout: float = 90
    ) -> dict[str, str]:
        """Wait until a job is in one of these states. Raises BoxError after `timeout` seconds."""
        wanted = [states] if isinstance(states, str) else list(states)
        return self.wait_until(
            lambda: self.job(job), lambda seen: seen["JobState"] in wanted, timeout,
            f"job {job} did not become {' or '.join(wanted)}")  # fmt: skip

    def node(self, node: str) -> dict[str, str]:
        """Return what `scontrol show node` says."""
        text = self.scontrol("--oneliner", "show", "node", node)
        return _fields(text)

    def wait_node(
        self, node: str, state: str | tuple[str, ...], timeout: float = 90
    ) -> dict[str, str]:
        """Wait until a node's state begins so. Raises BoxError after `timeout` seconds."""
        return self.wait_until(
            lambda: self.node(node), lambda seen: seen["State"].startswith(state), timeout,
            f"{node} did not become {state}")  # fmt: skip

    def wait_until(
        self,
        look: Callable[[], Seen],
        fits: Callable[[Seen], bool],
        timeout: float,
        otherwise: str,
    ) -> Seen:
        """Look again and again. Raises BoxError with what was seen last."""
        deadline = time.monotonic() + timeout
        while True:
            seen = look()
            if fits(seen):
                return seen
            if time.monotonic() > deadline:
                raise BoxError(f"{otherwise} in {timeout:.0f} s: {seen}")
            time.sleep(0.2)


def _fields(text: str) -> dict[str, str]:
    """Return the fields of a line of `scontrol --oneliner`."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|\s*$)", text))


__all__ = ["BoxError", "Cluster", "clean", "default_state", "is_up"]
