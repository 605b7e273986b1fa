"""Two processes do the same steps as one, however they share the model, also after a stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import RECIPES, recipe_environment
from test_sft import largest_difference, losses, run_sft, sft_command

STEPS = ("--max-steps=4", "--method=full", "--lora-rank=4")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of different lengths, so that ranks have different numbers of tokens."""
    path = tmp_path_factory.mktemp("data") / "numbers.jsonl"
    rows = [
        {"instruction": f"Count to {n}.", "response": " ".join(map(str, range(1, n + 1)))}
        for n in range(1, 33)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def alone(model_folder: Path, numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = run_sft(sft_command(model_folder, numbers, folder / "out", *STEPS), folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def torchrun(command: Sequence[str], processes: int, cache: Path, **env: str) -> str:
    """Run a command's script in several processes; returns what they said.

    env: STATUS: expected. FILE_BYTES: of a file at most, the stand-in for a full disk.
    """
    expected, limit = int(env.pop("STATUS", "0")), env.pop("FILE_BYTES", "unlimited")
    environment = {**recipe_environment(), "LLM_CACHE_DIR": str(cache), **env}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        ["prlimit", f"--fsize={limit}", sys.executable, *start, *command[1:]],
        capture_output=True, text=True, timeout=400, env=environment, check=False,
    )  # fmt: skip
    assert (done.returncode != 0) == (expected != 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def check_same(output: Path, alone: Path) -> None:
    expected, found = losses(alone), losses(output)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < 2e-5
    assert largest_difference(output, alone) < 1e-4


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_processes_do_what_one_does(
    strategy: str, model_folder: Path, numbers: Path, alone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    options = [*STEPS, f"--strategy={strategy}", "--batch-size=2"]
    said = torchrun(sft_command(model_folder, numbers, output, *options), 2, tmp_path / "cache")
    assert f"strategy: {strategy}" in said and "x 2 processes x 2 micro batches = 8" in said
    check_same(output, alone)
    assert_sharded(output, strategy)


def assert_sharded(output: Path, strategy: str) -> None:
    """The strategy really was that one: accelerate does DDP on CPUs and says nothing."""
    names = {path.name for path in (output / "checkpoints" / "checkpoint-4").iterdir()}
    sharded = {"fsdp": "pytorch_model_fsdp_0", "zero2": "global_step4", "zero3": "global_step4"}
    if strategy in sharded:
        assert sharded[strategy] in names and "model.safetensors" not in names
    else:
        assert "model.safetensors" in names


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_sharded_runs_stop_and_go_on(
    strategy: str, model_folder: Path, numbers: Path, alone: Path, tmp_path: Path
) -> None:
    """The stop file is there from the start: after one step all ranks save and leave."""
    output, stop, cache = tmp_path / "out", tmp_path / "stop", tmp_path / "cache"
    stop.touch()
    command = sft_command(model_folder, numbers, output, *STEPS, f"--strategy={strategy}")
    env = {"LLM_STOP_FILE": str(stop), "LLM_UNFINISHED_FILE": str(tmp_path / "unfinished")}
    said = torchrun(command, 2, cache, **env)
    assert "told to stop: saved after step 1 of 4" in said
    assert os.path.exists(env["LLM_UNFINISHED_FILE"]) and list(losses(output)) == [1]
    stop.unlink()
    if strategy == "zero3":  # its shards belong to a number of processes
        said = torchrun(command, 1, cache, STATUS="1")
        assert "was made by 2 processes, now there are 1" in said
        assert 'sft.py", line' not in said, "torchrun has a traceback of its own, we have none"
        said = torchrun(command, 2, cache)
    else:
        said = torchrun(command, 1, cache)
    assert "going on after step 1" in said
    check_same(output, alone)
    assert_sharded(output, strategy)


def test_a_rank_that_dies_ends_the_others(
    model_folder: Path, numbers: Path, tmp_path: Path
) -> None:
    """A mistake is said once, not by each rank, and nobody waits for anybody."""
    options = ["--strategy=ddp", "--target-modules=nothing", "--batch-size=3"]
    command = sft_command(model_folder, numbers, tmp_path / "out", *options)
    said = torchrun(command, 2, tmp_path / "cache", STATUS="1")
    assert said.count("--target-modules 'nothing' is no linear layer") == 1
    assert "--global-batch 8 can't be shared" in said and not (tmp_path / "out").exists()
    assert RECIPES.exists()


def test_a_full_disk_is_said_once(model_folder: Path, numbers: Path, tmp_path: Path) -> None:
    command = sft_command(model_folder, numbers, tmp_path / "out", *STEPS, "--strategy=ddp")
    said = torchrun(command, 2, tmp_path / "cache", STATUS="1", FILE_BYTES="20000")
    assert said.count("sft.py: cannot write") == 1, said
    assert 'sft.py", line' not in said, "torchrun has a traceback of its own, we have none"
