"""How many threads llama.cpp gets, and on which CPUs: from what was granted, cores first.

    llm-run python -c "from llm_recipes.gguf.threads import *; print(granted_threads().reason)"

llama.cpp itself counts the node's cores, whatever a job was granted of them, and its threads wait
for each other at every operation: one thread more than there are CPUs halves the speed.

Two numbers: `generate` for steps of one token, whose time is that of reading the weights, and
`prompt` for steps of several tokens, whose time is arithmetic; steps of several sequences at once
are of the second kind. Without a measurement (tuning.py) both are the granted cores.

A quota that is no whole number: the nearest for generation, the next for prompts. Measured on two
cores (0.5 B parameters, Q4_K_M), two threads against one: with a quota of 1 CPU generation is 0.9
and prompts 1.0 times as fast, with 1.25 it is 1.0 and 1.4, with 1.5 1.05 and 1.6, with 1.75 1.3 and
2.1. Three threads on two whole cores: 0.4 and 0.8 of two.

Pinning: where the CPUs themselves were granted (a mask narrower than the node, or all of a node
that Slurm gave), to the first hyper-thread of each core. Where only their number was (a quota, a
count of Slurm's without a mask), to nothing: jobs beside this one would choose the same CPUs.

NUMA: CPUs of one node need nothing, memory is taken where its first user runs. If all CPUs of a
machine with several nodes were granted: llama.cpp's `distribute`, threads bound to the nodes in
turn. With a part of them: nothing, since `distribute` and `isolate` let threads run on all CPUs of
their node, granted or not.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_recipes.cpu_topology import (
    Cpu,
    llama_default_threads,
    numa_nodes,
    online_cpus,
    read_cpus,
)
from llm_recipes.granted_cpus import SYSTEM, GrantedCpus, granted_cpus

Numa = Literal["none", "distribute"]
MOST_THREADS = 512  # GGML_MAX_N_THREADS of ggml.h
MOST_NODES = 8  # GGML_NUMA_MAX_NODES of ggml-cpu.c


@dataclass(frozen=True)
class Threads:
    """Threads for steps of one token and of several, and where they run.

    cpus: to which the process is to be pinned; all of its affinity for no pinning. numa:
    llama.cpp's strategy. reason: how it came to these numbers, for the user.
    """

    generate: int
    prompt: int
    cpus: tuple[int, ...]
    reason: str
    numa: Numa = "none"


@dataclass(frozen=True)
class Cores:
    """What was granted, as llama.cpp can use it.

    cpus: in the order in which to use them, hyper-threads last. generate, prompt: threads for
    steps of one token and of several. pinned: whether the first so many of `cpus` may be pinned
    to. default: threads that llama.cpp would start.
    """

    granted: GrantedCpus
    cpus: tuple[Cpu, ...]
    generate: int
    prompt: int
    pinned: bool
    numa: Numa
    numa_reason: str
    default: int

    def places(self, threads: int) -> tuple[int, ...]:
        """CPUs to pin so many threads to, or all that were granted."""
        ordered = tuple(cpu.number for cpu in self.cpus)
        return ordered[:threads] if self.pinned and threads <= len(ordered) else ordered


def granted_threads(
    system: Path = SYSTEM,
    environment: Mapping[str, str] | None = None,
    affinity: Collection[int] | None = None,
) -> Threads:
    """A thread for each core that was granted.

    Args:
        system: Where /proc and /sys are.
        environment: Where Slurm's variables are; None: this process's.
        affinity: CPUs that this process may run on; None: its own.
    """
    cores = granted_cores(system, environment, affinity)
    most = max(cores.generate, cores.prompt)
    return Threads(cores.generate, cores.prompt, cores.places(most), reason(cores), cores.numa)


def granted_cores(
    system: Path = SYSTEM,
    environment: Mapping[str, str] | None = None,
    affinity: Collection[int] | None = None,
) -> Cores:
    """Cores that were granted: at most as many threads as CPUs, quota and Slurm's count allow.

    Efficient cores are left out where there are others, as llama.cpp does: all wait for the
    slowest. Arguments as of `granted_threads`.
    """
    granted = granted_cpus(system, environment, affinity)
    cpus = tuple(read_cpus(granted.cpus, system))
    firsts = [cpu for cpu in cpus if cpu.thread == 0]
    fast = [cpu for cpu in firsts if not cpu.efficient] or firsts
    numa, why = numa_strategy(granted, system)
    return Cores(
        granted,
        cpus,
        min(max(1, math.floor(granted.limit + 0.5)), len(fast)),
        min(max(1, math.ceil(granted.limit)), len(fast)),
        # distribute gives each thread all CPUs of its node, whatever it was pinned to
        numa == "none" and may_pin(granted, system, environment),
        numa,
        why,
        llama_default_threads(system),
    )


def may_pin(granted: GrantedCpus, system: Path, environment: Mapping[str, str] | None) -> bool:
    """Whether nobody else was given the same CPUs, as far as can be known."""
    if not granted.are_ours:
        return False
    in_a_job = "SLURM_JOB_ID" in (os.environ if environment is None else environment)
    whole = online_cpus(system) <= set(granted.cpus)
    return not whole or (in_a_job and granted.slurm is not None)


def numa_strategy(granted: GrantedCpus, system: Path) -> tuple[Numa, str]:
    """llama.cpp's NUMA strategy for these CPUs, and why; no words where there is one node only."""
    nodes = numa_nodes(system)
    touched = [node for node, cpus in nodes.items() if cpus & set(granted.cpus)]
    if len(touched) < 2:
        return "none", f"all on NUMA node {touched[0]}" if len(nodes) > 1 and touched else ""
    # It numbers nodes from 0 without gaps, and a thread on a node without CPUs has none to run on.
    regular = list(nodes) == list(range(len(nodes))) and len(nodes) <= MOST_NODES
    if granted.are_ours and regular and all(c and c <= set(granted.cpus) for c in nodes.values()):
        return "distribute", f"distributed over {len(nodes)} NUMA nodes"
    return "none", f"on {len(touched)} NUMA nodes, of which parts were granted: not distributed"


def reason(cores: Cores) -> str:
    """How the granted cores were counted, in one line."""
    most = max(cores.generate, cores.prompt)
    words = counted(cores.generate)
    if cores.prompt != cores.generate:
        words += f", {cores.prompt} for prompts"
    words += f": {cores.granted.reason}"
    if most < math.floor(cores.granted.limit):
        words += f", which are {most} core{'s' * (most > 1)}"
    parts = [words]
    if len(cores.places(most)) < len(cores.cpus):
        parts.append("pinned to a hyper-thread of each core")
    parts += [cores.numa_reason] if cores.numa_reason else []
    if cores.default != cores.generate:
        parts.append(f"llama.cpp's default is {cores.default}")
    return "; ".join(parts)


def counted(threads: int) -> str:
    """So many threads, in words."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def use(threads: Threads) -> None:
    """Pin this process and choose the NUMA strategy; before a model is loaded.

    Threads inherit what the thread that starts them is pinned to: those that run already stay.
    """
    if threads.cpus and set(threads.cpus) != os.sched_getaffinity(0):
        # The job's CPUs may have been changed meanwhile; without pinning it runs as well.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, threads.cpus)
    if threads.numa == "distribute":
        from llm_recipes.gguf.engine import library

        llama = library()
        llama.llama_numa_init(llama.GGML_NUMA_STRATEGY_DISTRIBUTE)


@contextlib.contextmanager
def pinned_to(cpus: Collection[int]) -> Iterator[None]:
    """Pin this thread, and with it the programs that it starts, while the block runs."""
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)
