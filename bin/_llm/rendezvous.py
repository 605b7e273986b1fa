"""Where the tasks of a step on several nodes meet: variables for programs that are no torchrun's.

    salloc --nodes=2 llm-run sh -c 'echo task $SLURM_PROCID of $LLM_STEP_NODES: $LLM_RENDEZVOUS'

The first task's program listens at LLM_RENDEZVOUS, the others call there. LLM_RENDEZVOUS_TOKEN,
which nobody else knows, shows that they belong together.
"""

from __future__ import annotations

import os

from _llm.slurm import expand_nodes, number
from _llm.torchrun import PORT_VARIABLE, choose_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_VARIABLE = "LLM_RENDEZVOUS_TOKEN"
TOKEN_BYTES = 16


def new_token() -> str:
    """Return a secret for the tasks of one step.

    It travels with the environment of srun, which Slurm hands on over authenticated connections; on
    the nodes the environment of a process is shown to its own user.
    """
    return os.urandom(TOKEN_BYTES).hex()


def rendezvous_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return what tells a task of a step on several nodes where the others are; {} on one node.

    LLM_STEP_NODES: the nodes' names, the first task's first. LLM_RENDEZVOUS: HOST:PORT on it; every
    node derives the same port from job and step.
    """
    if not env.get("SLURM_STEP_ID", "").isdigit() or number(env, "SLURM_STEP_NUM_NODES", 1) < 2:
        return {}
    try:
        nodes = expand_nodes(env.get("SLURM_STEP_NODELIST", ""))
    except ValueError:
        return {}
    if not nodes:
        return {}
    port = env.get(PORT_VARIABLE) or choose_port(env)
    return {"LLM_RENDEZVOUS": f"{nodes[0]}:{port}", "LLM_STEP_NODES": ",".join(nodes)}
