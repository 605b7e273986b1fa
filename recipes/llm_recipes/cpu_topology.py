"""What the CPUs of a node are: which share a core, which are fast, on which NUMA node they lie.

    llm-run python -c "from llm_recipes.cpu_topology import *; print(*read_cpus({0, 1}), sep='\\n')"

Read from /sys; where it says nothing (some virtual machines), each CPU is a core of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from llm_recipes.granted_cpus import SYSTEM, read_lines

CPUS, SIBLINGS = "sys/devices/system/cpu", "thread_siblings_list"
# Intel's own names for cores that are made to save energy: /sys/devices/cpu_atom/cpus and the like
EFFICIENT = ("cpu_atom", "cpu_lowpower")
FAST = 0.85  # of the fastest: turbo clocks of equal cores differ by less, efficient cores by more


@dataclass(frozen=True)
class Cpu:
    """A CPU as the scheduler counts them.

    thread: 0 for the first that is granted of its core, 1 for the second. core: the CPUs of its
    core. node: its NUMA node; None: /sys doesn't say. efficient: one of Intel's efficient cores.
    fast: as fast as the fastest, as far as /sys knows.
    """

    number: int
    thread: int
    core: tuple[int, ...]
    node: int | None
    efficient: bool
    fast: bool


def read_cpus(numbers: Collection[int], system: Path = SYSTEM) -> list[Cpu]:
    """The CPUs with these numbers, in the order in which to use them.

    The first hyper-thread of every core goes before all second ones, fast cores before slow ones.
    """
    nodes = {cpu: node for node, cpus in numa_nodes(system).items() for cpu in cpus}
    efficient = efficient_cpus(system)
    speeds = {number: _speeds(number, system) for number in numbers}
    best = [max(found) for found in zip(*speeds.values(), strict=True)]
    seen: dict[tuple[int, ...], int] = {}
    found = []
    for number in sorted(numbers):
        core = _core(number, system)
        thread = seen.get(core, 0)
        seen[core] = thread + 1
        fast = all(speed >= FAST * top for speed, top in zip(speeds[number], best, strict=True))
        slow = number in efficient
        found.append(Cpu(number, thread, core, nodes.get(number), slow, fast and not slow))
    return sorted(found, key=lambda cpu: (cpu.thread, cpu.efficient, not cpu.fast, cpu.number))


def numa_nodes(system: Path = SYSTEM) -> dict[int, set[int]]:
    """CPUs of each NUMA node; a node of memory alone has none."""
    found = {}
    for folder in (system / "sys/devices/system/node").glob("node*"):
        number = re.fullmatch(r"node(\d{1,6})", folder.name, re.ASCII)
        if number:
            found[int(number[1])] = read_cpu_list(folder / "cpulist")
    return dict(sorted(found.items()))


def efficient_cpus(system: Path = SYSTEM) -> set[int]:
    """CPUs of Intel's efficient cores."""
    folders = (system / "sys/devices" / name for name in EFFICIENT)
    return set().union(*(read_cpu_list(folder / "cpus") for folder in folders))


def online_cpus(system: Path = SYSTEM) -> set[int]:
    """All CPUs of the node that are in use; none if /sys doesn't say."""
    return read_cpu_list(system / CPUS / "online")


def cpu_model(system: Path = SYSTEM) -> str:
    """The CPU's name from /proc/cpuinfo; ARM's have numbers instead."""
    values: dict[str, str] = {}
    for line in read_lines(system / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    if values.get("model name"):
        return values["model name"]
    numbers = [values.get(f"CPU {name}", "") for name in ("implementer", "part", "variant")]
    return f"CPU {' '.join(numbers).strip()}".strip()


def llama_default_threads(system: Path = SYSTEM) -> int:
    """How many threads llama.cpp's programs start if they are not told.

    The node's physical cores without efficient ones, whatever of them was granted: the same as
    common_cpu_get_num_math of common/common.cpp.
    """
    efficient, cores = efficient_cpus(system), set()
    number = 0
    # llama.cpp stops at the first CPU without the file too, one that is offline.
    while siblings := read_cpu_list(_topology(number, system) / SIBLINGS):
        if number not in efficient:
            cores.add(tuple(sorted(siblings)))
        number += 1
    if cores:
        return len(cores)
    count = number or os.cpu_count() or 8
    return count if count <= 4 else count // 2


def read_cpu_list(path: Path) -> set[int]:
    """Numbers of a list such as `0-3,8,10-11`; what is no number is passed over."""
    found: set[int] = set()
    for part in ",".join(read_lines(path)).split(","):
        ends = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part, re.ASCII)
        if ends:
            found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return found


def _topology(number: int, system: Path) -> Path:
    return system / CPUS / f"cpu{number}" / "topology"


def _core(number: int, system: Path) -> tuple[int, ...]:
    siblings = read_cpu_list(_topology(number, system) / SIBLINGS)
    return tuple(sorted(siblings)) if number in siblings else (number,)


def _speeds(number: int, system: Path) -> tuple[int, int]:
    """Capacity and highest clock; 0 for what /sys doesn't say."""
    folder = system / CPUS / f"cpu{number}"
    texts = (read_lines(folder / name) for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"))
    values = ("".join(text[:1]).strip() for text in texts)
    capacity, clock = (int(value) if value.isdecimal() else 0 for value in values)
    return capacity, clock
