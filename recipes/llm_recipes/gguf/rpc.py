"""One `ggml-rpc-server` of a host: on which address, started, watched, ended.

    from llm_recipes.gguf.rpc import choose_address, started_server
    with started_server(choose_address("n1"), threads=4) as server:
        print(server.endpoint, server.devices, server.resident_bytes())

llama.cpp's RPC is neither encrypted nor authenticated: whoever reaches the port can read and change
what the server holds. So it listens on a private address only, on a random port, serves one client
at a time, and lives no longer than this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.gguf.programs import end_with_parent, ending, error_of, program
from llm_recipes.gguf.server_address import free_port, is_public, source_towards

SERVER = "ggml-rpc-server"
START_S = 120.0  # GPUs may take long to wake up
PORTS_TRIED = 5
SIOCGIFADDR = 0x8915  # ioctls.h: the IPv4 address of an interface
DEVICE_LINE = re.compile(r"^ {2}(\S+): .* \(\d+ MiB, (\d+) MiB free\)$", re.MULTILINE)
MIB = 2**20
SEEN = "Client connection closed"


@dataclass(frozen=True)
class Server:
    """A running server.

    output: file descriptor of what it says. endpoint: ADDRESS:PORT. devices: llama.cpp's name of
    each that it offers, and bytes that are free there.
    """

    process: subprocess.Popen[bytes]
    output: int
    endpoint: str
    devices: tuple[tuple[str, int], ...] = ()

    def has_ended(self) -> str:
        """Why it ended; empty while it runs."""
        status = self.process.poll()
        if status is None:
            return ""
        if status == -signal.SIGKILL:
            return f"{SERVER} was killed, as when memory runs out"
        said = [line for line in _text(self.output).splitlines() if line.strip()][-5:]
        return f"{SERVER} {ending(status)}" + (f": {error_of(said)}" if said else "")

    def resident_bytes(self) -> int:
        """Memory that it has now, what was swapped out included; 0 if it has ended."""
        found = 0
        path = Path(f"/proc/{self.process.pid}/status")
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="ascii").splitlines():
                if line.startswith(("VmRSS:", "VmSwap:")):
                    found += int(line.split()[1]) * 1024
        return found


def choose_address(towards: str, interface: str = "") -> str:
    """The IPv4 address of this host on which others reach it, if it is a private one.

    Args:
        towards: Address or name of the host that will call.
        interface: Use this one's address; empty: that of the way to `towards`.

    Raises:
        LLMError: If there is none, or the internet may reach it.
    """
    address = interface_address(interface) if interface else source_towards(towards)
    if not address:
        fix = "name an interface that all nodes have: export LLM_NETWORK_INTERFACE=ib0"
        if interface:
            what = f"the network interface {interface} has no IPv4 address here"
            raise LLMError(what, f"this host has {_interfaces()}", fix)
        raise LLMError(f"there is no way from here to {towards} by IPv4", fix=fix)
    if is_public(address) or ipaddress.ip_address(address).is_unspecified:
        raise LLMError(
            f"llama.cpp's RPC would listen on the public address {address}",
            "it is neither encrypted nor authenticated, and the internet may reach it there;"
            f" this host has {_interfaces()}",
            "name the interface of a private network: export LLM_NETWORK_INTERFACE=ib0,"
            " or `interface` in the site profile",
        )
    return address


def interface_address(interface: str) -> str:
    """The IPv4 address of a network interface; empty if it has none, or there is no such one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            request = struct.pack("256s", interface.encode()[:15])
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def _interfaces() -> str:
    named = [(name, interface_address(name)) for _, name in socket.if_nameindex()]
    return ", ".join(f"{name} {address}" for name, address in named if address) or "none"


@contextlib.contextmanager
def started_server(address: str, threads: int) -> Iterator[Server]:
    """A server that listens; however this process ends, it ends too.

    Args:
        address: Where it listens.
        threads: Of its CPU device; GPUs need none.

    Raises:
        LLMError: If it does not start.
    """
    server = None
    for _ in range(PORTS_TRIED):
        # Another program may take the port between our look and the server's.
        server = _start(address, free_port(address), threads)
        if server.process.poll() is None:
            break
    assert server is not None
    try:
        reason = server.has_ended()
        if reason:
            fix = "LLM_NETWORK_INTERFACE=NAME chooses another interface"
            raise LLMError(f"{SERVER} does not start on {address}", reason, fix)
        yield server
    finally:
        server.process.kill()  # it has nothing to save
        server.process.wait()
        os.close(server.output)


def _start(address: str, port: int, threads: int) -> Server:
    """Start a server and wait until it has answered a call, or has ended."""
    endpoint = f"{address}:{port}"
    # Not a pipe: nobody reads it while the server runs.
    output = os.memfd_create(SERVER)
    process = subprocess.Popen(
        [program(SERVER), "-H", address, "-p", str(port), "-t", str(threads)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        preexec_fn=partial(_before_server, os.getpid()),
        start_new_session=True,
    )
    until = time.monotonic() + START_S
    # A call also makes it write out which devices it has. It says so when the call is over.
    while process.poll() is None and SEEN not in _text(output):
        if time.monotonic() > until:
            process.kill()
            process.wait()
            raise LLMError(f"{SERVER} does not answer on {address}", f"waited for {START_S:.0f} s")
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1.0):
            pass
        time.sleep(0.05)
    devices = tuple((n, int(free) * MIB) for n, free in DEVICE_LINE.findall(_text(output)))
    return Server(process, output, endpoint, devices)


def _before_server(parent: int) -> None:
    # Slurm's warnings go to all processes of a step; the run decides when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent)


def _text(output: int) -> str:
    size = os.fstat(output).st_size
    return os.pread(output, size, 0).decode("utf-8", "replace")
