"""Network of one node: interfaces, RDMA devices, locked memory, and what its own name means."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
from pathlib import Path

from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.doctor.limits import Stage
from _llm.settings import Settings

# netdevice(7)
SIOCGIFADDR = 0x8915


def interfaces(root: str = "/") -> dict[str, dict[str, str]]:
    """Name -> address, state and speed (Mbit/s) of each interface.

    root: where sys/ and proc/ are.
    """
    found = {}
    six = _addresses6(root)
    for folder in sorted(Path(root, "sys/class/net").glob("*")):
        name = folder.name
        address = (address4(name) if root == "/" else "") or six.get(name, "")
        state, speed = _read(folder / "operstate"), _read(folder / "speed")
        found[name] = {"address": address, "state": state, "speed": speed}
    return found


def address4(name: str) -> str:
    """IPv4 address of an interface, "" for none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            request = struct.pack("256s", os.fsencode(name)[:15])
            answer = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def _addresses6(root: str) -> dict[str, str]:
    # fe80...: only within a link, of no use to programs. proc(5): address, index, bits, scope, ...
    found = {}
    for line in _read(Path(root, "proc/net/if_inet6")).splitlines():
        fields = line.split()
        if len(fields) == 6 and fields[3] != "20":
            found[fields[5]] = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0]))
    return found


def node(settings: Settings, node_count: int, stage: Stage) -> list[Finding]:
    """Everything about the network that one node knows by itself. node_count: of its job."""
    stage("listing network interfaces")
    there = interfaces()
    interface = settings.get("network", "interface")
    return [*_interfaces(there, interface), *rdma(), *own_name(node_count, interface, stage)]


def _interfaces(there: dict[str, dict[str, str]], wanted: str) -> list[Finding]:
    shown = []
    for name, facts in there.items():
        if name == "lo" or not facts["address"]:
            continue
        speed = int(facts["speed"]) if facts["speed"].lstrip("-").isdigit() else 0
        rate = f" at {speed / 1000:g} Gbit/s" if speed > 0 else ""
        shown.append(f"{name} {facts['address']}{rate}")
    names = [name for name in there if name != "lo" and there[name]["address"]]
    text = ", ".join(names) or "none but the loopback"
    found = [Finding("interfaces", OK, text, measured=", ".join(shown), data=there)]
    if not wanted:
        return found
    fix = "correct [network] interface of the site profile, or LLM_NETWORK_INTERFACE"
    if wanted not in there:
        text = f"there is no interface {wanted} on this node; it has {', '.join(names) or 'none'}"
        return [*found, Finding("interface", FAIL, text, fix)]
    if not there[wanted]["address"]:
        text = f"the interface {wanted} has no address ({there[wanted]['state'] or 'down'})"
        return [*found, Finding("interface", FAIL, text, fix)]
    return [*found, Finding("interface", OK, f"{wanted} of the site profile is there")]


def rdma(root: str = "/") -> list[Finding]:
    """InfiniBand and RoCE: devices, their state, and the memory that may be locked for them."""
    active, all_ports = [], []
    for port in sorted(Path(root, "sys/class/infiniband").glob("*/ports/*")):
        state, link = _read(port / "state"), _read(port / "link_layer")
        name = f"{port.parts[-3]}:{port.name}"
        all_ports.append(f"{name} {state.partition(': ')[2] or state}")
        if "ACTIVE" in state:
            active.append(f"{name} {link} {_read(port / 'rate')}".strip())
    if not all_ports:
        return [Finding("rdma", SKIP, "no InfiniBand or RoCE devices: NCCL and gloo use TCP")]
    if not active:
        text = f"no port is active: {', '.join(all_ports)}"
        return [
            Finding(
                "rdma", WARN, text, "an administrator looks at the cable and the subnet manager"
            )
        ]
    found = [Finding("rdma", OK, ", ".join(active), data={"ports": active})]
    verbs = sorted(Path(root, "dev/infiniband").glob("uverbs*"))
    if not any(os.access(path, os.R_OK | os.W_OK) for path in verbs):
        text = "/dev/infiniband is missing or closed to you: NCCL falls back to TCP"
        fix = "an administrator: modprobe ib_uverbs; chmod 0666 /dev/infiniband/uverbs*"
        found.append(Finding("rdma", FAIL, text, fix))
    return [*found, *locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])]


def locked_memory(limit: int) -> list[Finding]:
    """Whether RDMA may lock as much memory as it wants. limit: in bytes, -1 for none."""
    if limit == resource.RLIM_INFINITY:
        return [Finding("memlock", OK, "unlimited")]
    text = f"only {limit >> 10} KiB may be locked: RDMA fails or falls back to TCP"
    fix = (
        "an administrator: LimitMEMLOCK=infinity for slurmd's unit, and in slurm.conf "
        "PropagateResourceLimitsExcept=MEMLOCK"
    )
    return [Finding("memlock", FAIL, text, fix)]


def resolve(name: str) -> list[str]:
    """The addresses that a name means on this node. Raises OSError for none."""
    answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def is_loopback(address: str) -> bool:
    """Whether only this node can reach an address."""
    return address.startswith("127.") or address == "::1"


def own_name(node_count: int, interface: str, stage: Stage) -> list[Finding]:
    """What this node's own name means: gloo asks exactly that, unless it is told an interface.

    node_count: nodes that have to talk to each other. interface: of the site profile, "" for none.
    """
    name = socket.gethostname()
    stage(f"resolving {name}")
    bad = OK if node_count < 2 else WARN if interface else FAIL
    fix = (
        f"an administrator: a line 'ADDRESS {name}' in /etc/hosts of all nodes, or in the DNS; "
        "or [network] interface of the site profile, which gloo and NCCL then use"
    )
    try:
        addresses = resolve(name)
    except OSError as error:
        text = f"{name} can't be resolved: {error.strerror}"
        return [Finding("own name", WARN if bad == OK else bad, text, fix)]
    measured = f"{name} is {', '.join(addresses)}"
    if not all(is_loopback(address) for address in addresses):
        return [Finding("own name", OK, "the node's own name has an address", measured=measured)]
    text = "the node's own name means the loopback"
    text += ": gloo would call itself" if bad != OK else ", which matters between nodes alone"
    return [Finding("own name", bad, text, fix, measured)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
