"""Lines of JSON between the tasks of a step, each of which has proved that it knows the secret.

    from llm_recipes.gguf.channel import admit, introduce

A stranger who finds the port learns nothing and is sent away: both sides answer a random challenge
with an HMAC over the secret. Afterwards nothing is encrypted or signed; what is said is no secret.
A peer that dies, or whose cable is cut, is noticed within LOST_S seconds, by the kernel's probes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
LOST_S = 20  # without an answer of the other side's kernel
PROBE_AFTER_S, PROBE_EVERY_S, PROBES = 8, 4, 3
ANSWER_S = 10.0  # for a message of ours to be taken, and in a handshake
STRANGERS_BYTES = 4096  # of one who has not proved anything yet
LINE_BYTES = 2**20


class PeerLost(Exception):
    """The other side has ended, or does not answer."""


class Stranger(Exception):
    """The other side does not know the secret, or is no program of ours."""


class Channel:
    """A connection; closed when a `with` block over it ends."""

    def __init__(self, connection: socket.socket, longest: int = LINE_BYTES) -> None:
        connection.settimeout(ANSWER_S)
        self.connection = connection
        self.longest = longest
        self.pending: list[Message] = []  # received, not taken
        self._received = b""

    def fileno(self) -> int:
        """For `select`."""
        return self.connection.fileno()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            PeerLost: If it can't be sent.
        """
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise PeerLost(_reason(error)) from None

    def take(self) -> list[Message]:
        """Messages that have come; to be called when `readable` says so.

        Raises:
            PeerLost: If the other side is gone.
            Stranger: If what comes is no message.
        """
        if not self.pending:
            self._read()
        messages, self.pending = self.pending, []
        return messages

    def _read(self) -> None:
        try:
            chunk = self.connection.recv(65536)
        except OSError as error:
            raise PeerLost(_reason(error)) from None
        if not chunk:
            raise PeerLost("its process ended")
        *lines, self._received = (self._received + chunk).split(b"\n")
        if len(self._received) > self.longest:
            raise Stranger
        self.pending += [_parsed(line) for line in lines]

    def receive(self, seconds: float) -> Message:
        """The next message.

        Raises:
            PeerLost: If none comes within so many seconds, or the other side is gone.
            Stranger: If what comes is no message.
        """
        until = time.monotonic() + seconds
        while not self.pending:
            if not readable([self], max(0.0, until - time.monotonic())):
                raise PeerLost(f"no answer within {seconds:.0f} s")
            self._read()
        return self.pending.pop(0)

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the other side has closed its end, or so many seconds."""
        with contextlib.suppress(PeerLost, Stranger):
            until = time.monotonic() + seconds
            while True:
                self.receive(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """End it; the other side sees that."""
        self.connection.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def readable(
    sources: Sequence[Channel | socket.socket], seconds: float
) -> list[Channel | socket.socket]:
    """Channels that have messages or have ended, listening sockets that were called.

    Waits so many seconds until one has.
    """
    found: list[Channel | socket.socket] = []
    found += [source for source in sources if isinstance(source, Channel) and source.pending]
    return found or select.select(sources, [], [], seconds)[0]


def admit(connection: socket.socket, secret: str) -> Channel:
    """Let in who has called, if it knows the secret.

    Raises:
        PeerLost, Stranger: If not.
    """
    channel = _prepared(connection)
    theirs = _text(channel.receive(ANSWER_S), "nonce")
    mine = os.urandom(16).hex()
    channel.send({"nonce": mine, "proof": _proof(secret, "listener", theirs, mine)})
    _check(channel.receive(ANSWER_S), _proof(secret, "caller", theirs, mine))
    channel.longest = LINE_BYTES
    return channel


def introduce(connection: socket.socket, secret: str) -> Channel:
    """Prove to who was called that we know the secret, and see that it does.

    Raises:
        PeerLost, Stranger: If it does not.
    """
    channel = _prepared(connection)
    mine = os.urandom(16).hex()
    channel.send({"nonce": mine})
    answer = channel.receive(ANSWER_S)
    theirs = _text(answer, "nonce")
    _check(answer, _proof(secret, "listener", mine, theirs))
    channel.send({"proof": _proof(secret, "caller", mine, theirs)})
    channel.longest = LINE_BYTES
    return channel


def _prepared(connection: socket.socket) -> Channel:
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES),
        # Data on its way is not covered by these probes.
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_S * 1000),
    ):
        connection.setsockopt(level, option, value)
    return Channel(connection, STRANGERS_BYTES)


def _proof(secret: str, role: str, caller: str, listener: str) -> str:
    # The role keeps a proof from being sent back as the other side's.
    text = f"{role} {caller} {listener}".encode()
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def _check(message: Message, proof: str) -> None:
    if not hmac.compare_digest(_text(message, "proof").encode(), proof.encode()):
        raise Stranger


def _text(message: Message, key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise Stranger
    return value


def _parsed(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise Stranger from None
    if not isinstance(message, dict):
        raise Stranger
    return message


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError) or error.errno is None:
        return f"no answer for {LOST_S} s"
    return error.strerror or str(error)
