"""A tree with what /proc and /sys say about CPUs, in a folder: nodes that this machine is not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def add_files(folder: Path, files: Mapping[str, object]) -> Path:
    """Write files below a folder, each with a line end."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return folder


def add_cpus(
    folder: Path,
    cores: Sequence[Sequence[int]],
    nodes: Sequence[str] = (),
    efficient: str = "",
    speeds: Mapping[int, int] | None = None,
) -> Path:
    """Cores with their hyper-threads, CPU lists of NUMA nodes, Intel's efficient CPUs."""
    cpus = "sys/devices/system/cpu"
    files: dict[str, object] = {}
    for core in cores:
        for cpu in core:
            siblings = ",".join(map(str, sorted(core)))
            files[f"{cpus}/cpu{cpu}/topology/thread_siblings_list"] = siblings
            files[f"{cpus}/cpu{cpu}/cpu_capacity"] = (speeds or {}).get(cpu, 1024)
    files[f"{cpus}/online"] = ",".join(str(cpu) for core in cores for cpu in core)
    for number, listed in enumerate(nodes):
        files[f"sys/devices/system/node/node{number}/cpulist"] = listed
    if efficient:
        files["sys/devices/cpu_atom/cpus"] = efficient
    return add_files(folder, files)


@contextmanager
def cpu_group(quota: float) -> Iterator[Path]:
    """A real control group with a quota of CPUs; its file `cgroup.procs` takes processes in.

    Raises:
        OSError: If this machine lets us make none.
    """
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    is_v2 = "cpu" in _read(v2 / "cgroup.controllers").split()
    group = (v2 if is_v2 else v1) / f"llm-recipes-test-{os.getpid()}"
    if not is_v2 and not (v1 / "tasks").exists():
        raise OSError("no control group of CPUs is mounted")
    if is_v2 and "cpu" not in _read(v2 / "cgroup.subtree_control").split():
        (v2 / "cgroup.subtree_control").write_text("+cpu")
    group.mkdir()
    try:
        if is_v2:
            (group / "cpu.max").write_text(f"{round(quota * 100_000)} 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text(str(round(quota * 100_000)))
        yield group
    finally:
        group.rmdir()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
