"""llm-doctor --node: the part of `llm-doctor --job` that runs on each node, started by job.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from _llm import gpus, torchrun
from _llm.doctor import collective, network, peers
from _llm.doctor.context import Context
from _llm.doctor.conversation import HELLO_SECONDS
from _llm.doctor.finding import FAIL, OK, Finding
from _llm.doctor.limits import Stage, Stopped, Task, run_tasks
from _llm.doctor.messages import Inbox, pack

# Of trying the network among the nodes.
PEER_SECONDS = 40.0


def run(context: Context, check: Callable[[], Iterator[list[Finding]]], limit: float) -> int:
    """Listen, try the network, check this node, tell all of it; return the exit status.

    check: the checks of one node. limit: seconds for everything.
    """
    env = context.env
    name = env.get("SLURMD_NODENAME") or os.uname().nodename
    deadline = time.monotonic() + limit

    def tell(**message: object) -> None:
        sys.stdout.write(pack(int(env.get("SLURM_PROCID", "0")), {"node": name, **message}))
        sys.stdout.flush()

    inbox = Inbox(sys.stdin.fileno())
    listener = peers.listen()
    server = peers.serve(listener, limit)
    try:
        interface = context.settings.get("network", "interface")
        tell(
            port=listener.getsockname()[1],
            address=network.address4(interface) if interface else "",
            rendezvous=torchrun.free_port(env),
            gpus=gpus.visible_gpus(env),
        )
        message = inbox.wait(min(deadline, time.monotonic() + HELLO_SECONDS + 5))
        if message:
            tell(seen=_look(name, message["peers"], tell, deadline))
        try:
            for findings in check():
                tell(findings=[finding.as_dict() for finding in findings])
        except Stopped:
            return 1
        tell(finished=True)
        # Others may still want to reach this node, so it waits until it is told to stop.
        while (message := inbox.wait(deadline)) and "stop" not in message:
            tell(summed=_sum(context, message["collective"], name, deadline))
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    return 0


def _look(
    name: str, others: list[Mapping[str, Any]], tell: Callable[..., None], deadline: float
) -> dict[str, Any]:
    def probe(stage: Stage) -> list[Finding]:
        stage("reaching the other nodes")
        return [Finding("peers", OK, "", data=peers.look(name, others))]

    task = Task("peers", PEER_SECONDS, probe, "is the name service reachable from this node?")
    (findings,) = run_tasks([task], deadline)
    if findings[0].status == FAIL:
        tell(findings=[finding.as_dict() for finding in findings])
        return {"names": {}, "reached": {}}
    return dict(findings[0].data)


def _sum(context: Context, wanted: Mapping[str, Any], name: str, deadline: float) -> dict[str, Any]:
    def probe(stage: Stage) -> list[Finding]:
        return [Finding("sum", OK, "", data=collective.take_part(context, wanted, name, stage))]

    (findings,) = run_tasks([Task("sum", collective.SECONDS + 5, probe)], deadline)
    if findings[0].status == OK:
        return dict(findings[0].data)
    return {"status": 1, "last": findings[0].text, "bytes": 0, "seconds": 0.0, "lines": []}
