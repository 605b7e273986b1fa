"""The network between the nodes of a job: names, connections, clocks.

Each node listens; each tries to reach the others by name and, where the site names an interface, by
the address of that. What they report is judged in one place, so that a node which nobody reaches is
one line and not one for each of the others.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import statistics
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.doctor.limits import fork
from _llm.doctor.network import is_loopback, resolve
from _llm.doctor.report import some

CONNECT_SECONDS = 5.0
# One and the same from Python 3.10 on.
UNANSWERED = (TimeoutError, socket.timeout)
# All with all up to here; beyond it each node tries its next ones, at growing distances.
ALL_WITH_ALL = 64
CLOCK = struct.Struct("!d")
# Files seem to come from the future; beyond a minute, munge and TLS begin to refuse.
SKEW_WARN, SKEW_FAIL = 1.0, 60.0


def listen() -> socket.socket:
    """A listening socket on a free port of every address of this node."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def serve(listener: socket.socket, seconds: float, clock: Callable[[], float] = time.time) -> int:
    """Answer every connection with the time, in a child process; return its id."""
    process = fork()
    if process:
        return process
    try:
        signal.alarm(int(seconds) + 1)
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    if connection.recv(1):
                        connection.sendall(CLOCK.pack(clock()))
                        continue
                except OSError:
                    pass
                selector.unregister(connection)
                connection.close()
    finally:
        os._exit(0)


def chosen(own: str, nodes: Sequence[str]) -> list[str]:
    """The nodes that a node tries to reach: all, or in a large job some near and far ones."""
    if len(nodes) <= ALL_WITH_ALL:
        return [node for node in nodes if node != own]
    start = list(nodes).index(own)
    powers = range((len(nodes) - 1).bit_length())
    return [nodes[(start + (1 << power)) % len(nodes)] for power in powers]


def look(own: str, peers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Resolve the names of all nodes and reach them. peers: {node, port, address} of each.

    Returns {names: node -> addresses or error, reached: node -> {error, ms, offset_s}}.
    """
    by_name = {str(peer["node"]): peer for peer in peers}
    others = chosen(own, list(by_name))
    with ThreadPoolExecutor(32) as pool:
        names = dict(zip(by_name, pool.map(_resolved, by_name)))
        reached = dict(
            zip(others, pool.map(lambda node: _reach(by_name[node], names[node]), others))
        )
    return {"names": names, "reached": reached}


def _resolved(name: str) -> dict[str, Any]:
    try:
        return {"addresses": resolve(name)}
    except OSError as error:
        return {"addresses": [], "error": error.strerror or str(error)}


def _reach(peer: Mapping[str, Any], name: Mapping[str, Any]) -> dict[str, Any]:
    ways = {"name": str(peer["node"])} if name["addresses"] else {}
    if peer.get("address"):
        ways["interface"] = str(peer["address"])
    found: dict[str, Any] = {}
    for way, host in ways.items():
        try:
            with socket.create_connection((host, int(peer["port"])), CONNECT_SECONDS) as connection:
                found.update(_compare_clocks(connection))
        except OSError as error:
            reason = (
                "no answer" if isinstance(error, UNANSWERED) else error.strerror or str(error)
            )
            found.setdefault("errors", {})[way] = f"{host}: {reason}"
    return found


def _compare_clocks(connection: socket.socket) -> dict[str, float]:
    """Offset of the other's clock in seconds, by the round trip that took least (as NTP does)."""
    best, offset = float("inf"), 0.0
    for _ in range(5):
        before, start = time.time(), time.monotonic()
        connection.sendall(b"?")
        answer = b""
        while len(answer) < CLOCK.size:
            piece = connection.recv(CLOCK.size - len(answer))
            if not piece:
                raise ConnectionError("closed the connection")
            answer += piece
        taken = time.monotonic() - start
        if taken < best:
            best, offset = taken, CLOCK.unpack(answer)[0] - (before + taken / 2)
    return {"ms": best * 1000, "offset_s": offset}


def judge(reports: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """What the nodes found out about each other. reports: of `look`, by node."""
    if len(reports) < 2:
        return [Finding("connections", SKIP, "not tried: fewer than two nodes answered")]
    return [*_names(reports), *_connections(reports), *_clocks(reports)]


def _names(reports: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    unknown: dict[str, list[str]] = {}
    loopback: dict[tuple[str, str], list[str]] = {}
    for node, report in reports.items():
        for name, answer in report["names"].items():
            if not answer["addresses"]:
                unknown.setdefault(name, []).append(node)
            elif is_loopback(answer["addresses"][0]) and name != node:  # its own: network.py
                loopback.setdefault((name, answer["addresses"][0]), []).append(node)
    found = []
    for name, nodes in unknown.items():
        text = f"the name {name} can't be resolved on {some(nodes)}"
        fix = f"an administrator: {name} into the DNS, or into /etc/hosts of every node"
        found.append(Finding("names", FAIL, text, fix))
    for (name, address), nodes in loopback.items():
        text = f"{name} means {address} on {some(nodes)}: ranks there would talk to themselves"
        fix = f"an administrator: in /etc/hosts of {some(nodes)}, give {name} its real address"
        found.append(Finding("names", FAIL, text, fix))
    return found or [Finding("names", OK, f"all {len(reports)} nodes resolve the names of all")]


def _connections(reports: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    failed: dict[tuple[str, str], list[str]] = {}
    times = []
    for node, report in reports.items():
        for other, answer in report["reached"].items():
            times += [answer["ms"]] if "ms" in answer else []
            for way, reason in answer.get("errors", {}).items():
                failed.setdefault((other, f"{way} {reason}"), []).append(node)
    fix = (
        "an administrator: a firewall between nodes? the same network? [network] interface of "
        "the site profile names the right one"
    )
    found = [
        Finding(
            "connections", FAIL, f"{other} can't be reached from {some(nodes)} by {reason}", fix
        )
        for (other, reason), nodes in failed.items()
    ]
    if found:
        return found
    measured = f"round trip {statistics.median(times):.2f} ms" if times else ""
    text = "every node reaches every other on a free port"
    if len(reports) > ALL_WITH_ALL:
        text = "every node reaches those that it tried, near and far"
    return [Finding("connections", OK, text, measured=measured)]


def _clocks(reports: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Compare each clock with the middle one of the first node's view."""
    offsets: dict[str, float] = {}
    for node, report in reports.items():
        offsets.setdefault(node, 0.0)
        for other, answer in report["reached"].items():
            if "offset_s" in answer:
                offsets.setdefault(other, offsets[node] + answer["offset_s"])
    middle = statistics.median(offsets.values())
    found = []
    for node, offset in offsets.items():
        skew = offset - middle
        if abs(skew) > SKEW_WARN:
            direction = "ahead of" if skew > 0 else "behind"
            text = f"the clock of {node} is {direction} the others"
            fix = f"an administrator: chronyc makestep on {node}, and is chronyd running there?"
            status = FAIL if abs(skew) > SKEW_FAIL else WARN
            found.append(Finding("clocks", status, text, fix, f"{abs(skew):.1f} s"))
    if found:
        return found
    worst = max(abs(offset - middle) for offset in offsets.values())
    return [
        Finding("clocks", OK, "the nodes' clocks agree", measured=f"within {worst * 1000:.0f} ms")
    ]
