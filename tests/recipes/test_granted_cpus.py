"""Limits of CPUs: affinity, quotas of control groups of both versions, Slurm's counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RECIPES
from fake_system import add_files, real_quota

from llm_recipes.granted_cpus import GrantedCpus, cpu_quota, granted_cpus, slurm_cpus

CGROUP = "proc/self/cgroup"
MOUNTS = "proc/self/mountinfo"
V1 = "12:cpu,cpuacct:/slurm/job\n5:memory:/slurm/job\n1:name=systemd:/x\n0::/\n"
SHOWN = "import sys; from llm_recipes.granted_cpus import *; print(granted_cpus().count)"


def v1_files(folder: str, quota: object, period: object = 100000) -> dict[str, object]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


def test_v2_the_tightest_level_counts(tmp_path: Path) -> None:
    add_files(
        tmp_path,
        {
            CGROUP: "0::/job/step",
            "sys/fs/cgroup/job/step/cpu.max": "max 100000",
            "sys/fs/cgroup/job/cpu.max": "150000 100000",
            "sys/fs/cgroup/cpu.max": "400000 100000",
        },
    )
    assert cpu_quota(tmp_path) == 1.5


@pytest.mark.parametrize("mounted", ["cpu", "cpu,cpuacct"])
def test_v1_by_the_names_of_its_folders(mounted: str, tmp_path: Path) -> None:
    top = f"sys/fs/cgroup/{mounted}"
    add_files(tmp_path, {CGROUP: V1, **v1_files(f"{top}/slurm", 300000)})
    add_files(tmp_path, v1_files(f"{top}/slurm/job", -1))
    assert cpu_quota(tmp_path) == 3


def test_v1_where_it_is_mounted(tmp_path: Path) -> None:
    mounts = (
        "31 23 0:28 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n"
        "32 31 0:29 / /cgroups/cpuacct\\040x rw - cgroup cgroup rw,cpuacct\n"
        "33 31 0:29 / /cgroups/both rw,relatime shared:10 - cgroup cgroup rw,cpuacct,cpu\n"
        "nonsense\n- - -\n"
    )
    add_files(tmp_path, {CGROUP: V1, MOUNTS: mounts, **v1_files("cgroups/both/slurm/job", 50000)})
    assert cpu_quota(tmp_path) == 0.5


def test_a_container_sees_its_group_as_the_top(tmp_path: Path) -> None:
    mounts = "33 31 0:29 /docker/1a2b /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
    add_files(tmp_path, {CGROUP: "3:cpu:/docker/1a2b/inner\n", MOUNTS: mounts})
    add_files(tmp_path, v1_files("sys/fs/cgroup/cpu/inner", 200000))
    assert cpu_quota(tmp_path) == 2
    add_files(tmp_path, {CGROUP: "3:cpu:/docker/1a2bc/inner\n"})
    add_files(tmp_path, v1_files("sys/fs/cgroup/cpu", 700000))
    assert cpu_quota(tmp_path) == 7  # another group's mount: what is seen at the top


def test_both_versions_at_once(tmp_path: Path) -> None:
    mounts = (
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    )
    add_files(tmp_path, {CGROUP: "1:cpu:/a\n0::/b\n", MOUNTS: mounts})
    add_files(tmp_path, v1_files("sys/fs/cgroup/cpu/a", 300000))
    assert cpu_quota(tmp_path) == 3
    add_files(tmp_path, {"sys/fs/cgroup/unified/b/cpu.max": "200000 100000"})
    assert cpu_quota(tmp_path) == 2


@pytest.mark.parametrize(
    ("group", "content"),
    [
        ("", "100000 100000"),
        ("0:", "100000 100000"),
        ("garbage \x00\xff", "100000 100000"),
        ("0::/a", ""),
        ("0::/a", "max"),
        ("0::/a", "100000"),
        ("0::/a", "-5 100000"),
        ("0::/a", "100000 0"),
        ("0::/a", "many thousands"),
        ("0::/a", "1e5 1e5"),
        ("0::/../b", "100000 100000"),
    ],
)
def test_nonsense_is_no_quota(group: str, content: str, tmp_path: Path) -> None:
    add_files(tmp_path, {CGROUP: group, "sys/fs/cgroup/a/cpu.max": content})
    assert cpu_quota(tmp_path) is None


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "64"}, ("SLURM_CPUS_PER_TASK", 4)),
        ({"SLURM_CPUS_ON_NODE": "64"}, ("SLURM_CPUS_ON_NODE", 64)),
        (
            {
                "SLURM_CPUS_ON_NODE": "64",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
                "SLURM_NODEID": "1",
            },
            ("SLURM_CPUS_ON_NODE", 16),
        ),
        (
            {
                "SLURM_CPUS_ON_NODE": "64",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
                "SLURM_NODEID": "2",
            },
            ("SLURM_CPUS_ON_NODE", 32),
        ),
        (
            {"SLURM_CPUS_ON_NODE": "2", "SLURM_STEP_TASKS_PER_NODE": "4"},
            ("SLURM_CPUS_ON_NODE", 1),
        ),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "x"}, ("SLURM_CPUS_ON_NODE", 8)),
        ({"SLURM_CPUS_PER_TASK": "0", "SLURM_CPUS_ON_NODE": "many"}, None),
        ({"SLURM_CPUS_PER_TASK": "-2"}, None),
        ({"SLURM_CPUS_PER_TASK": "²"}, None),
    ],
)
def test_slurm(variables: dict[str, str], expected: tuple[str, int] | None) -> None:
    assert slurm_cpus(variables) == expected


@pytest.mark.parametrize(
    ("quota", "slurm", "count", "ours", "words"),
    [
        (None, None, 8, True, "8 CPUs by affinity"),
        (8.0, ("SLURM_CPUS_PER_TASK", 9), 8, True, "8 CPUs by affinity"),
        (1.5, None, 1, False, "a quota of 1.5 of 8 CPUs"),
        (0.2, None, 1, False, "a quota of 0.2 of 8 CPUs"),
        (2.0, None, 2, False, "a quota of 2 of 8 CPUs"),
        (7.9, None, 7, False, "a quota of 7.9 of 8 CPUs"),
        (6.0, ("SLURM_CPUS_PER_TASK", 4), 4, False, "SLURM_CPUS_PER_TASK=4"),
        (2.9, ("SLURM_CPUS_ON_NODE", 4), 2, False, "a quota of 2.9 of 8 CPUs"),
    ],
)
def test_the_tightest_limit(
    quota: float | None, slurm: tuple[str, int] | None, count: int, ours: bool, words: str
) -> None:
    granted = GrantedCpus(tuple(range(8)), quota, slurm)
    assert (granted.count, granted.are_ours, granted.reason) == (count, ours, words)


def test_affinity_of_this_process(tmp_path: Path) -> None:
    assert granted_cpus(tmp_path, {}).cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert granted_cpus(tmp_path, {}, {5, 3}).cpus == (3, 5)


def test_torch_gets_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from llm_recipes.device import use_granted_cpus

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    before = torch.get_num_threads()
    try:
        assert use_granted_cpus() == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("quota", "count"), [(0.5, 1), (2.0, 2), (1.5, 1)])
def test_a_real_quota(quota: float, count: int) -> None:
    with real_quota(quota) as enter:
        done = subprocess.run(
            [*enter, sys.executable, "-c", SHOWN],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(RECIPES)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout.strip() == str(count), done.stderr
