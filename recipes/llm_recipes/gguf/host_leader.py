"""The task that leads a run over several hosts: gathers them, runs the recipe, ends everything.

    from llm_recipes.gguf.host_leader import lead

It waits until the servers of all hosts listen, runs the recipe as a child, watches both. Whatever
ends, all ends: the child with this process (the kernel sees to that), the hosts when their channel
to it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.gguf.channel import Channel, PeerLost, Stranger, admit, readable
from llm_recipes.gguf.hosts import WAIT_VARIABLE, Meeting
from llm_recipes.gguf.programs import end_with_parent, ending
from llm_recipes.gguf.remote_hosts import CONTROL, ENDPOINTS

CALL_S = 5.0
LOOK_S = 0.2
OTHERS_S = 3.0  # after a first fault, for those of other hosts
REPORT_S = 3.0  # after the child's abort, for the host that caused it to be heard of
SIGNALLED_S = 2.0  # in which a signal for the whole step reaches every task
QUIET_S = 10.0  # until it says for whom it waits
PATIENCE_S = 60.0  # for the child to save what it has
LOST_PATIENCE_S = 5.0  # where it can't compute any more
GB = 1e9
AGAIN = "start it again: answers that are in --output stay"
MEMORY = f"{AGAIN}; if memory ran out: more nodes, more memory for the job, a smaller --context"


@dataclass
class Worker:
    """A host that lends its memory. facts: as `RemoteHost` has them, once its server listens."""

    task: int
    name: str
    channel: Channel
    facts: dict[str, Any] = field(default_factory=dict)
    fault: LLMError | None = None


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
            _call_server(worker)
            say(
                f"hosts: {worker.name} lends {facts['memory_bytes'] / GB:.1f} GB at"
                f" {facts['endpoint']} ({', '.join(facts['offers'])}; {facts['threads']} threads)"
            )
        return _supervise(workers)


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
    except PeerLost as lost:
        worker.fault = _lost(worker, str(lost))
    except Stranger:
        worker.fault = _lost(worker, "it says what nobody understands")


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


def _call_server(worker: Worker) -> None:
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

    def before() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        end_with_parent()

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
            raise _Told(_lost(leaving[1], "it was told to end (SIGTERM or Ctrl-C)", AGAIN))
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
    except PeerLost as lost:
        raise _lost(worker, str(lost)) from None
    for message in messages:
        if "fault" in message:
            raise _lost(worker, message["fault"]["why"], MEMORY)
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
    try:
        worker.channel.send({"measure": True})
        while True:
            message = worker.channel.receive(CALL_S)
            if "fault" in message:
                raise _lost(worker, message["fault"]["why"], MEMORY)
            if "resident_bytes" in message:
                return {**worker.facts, "resident_bytes": message["resident_bytes"]}
    except PeerLost as lost:
        raise _lost(worker, str(lost)) from None


def _lost(worker: Worker, reason: str, fix: str = "") -> LLMError:
    others = f"{AGAIN}; on other nodes: --exclude={worker.name}"
    return LLMError(f"host {worker.name} has left the run", reason, fix or others)


def _end_child(child: subprocess.Popen[bytes], number: signal.Signals, seconds: float) -> None:
    """Ask the child to leave, and end it if it does not; a second Ctrl-C ends it at once."""
    try:
        child.send_signal(number)
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what it has started, too
        child.wait()


def say(text: str) -> None:
    """Tell the user something, the line in one piece: several tasks write to the same place."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
