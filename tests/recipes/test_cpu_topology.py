"""Cores, hyper-threads, fast and efficient ones, NUMA nodes; llama.cpp's own count."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_system import add_cpus, add_files

from llm_recipes.cpu_topology import (
    cpu_model,
    llama_default_threads,
    numa_nodes,
    read_cpu_list,
    read_cpus,
)

CPUS = "sys/devices/system/cpu"


def order(numbers: set[int], system: Path) -> list[int]:
    return [cpu.number for cpu in read_cpus(numbers, system)]


def test_a_hyper_thread_of_each_core_first(tmp_path: Path) -> None:
    add_cpus(tmp_path, [(0, 4), (1, 5), (2, 6), (3, 7)])
    assert order(set(range(8)), tmp_path) == [0, 1, 2, 3, 4, 5, 6, 7]
    # The first of those that were granted, whichever of the core it is.
    assert order({1, 3, 5, 6}, tmp_path) == [1, 3, 6, 5]
    add_cpus(tmp_path, [(0, 1), (2, 3), (4, 5), (6, 7)])
    assert order(set(range(8)), tmp_path) == [0, 2, 4, 6, 1, 3, 5, 7]


def test_efficient_cores_last(tmp_path: Path) -> None:
    add_cpus(tmp_path, [(0,), (1,), (2, 3), (4, 5)], efficient="0-1")
    assert order(set(range(6)), tmp_path) == [2, 4, 0, 1, 3, 5]


def test_slow_cores_last(tmp_path: Path) -> None:
    add_cpus(tmp_path, [(0,), (1,), (2,), (3,)], speeds={0: 400, 1: 400, 2: 1000, 3: 1024})
    cpus = read_cpus({0, 1, 2, 3}, tmp_path)
    assert [(cpu.number, cpu.fast) for cpu in cpus] == [
        (2, True),
        (3, True),
        (0, False),
        (1, False),
    ]


def test_clocks_where_capacities_say_nothing(tmp_path: Path) -> None:
    add_cpus(tmp_path, [(0,), (1,), (2,)])
    clocks = {0: 3300000, 1: 5100000, 2: 5000000}
    add_files(tmp_path, {f"{CPUS}/cpu{c}/cpufreq/cpuinfo_max_freq": f for c, f in clocks.items()})
    assert order({0, 1, 2}, tmp_path) == [1, 2, 0]


def test_no_topology(tmp_path: Path) -> None:
    assert order({2, 0}, tmp_path) == [0, 2]
    assert numa_nodes(tmp_path) == {}
    assert read_cpus(set(), tmp_path) == []


@pytest.mark.parametrize("content", ["", "x", "0-", "7-5", "5", "²"])
def test_nonsense_for_siblings(content: str, tmp_path: Path) -> None:
    for cpu in (0, 1):
        folder = f"{CPUS}/cpu{cpu}"
        add_files(tmp_path, {f"{folder}/topology/thread_siblings_list": content})
        add_files(tmp_path, {f"{folder}/cpu_capacity": content})
    assert [cpu.thread for cpu in read_cpus({0, 1}, tmp_path)] == [0, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3,8,10-11", {0, 1, 2, 3, 8, 10, 11}), ("5", {5}), ("", set()), ("a,2,-1,3-b", {2})],
)
def test_cpu_lists(text: str, expected: set[int], tmp_path: Path) -> None:
    add_files(tmp_path, {"list": text})
    assert read_cpu_list(tmp_path / "list") == expected


def test_numa_nodes(tmp_path: Path) -> None:
    add_cpus(tmp_path, [(0,), (1,), (2,), (3,)], nodes=["0,2", "1,3", ""])
    assert numa_nodes(tmp_path) == {0: {0, 2}, 1: {1, 3}, 2: set()}
    assert [cpu.node for cpu in read_cpus({0, 1}, tmp_path)] == [0, 1]


def test_the_default_counts_cores_of_the_node(tmp_path: Path) -> None:
    add_cpus(tmp_path, [(0, 4), (1, 5), (2, 6), (3, 7)])
    assert llama_default_threads(tmp_path) == 4
    add_cpus(tmp_path, [], efficient="2-3,6-7")
    assert llama_default_threads(tmp_path) == 2
    (tmp_path / CPUS / "cpu1/topology/thread_siblings_list").unlink()
    assert llama_default_threads(tmp_path) == 1  # it looks no further


def test_the_default_is_llama_cpps_own() -> None:
    """llama-bench says its default in its help; the kernel decides for both of us."""
    if shutil.which("llama-bench") is None:
        pytest.skip("llama.cpp's programs are not here")
    shown = subprocess.run(["llama-bench", "-h"], capture_output=True, text=True, timeout=60)
    (line,) = (line for line in shown.stdout.splitlines() if "--threads <n>" in line)
    assert line.split("default: ")[1].rstrip(")") == str(llama_default_threads())


def test_names_of_cpus(tmp_path: Path) -> None:
    assert cpu_model(tmp_path) == "CPU"
    add_files(tmp_path, {"proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"})
    assert cpu_model(tmp_path) == "CPU 0x41 0xd4f"
    text = "processor\t: 0\nmodel name\t: A  CPU @ 2.50GHz: new\nprocessor\t: 1\nmodel name\t: B\n"
    add_files(tmp_path, {"proc/cpuinfo": text})
    assert cpu_model(tmp_path) == "A  CPU @ 2.50GHz: new"
    assert json.dumps(cpu_model(Path(os.sep)))
