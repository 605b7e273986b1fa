"""A control group with a quota of CPU time, for programs that shall have just that.

    with cpu_group(1.5) as enter:
        subprocess.run([*enter, "llama-bench", ...])

Making one takes root, and a hierarchy that is mounted for writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_recipes.granted_cpus import cgroup_levels

PERIOD_US = 100_000  # the kernel's default, and Kubernetes' and Docker's
TOP = Path("/sys/fs/cgroup")
ENTER = 'echo $$ > "$0" && exec "$@"'


@contextmanager
def cpu_group(quota: float) -> Iterator[list[str]]:
    """Words to put before a command, so that it runs with so many CPUs' worth of time.

    Raises:
        OSError: If no such group can be made here.
    """
    quota_us = round(quota * PERIOD_US)
    if "cpu" in _words(TOP / "cgroup.controllers"):
        if "cpu" not in _words(TOP / "cgroup.subtree_control"):
            (TOP / "cgroup.subtree_control").write_text("+cpu")
        group, settings = TOP, {"cpu.max": f"{quota_us} {PERIOD_US}"}
    elif own := cgroup_levels("cpu"):
        group = own[0]
        settings = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota_us)}
    else:
        raise OSError("no hierarchy of control groups for CPUs is mounted")
    group = group / f"llm-quota-{os.getpid()}"
    group.mkdir()
    try:
        for name, text in settings.items():
            (group / name).write_text(text)
        yield ["sh", "-c", ENTER, str(group / "cgroup.procs")]
    finally:
        group.rmdir()


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
