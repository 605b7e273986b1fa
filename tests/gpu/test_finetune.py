"""Fine-tuning on a GPU: the variable-length kernel, precisions, sft.py itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "recipes"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
LENGTHS = (7, 130, 7, 64)


def small_model(family: str, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    from llm_recipes.attention import VARLEN, register_varlen
    from llm_recipes.tiny_models import Shape, model_config

    torch.manual_seed(0)
    config = model_config(family, Shape(256, 512, 2, 4, None, 1000, 512))  # type: ignore[arg-type]
    for name, value in changes.items():
        setattr(config, name, value)
    register_varlen()
    return AutoModelForCausalLM.from_config(config, attn_implementation=VARLEN)


def packed(seed: int = 0) -> dict[str, Any]:
    from llm_recipes.training_batches import Batches

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 1000, (sum(LENGTHS),), generator=generator).tolist()
    batch = Batches(True, 0)([{"input_ids": ids, "labels": ids, "seq_lengths": list(LENGTHS)}])
    for name in ("counts", "labels"):
        batch.pop(name)
    return batch


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt_neox"])
def test_the_kernel_computes_what_the_cpu_computes(family: str, window: int | None) -> None:
    if window and family != "mistral":
        pytest.skip("no sliding window in this family")
    model = small_model(family, **({"sliding_window": window} if window else {}))
    expected = model(**packed(), use_cache=False).logits
    found = model.cuda().to(torch.bfloat16)(**on_gpu(packed()), use_cache=False).logits.cpu()
    error = (found.float() - expected).norm() / expected.norm()
    assert float(error) < 0.03


@torch.no_grad()
def test_no_sequence_sees_another() -> None:
    model = small_model("llama").cuda().to(torch.bfloat16)
    batch, other = packed(), packed()
    other["input_ids"][0, : LENGTHS[0]] = 5
    one, two = (model(**on_gpu(b), use_cache=False).logits[0, LENGTHS[0] :] for b in (batch, other))
    assert torch.equal(one, two)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with random weights, and sums as instructions."""
    folder = tmp_path_factory.mktemp("tiny")
    command = [sys.executable, str(HOME / "recipes/data/tiny.py"), f"--output={folder / 'model'}"]
    run([*command, "--steps=0", "--vocab-size=1024"])
    rows = [
        {"instruction": f"What is {a} plus {b}?", "response": str(a + b)}
        for a in range(16)
        for b in range(16)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "model", folder / "sums.jsonl"


def run(command: list[str]) -> str:
    env = {**os.environ, "PYTHONPATH": str(HOME / "recipes"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--method=lora",),
        ("--method=qlora",),
        ("--method=full",),
        ("--method=full", "--pure-bf16"),
        ("--method=full", "--dtype=fp16"),
        ("--method=full", "--checkpointing=true", "--packing"),
        ("--method=lora", "--liger=off", "--attention=sdpa"),
        ("--method=full", "--strategy=fsdp"),
    ],
    ids=" ".join,
)
def test_sft_learns_on_a_gpu(
    tiny: tuple[Path, Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    model, data = tiny
    script = [str(HOME / "recipes/finetune/sft.py"), f"--model={model}", f"--data={data}"]
    script += [f"--output={tmp_path / 'out'}", "--max-steps=20", "--learning-rate=2e-3", *options]
    sharded = "--strategy=fsdp" in options
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"] if sharded else []
    run([sys.executable, *start, *script])
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    metrics = record["metrics"]
    assert metrics["last_loss"] < 0.8 * metrics["first_loss"]
    assert metrics["peak_gpu_bytes"] > 0 and metrics["mfu"] is not None
