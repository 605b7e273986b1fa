"""Launch options, variables and hardware of a record, here and now."""

from __future__ import annotations

from typing import Any

import pytest

from _llm.record.finding import obstacles
from _llm.record.reading import Record
from _llm.record.surroundings import counts, hardware, launch_options, variables


def record(**data: Any) -> Record:
    return Record("/runs/x.run.json", data, "sha256:0")


def test_variables_become_what_they_were() -> None:
    env = {"PATH": "/bin", "OMP_NUM_THREADS": "8", "NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_x",
           "CUDA_VISIBLE_DEVICES": "3", "HF_HOME": "/mine", "LANG": "de_DE.UTF-8"}
    recorded = {"OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false", "LANG": "C.UTF-8",
                "CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/theirs", "LD_PRELOAD": "/evil.so",
                "PATH": "/evil", "MKL_BAD\nNAME": "x", "OMP_BAD": "a\0b", "OMP_ODD": 3}
    made, findings = variables(record(environment=recorded), env)
    assert made["OMP_NUM_THREADS"] == "2" and made["TOKENIZERS_PARALLELISM"] == "false"
    assert "NCCL_DEBUG" not in made  # it would be another run
    assert made["CUDA_VISIBLE_DEVICES"] == "3" and made["HF_HOME"] == "/mine"
    assert made["HF_TOKEN"] == "hf_x" and made["PATH"] == "/bin"
    assert not {"LD_PRELOAD", "OMP_BAD", "OMP_ODD"} & set(made) and len(made) == 7
    (shown,) = findings
    assert "OMP_NUM_THREADS=2 ('8' here)" in shown.text and "without NCCL_DEBUG" in shown.text
    assert "LANG" not in shown.text
    assert variables(record(), env)[0] == env


@pytest.mark.parametrize(("name", "wanted"), [
    ("OMP_NUM_THREADS", True), ("TOKENIZERS_PARALLELISM", True), ("CUBLAS_WORKSPACE_CONFIG", True),
    ("HF_HUB_OFFLINE", True), ("PYTHONHASHSEED", True), ("HF_TOKEN", False),
    ("HF_DATASETS_CACHE", False), ("NCCL_SOCKET_IFNAME", False), ("CUDA_VISIBLE_DEVICES", False),
    ("NVIDIA_VISIBLE_DEVICES", False), ("PATH", False), ("TRITON_CACHE_DIR", False),
])
def test_what_belongs_to_the_run_and_what_to_the_host(name: str, wanted: bool) -> None:
    assert counts(name) is wanted


LAUNCH = {"image": "llm", "gpu": None, "torchrun": False, "nodes": 1, "env": {}}


def test_it_is_launched_as_it_was() -> None:
    launch = {**LAUNCH, "gpu": False, "torchrun": True, "nproc_per_node": 2,
              "env": {"A": "it's; x"}}
    words, findings = launch_options(record(launch=launch), {}, "cpu")
    assert words == ["--no-gpu", "--torchrun", "--nproc-per-node", "2", "--env", "A=it's; x"]
    assert not findings
    assert launch_options(record(launch={**LAUNCH, "gpu": True}), {}, "cuda13")[0] == ["--gpu"]
    hostile = {**LAUNCH, "env": {"--image": "x", "A B": "c", "D": 1}, "nproc_per_node": "; rm"}
    assert launch_options(record(launch=hostile), {}, "cpu")[0] == []


@pytest.mark.parametrize(("nodes", "tasks", "job", "stops"), [
    (1, None, 0, False), (2, None, 0, True), (2, None, 2, False), (2, 1, 4, True),
    (1, None, 2, True), (2, 4, 2, False), (1, 4, 0, True),
])
def test_several_nodes_need_a_job_that_has_them(
    nodes: int, tasks: int | None, job: int, stops: bool
) -> None:
    env = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": str(job)} if job else {}
    launch = {**LAUNCH, "nodes": nodes, "tasks_per_node": tasks}
    words, findings = launch_options(record(launch=launch), env, "cpu")
    assert bool(obstacles(findings)) is stops
    if stops:
        assert f"salloc --nodes={nodes}" in findings[0].fix
    if tasks and tasks > 1:
        assert words[-2:] == ["--tasks-per-node", str(tasks)]


def test_a_record_without_launch_runs_as_one_process_or_not_at_all() -> None:
    assert not obstacles(launch_options(record(), {}, "cpu")[1])
    assert obstacles(launch_options(record(sharing={"processes": 4}), {}, "cpu")[1])


def test_hardware_that_differs_is_listed() -> None:
    then = {"cpus": 8, "gpus": ["H100"], "driver": None, "kernel": "6.1", "cpu_model": "A"}
    now = {"cpus": 4, "gpus": [], "driver": "", "cpu_model": "A"}
    assert hardware(record(host=then), now) == ["cpus: 8 -> 4", 'gpus: ["H100"] -> []']


def test_a_hidden_secret_is_never_handed_on() -> None:
    env = {"OMP_A": "http://me:x@h", "URL": "http://me:y@h"}
    recorded = {"OMP_A": "http://***@h", "OMP_B": "http://***@h"}
    assert variables(record(environment=recorded), env) == (env, [])
    launch = {**LAUNCH, "env": {"URL": "http://***@h", "OTHER": "***", "A": "1"}}
    words, findings = launch_options(record(launch=launch), env, "cpu")
    assert words == ["--env", "URL=http://me:y@h", "--env", "A=1"]
    assert "OTHER" in findings[0].text and obstacles(findings) == findings
    assert findings[0].fix == "export OTHER=VALUE"
