"""torchrun's arguments, from what Slurm says of a step."""

from __future__ import annotations

import socket

import pytest

from _llm.errors import LLMError
from _llm.options import Options, parse
from _llm.torchrun import (
    choose_port,
    free_port,
    is_free,
    thread_variables,
    torchrun_command,
)

STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n[3-4]", "SLURM_NODEID": "1",
    "SLURMD_NODENAME": "n4",
}  # fmt: skip


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name resolves; these nodes exist nowhere."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: [])


def options(*words: str) -> Options:
    return parse(["--torchrun", *words])


def test_one_node_needs_no_rendezvous() -> None:
    command = torchrun_command(options("train.py", "--a b"), {}, 2)
    assert command[:2] == ["/bin/sh", "-c"] and "llm_recipes.torchrun" in command[2]
    assert command[4:] == ["--nproc-per-node=2", "--standalone", "--", "train.py", "--a b"]


def test_several_nodes_meet_on_the_first() -> None:
    command = torchrun_command(options("--max-restarts=3", "train.py"), STEP, 0)
    port = choose_port(STEP)
    assert command[4:] == [
        "--nproc-per-node=1", "--max-restarts=3", "--nnodes=2", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=n3:{port}", "--rdzv-id=7.0",
        "--rdzv-conf=is_host=0,read_timeout=900",
        "--local-addr=n4", "--", "train.py",
    ]  # fmt: skip
    first = torchrun_command(options("train.py"), {**STEP, "SLURM_NODEID": "0"}, 0)
    assert "--rdzv-conf=is_host=1,read_timeout=900" in first


def test_stale_variables_of_a_step_mean_nothing_to_a_local_start() -> None:
    local = parse(["--torchrun", "--launch=local", "x.py"])
    assert "--standalone" in torchrun_command(local, STEP, 0)


def test_a_node_without_a_name_that_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    env = {**STEP, "SLURM_STEP_NODELIST": "no-such-node.invalid"}
    with pytest.raises(LLMError, match="cannot be resolved"):
        torchrun_command(options("x.py"), env, 0)


@pytest.mark.parametrize(
    ("command", "tail"),
    [
        (["python", "x.py", "-v"], ["--", "x.py", "-v"]),
        (["python3", "-m", "pkg.mod", "-v"], ["-m", "--", "pkg.mod", "-v"]),
        (["python", "-u", "x.py"], ["--no-python", "--", "python", "-u", "x.py"]),
        (["python"], ["--no-python", "--", "python"]),
        (["lm_eval", "--help"], ["--no-python", "--", "lm_eval", "--help"]),
    ],
)
def test_kinds_of_programs(command: list[str], tail: list[str]) -> None:
    assert torchrun_command(options(*command), {}, 1)[6:] == tail


def test_several_tasks_a_node_are_refused() -> None:
    with pytest.raises(LLMError, match="one task a node"):
        torchrun_command(options("x.py"), {**STEP, "SLURM_STEP_NUM_TASKS": "4"}, 0)


def test_a_port_in_use_is_said_on_the_host_only() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("", choose_port(STEP)))
        taken.listen()
        with pytest.raises(LLMError, match="in use"):
            torchrun_command(options("x.py"), {**STEP, "SLURM_NODEID": "0"}, 0)
        torchrun_command(options("x.py"), STEP, 0)
        other = free_port(STEP)
        assert other != choose_port(STEP) and is_free(other)
    chosen = {**STEP, "SLURM_NODEID": "0", "LLM_RENDEZVOUS_PORT": str(other)}
    assert f"--rdzv-endpoint=n3:{other}" in torchrun_command(options("x.py"), chosen, 0)


def test_ports_of_neighbouring_jobs_and_steps_differ() -> None:
    ports = {
        choose_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        for job in range(1000, 1040)
        for step in range(5)
    }
    assert len(ports) == 200 and min(ports) >= 20000 and max(ports) < 30000


def test_threads_share_the_cores() -> None:
    assert thread_variables(options("x.py"), {"OMP_NUM_THREADS": "3"}, 2) == {}
    assert int(thread_variables(options("x.py"), {}, 100000)["OMP_NUM_THREADS"]) == 1
