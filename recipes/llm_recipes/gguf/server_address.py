"""Where a server listens, on which port, and how its user gets there from elsewhere.

    llm-run python -c "from llm_recipes.gguf.server_address import *; print(listening('auto'))"

A port of a compute node is reached through the login node, `ssh -L 8080:NODE:PORT LOGIN`, and that
only if the server listens on an address of the node's own: 127.0.0.1 is reached by those alone who
may log in to the node.
"""

from __future__ import annotations

import errno
import getpass
import ipaddress
import os
import random
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from llm_recipes.errors import LLMError

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
# Below Linux's ephemeral ports, which outgoing connections take at any time.
PORTS = range(20000, 32000)
PORTS_TRIED = 50
# Networks inside a machine, which nobody else reaches.
INNER_INTERFACES = ("lo", "docker", "br-", "virbr", "veth", "cni", "podman", "lxc", "tun", "tap")
LOCAL_PORT = 8080  # on the user's own machine


@dataclass(frozen=True)
class Listening:
    """bind: the address that the server listens on. host: the one by which it is called."""

    bind: str
    host: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.bind).is_loopback

    def url(self, port: int) -> str:
        """The server's address for programs, without a slash at its end."""
        return f"http://{in_url(self.host)}:{port}"


def listening(
    wanted: str, allow_public: bool = False, env: Mapping[str, str] | None = None
) -> Listening:
    """What `--listen auto|loopback|private|all|ADDRESS` means on this machine.

    auto: the node's private address within a Slurm job, if it has one, else loopback.

    Args:
        wanted: The option's value.
        allow_public: Take an address that the internet may reach.
        env: The environment; None is this process's.

    Raises:
        LLMError: If there is no such address here, or it is a public one.
    """
    env = os.environ if env is None else env
    if wanted == "auto":
        private = private_address(env) if "SLURM_JOB_ID" in env else None
        return Listening(private or LOOPBACK, private or LOOPBACK)
    if wanted == "loopback":
        return Listening(LOOPBACK, LOOPBACK)
    if wanted == "private":
        private = private_address(env)
        if private is None:
            found = ", ".join(own_addresses()) or "none but loopback"
            fix = "--listen loopback, or --listen ADDRESS"
            raise LLMError("this machine has no private address", f"it has {found}", fix)
        return Listening(private, private)
    if wanted == "all":
        public = [address for address in own_addresses() if is_public(address)]
        if public and not allow_public:
            raise _public_fault("--listen all", public[0])
        return Listening(EVERYWHERE, private_address(env) or next(iter(own_addresses()), LOOPBACK))
    return _named(wanted, allow_public)


def _named(wanted: str, allow_public: bool) -> Listening:
    try:
        address = str(ipaddress.ip_address(wanted.strip("[]")))
    except ValueError:
        address = resolved(wanted) or ""
    if not address:
        fix = "--listen auto, loopback, private, all or an address of this machine"
        raise LLMError(f"--listen {wanted!r} is no address", fix=fix)
    if ipaddress.ip_address(address).is_unspecified:
        raise LLMError(f"--listen {wanted} is every address", fix="--listen all")
    if is_public(address) and not allow_public:
        raise _public_fault(f"--listen {wanted}", address)
    if not can_bind(address, 0):
        found = ", ".join([LOOPBACK, *own_addresses()])
        raise LLMError(f"--listen {wanted} is not of this machine", f"it has {found}")
    return Listening(address, address)


def _public_fault(what: str, address: str) -> LLMError:
    return LLMError(
        f"{what} would listen on a public address",
        f"{address} may be reached from the internet, and http is not encrypted",
        "--listen private or loopback; --allow-public if a firewall is in front of it",
    )


def private_address(env: Mapping[str, str]) -> str | None:
    """An address of this machine that other machines of the cluster reach, and none else.

    The one towards the login node, if it is known; else the one of the node's name; else the first.
    """
    login = resolved(env.get("SLURM_SUBMIT_HOST", ""))
    named = env.get("SLURMD_NODENAME") or socket.gethostname()
    candidates = [source_towards(login) if login else None, resolved(named), *own_addresses()]
    mine = set(own_addresses())
    for address in candidates:
        if address in mine and not is_public(address):
            return address
    return None


def own_addresses() -> list[str]:
    """IPv4 addresses of this machine that other machines may reach; loopback is none."""
    import psutil

    return [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        if not name.startswith(INNER_INTERFACES)
        for entry in entries
        if entry.family == socket.AF_INET and not ipaddress.ip_address(entry.address).is_link_local
    ]


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's."""
    return ipaddress.ip_address(address).is_global


def resolved(name: str) -> str | None:
    """The IPv4 address of a host's name, or None."""
    try:
        return socket.gethostbyname(name) if name else None
    except (OSError, UnicodeError):  # a name that is none
        return None


def free_port(address: str) -> int:
    """A port on which nothing listens now; another program may still be faster.

    Raises:
        LLMError: If none of many is free.
    """
    for port in random.sample(PORTS, PORTS_TRIED):
        if can_bind(address, port):
            return port
    raise LLMError("no free port was found", f"{PORTS_TRIED} of {PORTS} were tried", "--port N")


def can_bind(address: str, port: int) -> bool:
    """Whether a server could listen there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                return False
            raise
        return True


def tunnel(place: Listening, port: int, env: Mapping[str, str] | None = None) -> str:
    """The ssh line that a user types at home, so that the server is at 127.0.0.1:8080 there.

    It names the login node as the cluster does; at home that may need its full name.
    """
    env = os.environ if env is None else env
    node = env.get("SLURMD_NODENAME") or socket.gethostname()
    login = env.get("SLURM_SUBMIT_HOST") or node
    forward = f"-L {LOCAL_PORT}:{in_url(place.host)}:{port}"
    if place.is_loopback and login != node:
        return f"ssh -N -J {_at(login)} {forward} {_at(node)}"
    return f"ssh -N {forward} {_at(login)}"


def _at(host: str) -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name for this number in the container
        return shlex.quote(host)
    return shlex.quote(f"{user}@{host}")


def in_url(address: str) -> str:
    """An address as URLs and ssh write it: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def source_towards(address: str) -> str | None:
    """Which of this machine's addresses the kernel would use to reach another; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        found: str = probe.getsockname()[0]
        return found
