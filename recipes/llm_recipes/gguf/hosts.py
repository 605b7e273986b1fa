"""One model over the memory of several hosts, by llama.cpp's RPC: `--hosts`.

    salloc --nodes=3 llm-run python recipes/quantized/generate.py --hosts --model large.gguf ...

llm-run starts the recipe once on each node. Each calls `run_on_hosts` first:

    if hosts:
        status = run_on_hosts()
        if status is not None:
            return status          # this task's part is over

The first task (SLURM_PROCID 0) leads (host_leader.py), the others lend their memory
(host_lender.py). When all are there, the leader runs the same command line once more as a child of
its own, with LLM_RPC_ENDPOINTS set: there `run_on_hosts` returns None, and the recipe goes on with
what remote_hosts.py has:

    hosts = connected_hosts()      # empty without --hosts; before other calls that list devices
    placement = place_on_hosts(hosts, file, room, gpu_layers, shares)
    model = GgufModel.load(file, placement)
    verify_hosts(hosts, model)     # the layers really are there, or LLMError

A child, because ggml's client ends its process when a server dies, and waits forever when a cable
is cut: the leader sees both and says which host it was.

Recipes that start llama.cpp's programs use `known_hosts()`, give `--rpc` its `rpc_option()`, and
`verify_layers` what the program's log says. A server takes one client at a time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from llm_recipes.errors import LLMError
from llm_recipes.gguf.remote_hosts import (
    ENDPOINTS,
    Held,
    RemoteHost,
    connected_hosts,
    known_hosts,
    place_on_hosts,
    rpc_option,
    verify_hosts,
    verify_layers,
)

__all__ = [
    "Held",
    "Meeting",
    "RemoteHost",
    "connected_hosts",
    "known_hosts",
    "place_on_hosts",
    "read_meeting",
    "rpc_option",
    "run_on_hosts",
    "verify_hosts",
    "verify_layers",
]
HOW = "salloc --nodes=3 llm-run python recipes/quantized/generate.py --hosts ..."
WAIT_S = 300.0  # for all tasks; a node may have to unpack the image first
WAIT_VARIABLE = "LLM_HOSTS_WAIT"


@dataclass(frozen=True)
class Meeting:
    """Where the tasks of the step meet.

    task: which this one is. nodes: their names, if known. wait_s: how long they wait for each
    other.
    """

    host: str
    port: int
    secret: str
    task: int
    tasks: int
    nodes: tuple[str, ...] = ()
    interface: str = ""
    wait_s: float = WAIT_S

    def name(self, task: int) -> str:
        """The node of a task."""
        return self.nodes[task] if task < len(self.nodes) else f"task {task}"


def run_on_hosts(threads: int | None = None) -> int | None:
    """Play this task's part in a run over several hosts.

    Args:
        threads: Of each host's CPU; None: the cores that were granted.

    Returns:
        The exit status of this task, which is over; None: go on here, with `connected_hosts()`.

    Raises:
        LLMError: If the tasks can't find each other, or a host is lost on the way.
    """
    if ENDPOINTS in os.environ:
        return None
    meeting = read_meeting(os.environ)
    if meeting is None:
        print("--hosts: this job has one node; the model stays here", file=sys.stderr, flush=True)
        return None
    if meeting.task:
        from llm_recipes.gguf.host_lender import lend

        return lend(meeting, threads)
    from llm_recipes.gguf.host_leader import lead

    return lead(meeting)


def read_meeting(env: Mapping[str, str]) -> Meeting | None:
    """Where this step's tasks meet; None in a job of one node.

    Raises:
        LLMError: If there is no step on several nodes, or not one that can do this.
    """
    place = env.get("LLM_RENDEZVOUS", "")
    nodes = tuple(filter(None, env.get("LLM_STEP_NODES", "").split(",")))
    tasks = _number(env, "SLURM_STEP_NUM_TASKS", _number(env, "SLURM_NTASKS", 1))
    if not place:
        of_job = _number(env, "SLURM_JOB_NUM_NODES", _number(env, "SLURM_NNODES", 1))
        if "SLURM_JOB_ID" in env and of_job == 1:
            return None
        why = "llm-run starts the recipe on each node of a job and tells them of each other"
        if "SLURM_JOB_ID" in env:
            why += ", but not with --torchrun or --launch=local"
        raise LLMError("--hosts needs a job with several nodes, started by llm-run", why, HOW)
    if nodes and tasks != len(nodes):
        raise LLMError(
            f"--hosts wants one task a node, and this step has {tasks} on {len(nodes)} nodes",
            "the tasks of a node would share its memory",
            HOW,
        )
    secret = env.get("LLM_RENDEZVOUS_TOKEN", "")
    if not secret:
        raise LLMError(
            "the tasks of this step share no secret",
            "LLM_RENDEZVOUS_TOKEN is not set; llm-run makes one where it starts the step, and"
            " `srun llm-run` finds a step that is there already",
            f"{HOW}\nor before srun: export LLM_RENDEZVOUS_TOKEN=$(openssl rand -hex 16)",
        )
    host, _, port = place.rpartition(":")
    if not (host and port.isdigit()):
        raise LLMError(f"LLM_RENDEZVOUS={place} is not HOST:PORT", fix=HOW)
    task, interface = _number(env, "SLURM_PROCID", 0), env.get("LLM_NETWORK_INTERFACE", "")
    wait_s = float(_number(env, WAIT_VARIABLE, round(WAIT_S)))
    return Meeting(host, int(port), secret, task, tasks, nodes, interface, wait_s)


def _number(env: Mapping[str, str], name: str, otherwise: int) -> int:
    text = env.get(name, "")
    return int(text) if text.isdigit() else otherwise
