"""The leader's first part: wait until the servers of all hosts listen and can be reached.

from llm_recipes.gguf.host_gathering import gathered
with gathered(meeting) as workers: ...
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.gguf.channel import Channel, PeerLost, Stranger, admit, readable
from llm_recipes.gguf.hosts import WAIT_VARIABLE, Meeting
from llm_recipes.say import say

CALL_S = 5.0
OTHERS_S = 3.0  # after a first fault, for those of other hosts
QUIET_S = 10.0  # until it says for whom it waits
NONSENSE = "it says what nobody understands"
AGAIN = "start it again: answers that are in --output stay"


@dataclass
class Worker:
    """A host that lends its memory. facts: as `RemoteHost` has them, once its server listens."""

    task: int
    name: str
    channel: Channel
    facts: dict[str, Any] = field(default_factory=dict)
    fault: LLMError | None = None


@contextlib.contextmanager
def gathered(meeting: Meeting) -> Iterator[list[Worker]]:
    """The other tasks' hosts, when all their servers listen; afterwards they are told to stop.

    Raises:
        LLMError: If one does not come in time, or says that it can't.
    """
    workers: dict[int, Worker] = {}
    try:
        with _listening(meeting) as listener:
            _gather(meeting, listener, workers)
        yield [workers[task] for task in sorted(workers)]
    finally:
        for worker in workers.values():
            with contextlib.suppress(PeerLost):
                worker.channel.send({"stop": True})
            worker.channel.close()


def _listening(meeting: Meeting) -> socket.socket:
    try:
        return socket.create_server(("", meeting.port), backlog=meeting.tasks)
    except OSError as error:
        raise LLMError(
            f"port {meeting.port} of this node cannot be used, and the hosts were to meet there",
            f"{error.strerror}; it is derived from job and step",
            "start it again (the next step has another port), or:"
            " export LLM_RENDEZVOUS_PORT=NUMBER",
        ) from None


def _gather(meeting: Meeting, listener: socket.socket, workers: dict[int, Worker]) -> None:
    seconds, told = meeting.wait_s, False
    until = time.monotonic() + seconds
    while True:
        missing = [t for t in range(1, meeting.tasks) if t not in workers]
        waiting = [w for w in workers.values() if not w.facts and not w.fault]
        faults = [w.fault for w in workers.values() if w.fault]
        if not missing and not waiting:
            raise_all(faults)
            return
        left = until - time.monotonic()
        if left <= 0:
            raise_all(faults)
            raise _missing(meeting, missing, waiting, seconds)
        if not told and left < seconds - QUIET_S:
            told = True
            names = [meeting.name(task) for task in missing] + [w.name for w in waiting]
            say(f"hosts: waiting for {', '.join(names)} (up to {seconds:.0f} s)")
        channels = [worker.channel for worker in waiting]
        for source in readable([listener, *channels], min(left, 1.0)):
            if source is listener:
                _let_in(meeting, listener, workers)
            else:
                worker = next(w for w in waiting if w.channel is source)
                _hear(worker)
                if worker.fault:
                    until = min(until, time.monotonic() + OTHERS_S)


def _let_in(meeting: Meeting, listener: socket.socket, workers: dict[int, Worker]) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:  # who called has gone already
        return
    try:
        channel = admit(connection, meeting.secret)
        hello = channel.receive(CALL_S)
        task, name = hello.get("task"), hello.get("name")
    except (PeerLost, Stranger):  # a port scanner, or another job's task
        connection.close()
        return
    if not isinstance(task, int) or not 0 < task < meeting.tasks or task in workers:
        channel.close()
        return
    workers[task] = Worker(task, str(name), channel)


def _hear(worker: Worker) -> None:
    """Take what a host says while it gets ready."""
    try:
        for message in worker.channel.take():
            if "ready" in message:
                worker.facts = {"name": worker.name, **message["ready"]}
            elif "fault" in message:
                fault = message["fault"]
                what = f"host {worker.name} cannot lend its memory: {fault['what']}"
                worker.fault = LLMError(what, fault["why"], fault["fix"])
    except PeerLost as gone:
        worker.fault = lost(worker, str(gone))
    except Stranger:
        worker.fault = lost(worker, NONSENSE)


def _missing(
    meeting: Meeting, missing: Sequence[int], waiting: Sequence[Worker], seconds: float
) -> LLMError:
    silent = [meeting.name(task) for task in missing]
    slow = [f"{worker.name} (whose RPC server does not start)" for worker in waiting]
    return LLMError(
        f"these hosts have not come within {seconds:.0f} s: {', '.join(silent + slow)}",
        "the recipe did not start there, or they don't reach this node"
        f" ({meeting.host}:{meeting.port})",
        f"look at their messages; llm-doctor --job tests the network;"
        f" export {WAIT_VARIABLE}=SECONDS waits longer",
    )


def call_server(worker: Worker) -> None:
    """See that the server can be reached: ggml's client would end its process otherwise."""
    address, _, port = worker.facts["endpoint"].rpartition(":")
    try:
        socket.create_connection((address, int(port)), CALL_S).close()
    except OSError as error:
        raise LLMError(
            f"the RPC server of {worker.name} cannot be reached at {address}:{port}",
            error.strerror or str(error),
            "a firewall between the nodes? LLM_NETWORK_INTERFACE=NAME chooses another network",
        ) from None


def lost(worker: Worker, reason: str, fix: str = "") -> LLMError:
    """A host that was there and is not any more."""
    others = f"{AGAIN}; on other nodes: --exclude={worker.name}"
    return LLMError(f"host {worker.name} has left the run", reason, fix or others)
