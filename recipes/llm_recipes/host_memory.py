"""How much of the host's memory can still be had: a job's limit counts, not only the node's.

    llm-run python -c "from llm_recipes.host_memory import *; print(free_host_bytes())"

Needs the standard library only.
"""

from __future__ import annotations

import os
from pathlib import Path

from llm_recipes.granted_cpus import SYSTEM, cgroup_levels, read_lines


def free_host_bytes() -> int:
    """Memory that can still be allocated."""
    free, granted = _meminfo_available(), cgroup_free_bytes()
    return free if granted is None else min(free, granted)


def cgroup_free_bytes(system: Path = SYSTEM) -> int | None:
    """Memory that this process's control groups still grant; None if they have no limit.

    Files that were read lately count as used there, but make room when memory is needed.

    Args:
        system: Where /proc and /sys are.
    """
    names = {
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    left: list[int] = []
    for controller, (limit_file, used_file, reclaimable_key) in names.items():
        for level in cgroup_levels(controller, system):
            limit, used = _number(level / limit_file), _number(level / used_file)
            if limit is not None and used is not None:
                reclaimable = _statistic(level / "memory.stat", reclaimable_key)
                left.append(max(0, limit - max(0, used - reclaimable)))
    return min(left, default=None)


def _meminfo_available() -> int:
    for line in read_lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _number(path: Path) -> int | None:
    text = " ".join(read_lines(path))
    return int(text) if text.isdigit() else None


def _statistic(path: Path, key: str) -> int:
    values = dict(line.split(" ", 1) for line in read_lines(path) if " " in line)
    return int(values.get(key, 0))
