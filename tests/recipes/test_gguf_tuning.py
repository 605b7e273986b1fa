"""What a sweep has found is kept for the same CPUs and model only, and survives damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import RECIPES
from fake_system import add_cpus, add_files

from llm_recipes.errors import LLMError
from llm_recipes.gguf import tuning
from llm_recipes.gguf.sweep import Setting
from llm_recipes.gguf.threads import Cores, granted_cores
from llm_recipes.gguf.tuning import (
    Tuned,
    bench_rate,
    check_cache,
    forget,
    key_of,
    recall,
    remember,
    result_path,
    threads_for,
)

TUNED = Tuned(3, 6, False, "none", "2026-11-27T10:00:00+00:00")


def model(**changes: Any) -> Any:
    """What tuning asks of a GGUF file."""
    facts = {"architecture": "llama", "parameters": 7, "layers": 2, "file_type": "Q4_K_M"}
    return SimpleNamespace(path=Path("m.gguf"), **{**facts, **changes})


@pytest.fixture
def cores(tmp_path: Path) -> Cores:
    """Three of the four cores of a node, with both their hyper-threads."""
    node = add_cpus(tmp_path / "node", [(0, 4), (1, 5), (2, 6), (3, 7)])
    return granted_cores(node, {}, {0, 1, 2, 4, 5, 6})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    folder = tmp_path / "cache's; ü"
    monkeypatch.setenv("LLM_CACHE_DIR", str(folder))
    return folder


def test_remembered_and_forgotten(cores: Cores) -> None:
    key = key_of(model(), cores)
    assert recall(key) is None
    assert forget(key) is None
    path = remember(key, TUNED, [{"threads": 3}])
    assert recall(key) == TUNED
    assert path.parent.name == "threads"
    assert forget(key) == path
    assert recall(key) is None
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"architecture": "qwen2"}, {"parameters": 8}, {"layers": 3}, {"file_type": "Q8_0"}]
)
def test_another_model_has_its_own(changes: dict[str, Any], cores: Cores) -> None:
    remember(key_of(model(), cores), TUNED, [])
    assert recall(key_of(model(**changes), cores)) is None


def test_other_cpus_have_their_own(cores: Cores, tmp_path: Path) -> None:
    node = tmp_path / "node"
    add_files(node, {"proc/cpuinfo": "model name\t: A\n"})
    keys = [key_of(model(), cores, node)]
    keys.append(key_of(model(), granted_cores(node, {}, {0, 4, 1, 5}), node))
    keys.append(key_of(model(), granted_cores(node, {"SLURM_CPUS_PER_TASK": "2"}), node))
    add_files(node, {"proc/cpuinfo": "model name\t: B\n"})
    keys.append(key_of(model(), cores, node))
    add_files(node, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"})
    keys.append(key_of(model(), granted_cores(node, {}, {0, 1, 2, 4, 5, 6}), node))
    add_files(node, {"sys/fs/cgroup/cpu.max": "270000 100000"})
    keys.append(key_of(model(), granted_cores(node, {}, {0, 1, 2, 4, 5, 6}), node))
    assert len({result_path(key) for key in keys}) == len(keys)


def test_which_cpus_does_not_count(cores: Cores, tmp_path: Path) -> None:
    others = granted_cores(tmp_path / "node", {}, {1, 2, 3, 5, 6, 7})
    assert key_of(model(), others) == key_of(model(), cores)


def test_another_llama_cpp(cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(key_of(model(), cores), TUNED, [])
    monkeypatch.setattr(tuning, "llama_version", lambda: "0.0.1")
    assert recall(key_of(model(), cores)) is None


DAMAGE: dict[str, Any] = {
    "nothing": b"",
    "half": lambda text: text[: len(text) // 2],
    "no JSON": b"\xff\xfe\x00",
    "a list": b"[]",
    "another schema": lambda text: text.replace(b'"schema": 1', b'"schema": 2'),
    "another key": lambda text: text.replace(b'"layers": 2', b'"layers": 9'),
    "no threads": lambda text: text.replace(b'"generate": 3', b'"generate": 0'),
    "too many": lambda text: text.replace(b'"prompt": 6', b'"prompt": 6000'),
    "a text": lambda text: text.replace(b'"generate": 3', b'"generate": "3"'),
    "true": lambda text: text.replace(b'"generate": 3', b'"generate": true'),
    "no strategy": lambda text: text.replace(b'"numa": "none",\n    "m', b'"numa": "x",\n    "m'),
    "one more": lambda text: text.replace(b'"generate": 3', b'"generate": 3, "x": 1'),
    "one less": lambda text: text.replace(b'"generate": 3,', b""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_none(kind: str, cores: Cores) -> None:
    key = key_of(model(), cores)
    path = remember(key, TUNED, [])
    whole = path.read_bytes()
    damaged = DAMAGE[kind](whole) if callable(DAMAGE[kind]) else DAMAGE[kind]
    assert damaged != whole
    path.write_bytes(damaged)
    assert recall(key) is None
    assert threads_for(model(), cores=cores).generate == 3
    remember(key, TUNED, [])
    assert recall(key) == TUNED


def test_a_folder_in_its_place(cores: Cores) -> None:
    key = key_of(model(), cores)
    result_path(key).mkdir(parents=True)
    assert recall(key) is None
    with pytest.raises(LLMError, match="cannot keep what was measured in"):
        remember(key, TUNED, [])


def test_a_cache_that_cannot_be_written(
    cores: Cores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "file"))
    key = key_of(model(), cores)
    assert recall(key) is None
    for work in (lambda: check_cache(key), lambda: remember(key, TUNED, [])):
        with pytest.raises(LLMError, match="cannot keep what was measured in") as caught:
            work()
        assert "LLM_CACHE_DIR" in caught.value.fix


def test_two_processes_at_once(cores: Cores) -> None:
    key = key_of(model(), cores)
    program = (
        "import json, sys; from llm_recipes.gguf.tuning import *\n"
        "key = json.loads(sys.argv[1])\n"
        "for n in range(1, 60):\n"
        "    remember(key, Tuned(n, n, False, 'none', 'now'), [{'n': n}] * 50)\n"
        "    found = recall(key)\n"
        "    assert found and found.generate == found.prompt, found\n"
    )
    command = [sys.executable, "-c", program, json.dumps(key)]
    env = {**os.environ, "PYTHONPATH": str(RECIPES)}
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(
                subprocess.run, command, env=env, capture_output=True, text=True, timeout=60
            )
            for _ in range(2)
        ]
    for run in runs:
        assert run.result().returncode == 0, run.result().stderr
    assert [path.name for path in result_path(key).parent.iterdir()] == [result_path(key).name]


def test_auto_without_a_result_is_what_was_granted(cores: Cores) -> None:
    threads = threads_for(model(), cores=cores)
    assert (threads.generate, threads.prompt, threads.cpus) == (3, 3, (0, 1, 2))
    assert "6 CPUs by affinity, which are 3 cores" in threads.reason


def test_auto_is_what_was_found(cores: Cores) -> None:
    remember(key_of(model(), cores), TUNED, [])
    threads = threads_for(model(), "auto", " AUTO", cores)
    assert (threads.generate, threads.prompt) == (3, 6)
    assert sorted(threads.cpus) == [0, 1, 2, 4, 5, 6]
    assert threads.reason.startswith("tuned on 2026-11-27: 3 for generation, 6 for prompts")
    remember(key_of(model(), cores), Tuned(2, 2, True, "none", "2026"), [])
    assert threads_for(model(), cores=cores).cpus == (0, 1)
    told = threads_for(model(), prompt_threads=5, cores=cores)
    assert (told.generate, told.prompt, len(told.cpus)) == (2, 5, 5)


def test_the_users_word_counts(cores: Cores) -> None:
    remember(key_of(model(), cores), TUNED, [])
    assert threads_for(model(), 2, cores=cores).prompt == 2  # as llama.cpp does
    threads = threads_for(model(), "1", "4", cores)
    assert (threads.generate, threads.prompt, threads.cpus) == (1, 4, (0, 1, 2, 4))
    many = threads_for(model(), "8", 1, cores)
    assert many.reason.endswith("6 CPUs by affinity: 8 threads on 6 wait for each other")
    assert len(many.cpus) == 6


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "all", "", "²", "513", 0, "9" * 30])
def test_no_number_of_threads(text: str | int, cores: Cores) -> None:
    with pytest.raises(LLMError, match=r"--threads .* is no number of threads"):
        threads_for(model(), text, cores=cores)
    with pytest.raises(ExceptionGroup) as caught:
        threads_for(model(), text, text, cores)
    assert len(caught.value.exceptions) == 2


def fake_bench(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A llama-bench of ours on the PATH."""
    folder.mkdir()
    program = folder / "llama-bench"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_how_llama_bench_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = sorted(os.sched_getaffinity(0))
    node = add_cpus(tmp_path / "node", [mine])  # a core with all CPUs of ours
    cores = granted_cores(node, {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": str(len(mine))}, mine)
    said = tmp_path / "said"
    count = "$(env -u OMP_NUM_THREADS nproc)"
    script = f'echo "{count} $*" >> {said}; echo \'{{"avg_ts": 12.5}}\''
    fake_bench(tmp_path / "bin", script, monkeypatch)
    assert bench_rate(model(), "generate", Setting(1, pinned=True), 8, cores) == 12.5
    bench_rate(model(), "prompt", Setting(2, numa="distribute"), 64, cores)
    pinned, free = said.read_text().splitlines()
    assert pinned == ("1 -m m.gguf -o jsonl -r 1 -ngl 0 -dev none -p 0 -n 8 -t 1")
    assert free.startswith(f"{len(mine)} -m m.gguf ") and " -p 64 -n 0 -t 2 " in free
    assert free.endswith("--numa distribute")
    assert sorted(os.sched_getaffinity(0)) == mine


@pytest.mark.parametrize("script", ["true", "echo hello", 'echo "{}"', "echo '{\"avg_ts\": null}'"])
def test_no_figures(
    script: str, cores: Cores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bench(tmp_path / "bin", script, monkeypatch)
    with pytest.raises(LLMError, match="llama-bench gave no figures"):
        bench_rate(model(), "generate", Setting(1), 8, cores)
