"""One step of srun with llm-doctor on every node, and what is said between it and them."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from _llm.doctor import collective
from _llm.doctor.finding import Finding, from_dict
from _llm.doctor.messages import Reader, pack

# Until the step has started on all nodes.
HELLO_SECONDS = 60.0
# Until srun has ended the step.
GOODBYE_SECONDS = 5.0
KEPT_BYTES = 20_000
# What srun says of every task whenever a step ends early; the reason is in its other lines.
ENDINGS = re.compile(
    r"tasks? [\d,-]+: (Killed|Terminated|Exited)|Force Terminated|Job step aborted"
)


@dataclass
class Conversation:
    """What is known of some nodes so far: who said hello, saw the others, has finished."""

    names: Sequence[str]
    hello: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seen: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    summed: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    offered: Mapping[str, Any] | None = None
    told: bool = False
    stopped: bool = False

    def take(self, message: Mapping[str, Any]) -> None:
        """Note what a node says."""
        node = str(message["node"])
        if "port" in message:
            self.hello[node] = message
        if "seen" in message:
            self.seen[node] = message["seen"]
        if "summed" in message:
            self.summed[node] = message["summed"]
        self.findings += [from_dict(values).on(node) for values in message.get("findings", ())]
        if message.get("finished"):
            self.finished.add(node)

    def answers(self, hello_until: float) -> Iterator[Mapping[str, Any]]:
        """What the nodes are to be told now. hello_until: by time.monotonic()."""
        here = set(self.hello)
        everybody = len(here) == len(self.names) or time.monotonic() > hello_until
        if here and everybody and not self.told:
            self.told = True
            yield {"peers": list(self.hello.values())}
        if not self.told or self.stopped or not self.finished >= here:
            return
        if self.offered is None:
            order = [name for name in self.names if name in here]
            self.offered = collective.offer(order, self.hello, self.findings)
            if self.offered is not None:
                yield {"collective": self.offered}
                return
        if self.offered is None or set(self.summed) >= here:
            self.stopped = True
            yield {"stop": True}


def talk(
    command: Sequence[str], env: Mapping[str, str], conversation: Conversation, deadline: float
) -> list[str]:
    """Start the step and talk to the nodes until all have finished; return what srun complained.

    deadline: by time.monotonic(). The step is over when this returns, however it returns.
    """
    process = subprocess.Popen(
        command,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us; srun would ask for a second one
    )
    assert process.stdout and process.stderr
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    selector.register(process.stderr, selectors.EVENT_READ)
    reader, complaints = Reader(), b""
    hello_until = min(deadline, time.monotonic() + HELLO_SECONDS)
    try:
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.2):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    complaints = (complaints + data)[-KEPT_BYTES:]
                else:
                    for _, message in reader.feed(data):
                        conversation.take(message)
            for answer in conversation.answers(hello_until):
                _tell(process, answer)
    finally:
        _end(process)
    noise = complaints.decode(errors="replace").splitlines() + reader.noise
    return [line.strip() for line in noise if line.strip() and not ENDINGS.search(line)]


def _tell(process: subprocess.Popen[bytes], message: object) -> None:
    assert process.stdin
    with contextlib.suppress(OSError):  # srun is gone; the nodes' silence tells the rest
        process.stdin.write(pack(0, message).encode())
        process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the step: the end of its input tells the nodes, SIGTERM makes srun kill them."""
    assert process.stdin
    with contextlib.suppress(OSError):
        process.stdin.close()
    for seconds in (GOODBYE_SECONDS - 2, 2.0):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
        process.terminate()
    process.kill()
