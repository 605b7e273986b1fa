"""A task that lends its host's memory to a run over several hosts.

    from llm_recipes.gguf.host_lender import lend

Its `ggml-rpc-server` lives as long as this process and its channel to the leader do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

from llm_recipes.errors import USER_MISTAKE, LLMError
from llm_recipes.gguf.channel import Channel, PeerLost, Stranger, introduce, readable
from llm_recipes.gguf.hosts import HOW, Meeting
from llm_recipes.gguf.rpc import Server, choose_address, started_server
from llm_recipes.gguf.threads import granted_threads
from llm_recipes.host_memory import free_host_bytes

CALL_S = 5.0
LOOK_S = 0.2
PATIENCE_S = 60.0  # for the leader to say why it ends
LEAVE_S = 90.0  # after a signal, for the leader's child to save what it has


def lend(meeting: Meeting, threads: int | None) -> int:
    """Lend this host's memory until the leader says that it is over, or is gone.

    Args:
        meeting: Where the leader is.
        threads: Of the CPU; None: the cores that were granted.

    Returns:
        The exit status: 0 if the leader ended it.

    Raises:
        LLMError: If the leader can't be found.
    """
    with call_leader(meeting) as channel:
        try:
            channel.send({"task": meeting.task, "name": os.uname().nodename})
            with _server(meeting, channel, threads) as server:
                told = _remember_signals()  # before the leader hears that this host is there
                channel.send({"ready": _facts(server, threads)})
                return _stay(channel, server, told)
        except LLMError as fault:
            # The leader tells the user; to end first would end it before it can (srun does that).
            with contextlib.suppress(PeerLost):
                parts = {"what": fault.what, "why": fault.why, "fix": fault.fix}
                channel.send({"fault": parts})
                channel.wait_for_end(PATIENCE_S)
            return USER_MISTAKE
        except (PeerLost, Stranger) as lost:
            name = os.uname().nodename
            print(f"{name}: the leader on {meeting.host} is gone: {lost}", file=sys.stderr)
            return 1


def call_leader(meeting: Meeting) -> Channel:
    """A channel to the first task, which may start later than this one.

    Raises:
        LLMError: If it does not answer in time.
    """
    until = time.monotonic() + meeting.wait_s
    while True:
        try:
            # llama.cpp's RPC knows IPv4 alone; the way there is the way of this call.
            address = socket.gethostbyname(meeting.host)
        except OSError as error:
            raise LLMError(
                f"the name of node {meeting.host} cannot be resolved here",
                f"{error.strerror or error}; the hosts were to meet there",
                "llm-doctor --job in an allocation shows which names are wrong",
            ) from None
        reason = "who answers there is not of this step"
        try:
            connection = socket.create_connection((address, meeting.port), CALL_S)
            with contextlib.suppress(Stranger):
                return introduce(connection, meeting.secret)
            connection.close()
        except (OSError, PeerLost) as error:
            reason = getattr(error, "strerror", None) or str(error)
        if time.monotonic() > until:
            raise LLMError(
                f"the first task does not answer at {meeting.host}:{meeting.port}",
                f"{reason}, for {meeting.wait_s:.0f} s",
                f"look at its messages; or: {HOW}",
            )
        time.sleep(LOOK_S)


def _server(
    meeting: Meeting, channel: Channel, threads: int | None
) -> contextlib.AbstractContextManager[Server]:
    leader = channel.connection.getpeername()[0]
    return started_server(choose_address(leader, meeting.interface), _threads(threads))


def _threads(threads: int | None) -> int:
    return threads or granted_threads().generate


def _facts(server: Server, threads: int | None) -> dict[str, Any]:
    return {
        "endpoint": server.endpoint,
        "offers": [name for name, _ in server.devices],
        "free_bytes": [free for _, free in server.devices],
        "threads": _threads(threads),
        "memory_bytes": free_host_bytes(),
        "resident_bytes": server.resident_bytes(),
    }


def _remember_signals() -> list[int]:
    """The signals to leave that come from now on; they end nothing by themselves."""
    told: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)
    return told


def _stay(channel: Channel, server: Server, told: list[int]) -> int:
    """Answer the leader until it ends this, the server ends, or the leader is gone.

    A signal to leave is handed on to the leader: its child still needs the server, to save.

    Args:
        told: Signals that have come, and those that will.

    Raises:
        LLMError: If the server ends.
        PeerLost: If the leader is gone.
    """
    until = 0.0
    while True:
        reason = server.has_ended()
        if reason:
            raise LLMError("its RPC server has ended", reason)
        if told and not until:
            until = time.monotonic() + LEAVE_S
            channel.send({"leaving": told[0]})
        if until and time.monotonic() > until:
            return 128 + told[0]
        for message in channel.take() if readable([channel], LOOK_S) else []:
            if "measure" in message:
                channel.send({"resident_bytes": server.resident_bytes()})
            if "stop" in message:
                return 128 + told[0] if told else 0
