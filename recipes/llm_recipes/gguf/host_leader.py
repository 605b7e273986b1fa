"""The task that leads a run over several hosts: gathers them, runs the recipe, ends everything.

    from llm_recipes.gguf.host_leader import lead

It runs the recipe as a child and watches both it and the hosts. Whatever ends, all ends: the child
with this process (the kernel sees to that), the hosts when their channel to it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.gguf.channel import Channel, Message, PeerLost, Stranger, readable
from llm_recipes.gguf.host_gathering import (
    AGAIN,
    NONSENSE,
    Worker,
    call_server,
    gathered,
    lost,
)
from llm_recipes.gguf.hosts import Meeting
from llm_recipes.gguf.programs import end_with_parent, ending
from llm_recipes.gguf.remote_hosts import CONTROL, ENDPOINTS
from llm_recipes.gguf.threads import counted
from llm_recipes.say import say

LOOK_S = 0.2
MEASURE_S = 30.0  # a busy host is no dead one, which is noticed sooner
REPORT_S = 3.0  # after the child's abort, for the host that caused it to be heard of
SIGNALLED_S = 2.0  # in which a signal for the whole step reaches every task
PATIENCE_S = 60.0  # for the child to save what it has
LOST_PATIENCE_S = 5.0  # where it can't compute any more
AT_ONCE_S = 10.0  # after a second signal, by which serve.py leaves its requests alone
GB = 1e9
MEMORY = f"{AGAIN}; if memory ran out: more nodes, more memory for the job, a smaller --context"


def lead(meeting: Meeting) -> int:
    """Gather the hosts, run the recipe on them, end everything; returns the recipe's exit status.

    Raises:
        LLMError: If a host does not come, cannot lend its memory, or is lost.
    """
    say(
        f"hosts: one model over {meeting.tasks} nodes by llama.cpp's RPC, for models that don't fit"
        " on one: each token passes all of them in turn; not encrypted, not authenticated"
    )
    with gathered(meeting) as workers:
        for worker in workers:
            facts = worker.facts
            call_server(worker)
            say(
                f"hosts: {worker.name} lends {facts['memory_bytes'] / GB:.1f} GB at"
                f" {facts['endpoint']} ({', '.join(facts['offers'])}; {counted(facts['threads'])})"
            )
        return _supervise(workers)


def _supervise(workers: Sequence[Worker]) -> int:
    """Run the recipe as a child and watch it and the hosts; returns its exit status."""
    ours, theirs = socket.socketpair()
    with Channel(ours) as control:
        child = _start_child(workers, theirs)
        try:
            theirs.close()
            status = _watch(child, control, workers)
        except KeyboardInterrupt:
            _end_child(child, signal.SIGINT, PATIENCE_S)
            raise
        except _Told as told:
            _end_child(child, signal.SIGTERM, PATIENCE_S)
            raise told.fault from None
        except LLMError:
            _end_child(child, signal.SIGTERM, LOST_PATIENCE_S)
            raise
        except BaseException:
            _end_child(child, signal.SIGTERM, PATIENCE_S)
            raise
    if status < 0:
        say(f"the computing process {ending(status)}")
        return 128 - status
    return status


class _Told(Exception):
    """A host was told to end; it still computes, so that the child can save what it has."""

    def __init__(self, fault: LLMError) -> None:
        super().__init__(str(fault))
        self.fault = fault


def _start_child(workers: Sequence[Worker], control: socket.socket) -> subprocess.Popen[bytes]:
    endpoints = ",".join(worker.facts["endpoint"] for worker in workers)
    env = {**os.environ, ENDPOINTS: endpoints, CONTROL: str(control.fileno())}
    # When a server dies ggml would call a debugger before it ends.
    env.setdefault("GGML_NO_BACKTRACE", "1")
    signals = (signal.SIGINT, signal.SIGTERM)

    parent = os.getpid()

    def before() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        end_with_parent(parent)

    # A signal between the start and the name `child` would leave it behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        return subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env=env,
            pass_fds=[control.fileno()],
            preexec_fn=before,
            start_new_session=True,  # Ctrl-C reaches it through us alone
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _watch(child: subprocess.Popen[bytes], control: Channel, workers: Sequence[Worker]) -> int:
    """Answer the child and watch the hosts until it ends; returns its status.

    Raises:
        LLMError, _Told: If a host is lost, or leaves.
    """
    by_channel = {worker.channel: worker for worker in workers}
    listening = [control, *by_channel]
    leaving: tuple[float, Worker] | None = None
    aborted = 0.0
    while True:
        status = child.poll()
        if status is not None and status != -signal.SIGABRT:
            return status
        if status is not None:  # ggml's way of saying that a host is gone
            aborted = aborted or time.monotonic()
            if time.monotonic() > aborted + REPORT_S:
                return status
        if leaving and time.monotonic() > leaving[0] + SIGNALLED_S:
            raise _Told(lost(leaving[1], "it was told to end (SIGTERM or Ctrl-C)", AGAIN))
        for source in readable(listening, LOOK_S):
            if source is control:
                if not _answer(control, workers):
                    listening.remove(control)
            else:
                worker = by_channel[source]  # type: ignore[index]
                if _listen(worker):
                    leaving = leaving or (time.monotonic(), worker)


def _listen(worker: Worker) -> bool:
    """Take what a host says while the child runs; returns whether it wants to leave.

    Raises:
        LLMError: If it is lost.
    """
    try:
        messages = worker.channel.take()
    except PeerLost as gone:
        raise lost(worker, str(gone)) from None
    except Stranger:
        raise lost(worker, NONSENSE) from None
    for message in messages:
        if "fault" in message:
            raise lost(worker, message["fault"]["why"], MEMORY)
    return any("leaving" in message for message in messages)


def _answer(control: Channel, workers: Sequence[Worker]) -> bool:
    """Answer the child's questions; returns whether it may have more."""
    try:
        for message in control.take():
            measure = message.get("ask") == "measure"
            answers = [_measure(worker) if measure else worker.facts for worker in workers]
            control.send({"hosts": answers})
    except (PeerLost, Stranger):
        return False
    return True


def _measure(worker: Worker) -> dict[str, Any]:
    """The memory of a host's server now.

    Raises:
        LLMError: If it is lost.
    """
    others: list[Message] = []
    try:
        worker.channel.send({"measure": True})
        while True:
            message = worker.channel.receive(MEASURE_S)
            if "fault" in message:
                raise lost(worker, message["fault"]["why"], MEMORY)
            if "resident_bytes" in message:
                return {**worker.facts, "resident_bytes": message["resident_bytes"]}
            others.append(message)
    except PeerLost as gone:
        raise lost(worker, str(gone)) from None
    except Stranger:
        raise lost(worker, NONSENSE) from None
    finally:  # that it leaves, for `_listen`
        worker.channel.pending[:0] = others


def _end_child(child: subprocess.Popen[bytes], number: signal.Signals, seconds: float) -> None:
    """Ask the child to leave, then to leave at once, and end it if it does not.

    A second Ctrl-C ends it.
    """
    try:
        for request, patience in ((number, seconds), (signal.SIGINT, AT_ONCE_S)):
            child.send_signal(request)  # none if it has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what it has started, too
        child.wait()
