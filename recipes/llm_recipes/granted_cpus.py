"""How many CPUs a process was granted: by affinity, control groups and Slurm; and which.

    llm-run python -c "from llm_recipes.granted_cpus import *; print(granted_cpus().reason)"

Programs that count the node's CPUs start too many threads where a job has a part of them, and those
wait for each other at every operation. Needs the standard library only.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/")


@dataclass(frozen=True)
class GrantedCpus:
    """What a process may use.

    cpus: numbers of the CPUs of its affinity. quota: CPUs' worth of time that its control groups
    grant; None: as much as it likes. slurm: CPUs that Slurm counts for this process, and the
    variable that says so; None: it doesn't say.

    OMP_NUM_THREADS is no such limit: many sites set it to 1 for everybody, and llama.cpp itself
    doesn't heed it.
    """

    cpus: tuple[int, ...]
    quota: float | None = None
    slurm: tuple[str, int] | None = None

    @property
    def limit(self) -> float:
        """The tightest of these, in CPUs; a quota may be a part of one."""
        limits: list[float] = [len(self.cpus)]
        limits += [] if self.quota is None else [self.quota]
        limits += [] if self.slurm is None else [self.slurm[1]]
        return min(limits)

    @property
    def count(self) -> int:
        """Threads that can all run all of the time, 1 or more."""
        return max(1, math.floor(self.limit))

    @property
    def are_ours(self) -> bool:
        """Whether the CPUs of `cpus` themselves were granted, and not only so many of them."""
        return self.limit == len(self.cpus)

    @property
    def reason(self) -> str:
        """Which limit it is, in words."""
        if self.are_ours:
            return f"{_cpus(len(self.cpus))} by affinity"
        if self.slurm is not None and self.slurm[1] == self.limit:
            return "{}={}".format(*self.slurm)
        return f"a quota of {self.limit:.3g} of {_cpus(len(self.cpus))}"


def granted_cpus(
    system: Path = SYSTEM,
    environment: Mapping[str, str] | None = None,
    affinity: Collection[int] | None = None,
) -> GrantedCpus:
    """What this process may use of the CPUs.

    Args:
        system: Where /proc and /sys are.
        environment: Where Slurm's variables are; None: this process's.
        affinity: CPUs that it may run on; None: this process's.
    """
    cpus = os.sched_getaffinity(0) if affinity is None else affinity
    env = os.environ if environment is None else environment
    return GrantedCpus(tuple(sorted(cpus)), cpu_quota(system), slurm_cpus(env))


def cpu_quota(system: Path = SYSTEM) -> float | None:
    """CPUs' worth of time of the tightest quota of this process's control groups, v1 and v2.

    None is no limit. https://docs.kernel.org/scheduler/sched-bwc.html
    """
    found: list[float] = []
    for level in cgroup_levels("", system):
        words = (read_lines(level / "cpu.max") or ["max"])[0].split()
        found += _share(words[0], words[1]) if len(words) == 2 else []
    for level in cgroup_levels("cpu", system):
        quota, period = (read_lines(level / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        found += _share(quota[0], period[0]) if quota and period else []
    return min(found, default=None)


def slurm_cpus(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """CPUs that Slurm counts for this process, and the variable that says so.

    SLURM_CPUS_PER_TASK is there only if the job asked for it. SLURM_CPUS_ON_NODE is the step's
    share of the node, which its tasks here divide among them.
    """
    per_task = _positive(environment.get("SLURM_CPUS_PER_TASK"))
    if per_task is not None:
        return "SLURM_CPUS_PER_TASK", per_task
    on_node = _positive(environment.get("SLURM_CPUS_ON_NODE"))
    if on_node is None:
        return None
    return "SLURM_CPUS_ON_NODE", max(1, on_node // _tasks_here(environment))


def cgroup_levels(controller: str, system: Path = SYSTEM) -> list[Path]:
    """Folders of this process's group and of those above it, as far as they are seen here.

    Args:
        controller: One of v1 (`cpu`, `memory`); "" is v2's only hierarchy.
        system: Where /proc and /sys are.
    """
    for line in read_lines(system / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, colon, group = rest.partition(":")
        if colon and controller in controllers.split(","):
            top, root = _mount(controller, controllers, group, system)
            # A container sees its own group as the top one, and the host's path as its group.
            inside = group[len(root) :] if _is_below(group, root) else group
            folder = top / inside.strip("/")
            return [level for level in (folder, *folder.parents) if level.is_relative_to(top)]
    return []


def read_lines(path: Path) -> list[str]:
    """Lines of a file; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _mount(controller: str, controllers: str, group: str, system: Path) -> tuple[Path, str]:
    """Where a hierarchy is mounted, and the group that is its top there."""
    for line in read_lines(system / "proc/self/mountinfo"):
        # proc_pid_mountinfo(5): id parent device root mountpoint options … - type source options
        before, _, after = (words.split() for words in line.partition(" - "))
        if len(before) < 5 or len(after) < 3:
            continue
        root, point, kind = before[3], before[4], after[0]
        ours = controller in after[2].split(",") if controller else True
        if ours and kind == ("cgroup" if controller else "cgroup2") and _is_below(group, root):
            return system / point.lstrip("/"), root
    usual = system / "sys/fs/cgroup"
    folders = (usual / controller, usual / controllers)
    return next((folder for folder in folders if folder.is_dir()), folders[0]), "/"


def _is_below(group: str, root: str) -> bool:
    return root == "/" or group == root or group.startswith(f"{root}/")


def _share(quota: str, period: str) -> list[float]:
    """CPUs' worth of time, or nothing: `max` and -1 are no limit."""
    parts = _positive(quota), _positive(period)
    return [] if parts[0] is None or parts[1] is None else [parts[0] / parts[1]]


def _positive(text: str | None) -> int | None:
    found = re.fullmatch(r"\s*0*([1-9][0-9]{0,17})\s*", text or "", re.ASCII)
    return int(found[1]) if found else None


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Tasks of this step on this node: `2(x3),1` are two on each of three nodes, then one."""
    here = _positive(environment.get("SLURM_NODEID")) or 0
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"([1-9]\d{0,8})(?:\(x([1-9]\d{0,8})\))?", part.strip(), re.ASCII)
        if found is None:
            break
        nodes = int(found[2] or 1)
        if here < nodes:
            return int(found[1])
        here -= nodes
    return 1


def _cpus(number: int) -> str:
    return "1 CPU" if number == 1 else f"{number} CPUs"
