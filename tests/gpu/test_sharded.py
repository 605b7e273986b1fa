"""sharded.py on GPUs: the answers of the CPU; two processes through NCCL where there are two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairscale")

TESTS = Path(__file__).resolve().parents[1]
RECIPES = TESTS.parent / "recipes"
sys.path[:0] = [str(RECIPES), str(RECIPES / "inference"), str(TESTS / "recipes")]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
TEXTS = ["The import statement", "A class", "Lists may be constructed in several ways", "x"]


def answers(folder: Path, output: Path, degree: int, device: str, *options: str) -> list[str]:
    """What so many processes answer; with torchrun, as a user starts them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={degree}"]
    script = str(RECIPES / "inference" / "sharded.py")
    command = [sys.executable, *launcher, script, f"--model={folder}", f"--device={device}"]
    command += [f"--prompt={text}" for text in TEXTS]
    command += [f"--output={output}", "--max-new-tokens=40", "--dtype=fp32", *options]
    env = {**os.environ, "PYTHONPATH": str(RECIPES), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["completion"] for line in output.read_text().splitlines()]


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_gpu_answers_as_the_cpu_does(tmp_path: Path, temperature: str) -> None:
    from meta_checkpoints import LLAMA_2, make_checkpoint

    folder = make_checkpoint(tmp_path / "llama", LLAMA_2, 1)
    option = f"--temperature={temperature}"
    cpu = answers(folder, tmp_path / "cpu.jsonl", 1, "cpu", option)
    assert answers(folder, tmp_path / "gpu.jsonl", 1, "cuda", option) == cpu
    record = json.loads((tmp_path / "gpu.run.json").read_text())
    assert record["metrics"]["peak_gpu_bytes"] > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees one GPU here")
def test_two_gpus_answer_as_the_cpu_does(tmp_path: Path) -> None:
    from meta_checkpoints import LLAMA_3, make_checkpoint

    folder = make_checkpoint(tmp_path / "llama", LLAMA_3, 2)
    cpu = answers(folder, tmp_path / "cpu.jsonl", 2, "cpu")
    assert answers(folder, tmp_path / "gpu.jsonl", 2, "cuda") == cpu
    record = json.loads((tmp_path / "gpu.run.json").read_text())
    assert record["model"]["model_parallel"] == 2
