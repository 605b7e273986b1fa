"""Threads of llama.cpp from what was granted: cores first, where to pin, NUMA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import RECIPES
from fake_system import add_cpus, add_files, real_quota

from llm_recipes.gguf import engine
from llm_recipes.gguf.threads import Threads, granted_threads, pinned_to, use

FOUR_OF_TWO = [(0, 4), (1, 5), (2, 6), (3, 7)]  # cores and their hyper-threads
JOB = {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "8"}
SHOWN = "from llm_recipes.gguf.threads import *; t = granted_threads(); print(t.generate, t.prompt)"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node of four cores with two hyper-threads each."""
    return add_cpus(tmp_path, FOUR_OF_TWO, nodes=["0-7"])


def test_the_whole_node_is_nobodys_own(node: Path) -> None:
    threads = granted_threads(node, {}, range(8))
    assert (threads.generate, threads.prompt, threads.numa) == (4, 4, "none")
    assert sorted(threads.cpus) == list(range(8))  # other programs may be pinned as we would be
    assert threads.reason == "4 threads: 8 CPUs by affinity, which are 4 cores"


def test_the_whole_node_of_a_job(node: Path) -> None:
    threads = granted_threads(node, JOB, range(8))
    assert threads.cpus == (0, 1, 2, 3)
    assert "pinned to a hyper-thread of each core" in threads.reason


def test_a_mask_narrower_than_the_node(node: Path) -> None:
    threads = granted_threads(node, {}, {1, 5, 2, 6})
    assert (threads.generate, threads.cpus) == (2, (1, 2))
    assert "llama.cpp's default is 4" in threads.reason
    assert granted_threads(node, {}, {3, 7}).cpus == (3,)
    assert granted_threads(node, {}, {0, 5}).cpus == (0, 5)


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "8"}, 2),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "3"}, 3),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "500"}, 4),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "none"}, 4),
    ],
)
def test_slurm_counts_without_a_mask(variables: dict[str, str], threads: int, node: Path) -> None:
    found = granted_threads(node, variables, range(8))
    assert found.generate == threads
    if threads < 4:  # which of the CPUs are ours is not known: a job beside this one has as many
        assert len(found.cpus) == 8


@pytest.mark.parametrize(
    ("quota", "generate", "prompt"),
    [(0.1, 1, 1), (1, 1, 1), (1.25, 1, 2), (1.5, 2, 2), (2.75, 3, 3), (3.9, 4, 4), (7.5, 4, 4)],
)
def test_a_quota_pins_nothing(quota: float, generate: int, prompt: int, node: Path) -> None:
    maximum = f"{round(quota * 100_000)} 100000"
    add_files(node, {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": maximum})
    threads = granted_threads(node, JOB, range(8))
    assert (threads.generate, threads.prompt, len(threads.cpus)) == (generate, prompt, 8)
    assert f"a quota of {quota:g} of 8 CPUs" in threads.reason


def test_the_reason_under_a_quota(node: Path) -> None:
    add_files(node, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "125000 100000"})
    assert granted_threads(node, {}, range(8)).reason == (
        "1 thread, 2 for prompts: a quota of 1.25 of 8 CPUs; llama.cpp's default is 4"
    )


def test_efficient_cores_only_if_there_are_no_others(tmp_path: Path) -> None:
    add_cpus(tmp_path, [(0, 1), (2, 3), (4,), (5,), (6,)], efficient="4-6")
    assert granted_threads(tmp_path, {}, range(7)).generate == 2
    assert granted_threads(tmp_path, {}, {2, 3, 4, 5}).cpus == (2,)
    assert granted_threads(tmp_path, {}, {4, 5}).generate == 2


def test_all_of_several_numa_nodes(tmp_path: Path) -> None:
    add_cpus(tmp_path, FOUR_OF_TWO, nodes=["0-1,4-5", "2-3,6-7"])
    threads = granted_threads(tmp_path, JOB, range(8))
    assert (threads.generate, threads.numa) == (4, "distribute")
    assert (
        len(threads.cpus) == 8
    )  # it gives threads all CPUs of a node, whatever they are pinned to


@pytest.mark.parametrize(
    ("cpus", "words"),
    [
        ({0, 2}, "on 2 NUMA nodes, of which parts were granted"),
        ({0, 1, 4, 5, 2}, "on 2 NUMA nodes, of which parts were granted"),
        ({2, 3}, "all on NUMA node 1"),
    ],
)
def test_parts_of_numa_nodes(cpus: set[int], words: str, tmp_path: Path) -> None:
    add_cpus(tmp_path, FOUR_OF_TWO, nodes=["0-1,4-5", "2-3,6-7"])
    threads = granted_threads(tmp_path, {}, cpus)
    assert threads.numa == "none"
    assert words in threads.reason


def test_numa_nodes_that_llama_cpp_cannot_use(tmp_path: Path) -> None:
    without_cpus = add_cpus(tmp_path / "a", FOUR_OF_TWO, nodes=["0-1,4-5", "2-3,6-7", ""])
    assert granted_threads(without_cpus, {}, range(8)).numa == "none"
    many = add_cpus(tmp_path / "b", [(n,) for n in range(9)], nodes=[str(n) for n in range(9)])
    assert granted_threads(many, {}, range(9)).numa == "none"
    add_files(many, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "400000 100000"})
    assert granted_threads(many, {}, range(9)).numa == "none"


def test_a_node_that_says_nothing(tmp_path: Path) -> None:
    threads = granted_threads(tmp_path, {}, {0, 1, 2})
    assert (threads.generate, sorted(threads.cpus), threads.numa) == (3, [0, 1, 2], "none")


def run_here(program: str, *before: str) -> str:
    done = subprocess.run(
        [*before, sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(RECIPES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_real_affinity() -> None:
    one = max(os.sched_getaffinity(0))
    assert run_here(SHOWN, "taskset", "-c", str(one)) == "1 1"


@pytest.mark.parametrize(("quota", "threads"), [(1, "1 1"), (1.25, "1 2"), (1.5, "2 2")])
def test_a_real_quota(quota: float, threads: str) -> None:
    with real_quota(quota) as enter:
        assert run_here(SHOWN, *enter) == threads


def test_what_starts_later_is_pinned_too() -> None:
    one = min(os.sched_getaffinity(0))
    program = (
        "import os, subprocess, threading\n"
        "from llm_recipes.gguf.threads import *\n"
        f"use(Threads(1, 1, ({one},), ''))\n"
        "seen = []\n"
        "other = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))\n"
        "other.start(); other.join()\n"
        "print(seen[0], subprocess.check_output(['nproc'], text=True).strip())"
    )
    assert run_here(program) == f"{{{one}}} 1"


def test_cpus_that_are_gone_are_no_error() -> None:
    before = os.sched_getaffinity(0)
    use(Threads(1, 1, (100_000 % 1024,), ""))
    use(Threads(1, 1, (), ""))
    assert os.sched_getaffinity(0) == before


def test_pinned_for_a_while() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyboardInterrupt), pinned_to({min(before)}):
        assert os.sched_getaffinity(0) == {min(before)}
        raise KeyboardInterrupt
    assert os.sched_getaffinity(0) == before


def test_the_strategy_reaches_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    llama = SimpleNamespace(GGML_NUMA_STRATEGY_DISTRIBUTE=1, llama_numa_init=asked.append)
    monkeypatch.setattr(engine, "library", lambda: llama)
    use(Threads(1, 1, (), "", "none"))
    use(Threads(1, 1, (), "", "distribute"))
    assert asked == [1]
