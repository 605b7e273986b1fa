"""CPUs that this machine does not have, as a tree of /proc and /sys in a folder; real quotas."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from cpu_group import cpu_group


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
def real_quota(cpus: float) -> Iterator[list[str]]:
    """Words before a command that then has a quota of so many CPUs; skips where none can be set."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has a single CPU")
    with ExitStack() as stack:
        try:
            enter = stack.enter_context(cpu_group(cpus))
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        yield enter
