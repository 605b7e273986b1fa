"""Evaluations on a GPU: the CPU's numbers in fp32, batches that fit, torchrun, --shard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "recipes"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
TASKS = "llm_arithmetic_1d,llm_pydocs_choice,llm_pydocs"
LIMIT = 40
LEFT = 3 << 30  # bytes of GPU memory that the tests of full memory leave free
ROWS = 64


def run(command: list[str]) -> str:
    env = {**os.environ, "PYTHONPATH": str(HOME / "recipes"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned a little: its answers differ from question to question."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    command = [sys.executable, str(HOME / "recipes/data/tiny.py"), f"--output={folder}"]
    sizes = ["--hidden-size=128", "--intermediate-size=384", "--vocab-size=1024"]
    run([*command, *sizes, "--steps=100"])
    return folder


def harness(model: Path, output: Path, *options: str, start: tuple[str, ...] = ()) -> Any:
    """An evaluation by harness.py that takes no answers of another one, as read_run reads it."""
    from llm_recipes.evaluation.run import read_run

    script = str(HOME / "recipes/evaluate/harness.py")
    command = [sys.executable, *start, script, f"--model={model}", f"--output={output}"]
    command += [f"--tasks={TASKS}", f"--limit={LIMIT}", "--dtype=fp32", "--keep-answers=false"]
    run([*command, *options])
    return read_run(output)


@pytest.fixture(scope="module")
def on_cpu(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return harness(tiny, tmp_path_factory.mktemp("runs") / "cpu", "--device=cpu")


@pytest.mark.parametrize(
    "options, start",
    [
        (("--device=cuda",), ()),
        (("--shard",), ()),
        ((), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")),
    ],
    ids=["one GPU", "shard", "torchrun"],
)
def test_harness_finds_what_it_finds_on_a_cpu(
    tiny: Path, on_cpu: Any, tmp_path: Path, options: tuple[str, ...], start: tuple[str, ...]
) -> None:
    found = harness(tiny, tmp_path / "gpu", *options, start=start)
    assert found.record["host"]["device"] == torch.cuda.get_device_name(0)
    assert found.record["metrics"]["peak_gpu_bytes"] > 0
    assert found.tasks.keys() == on_cpu.tasks.keys() == set(TASKS.split(","))
    for name, expected in on_cpu.tasks.items():
        task = found.tasks[name]
        assert len(task.items) == LIMIT
        same = ("id", "doc", "target", "prompt")
        for item, other in zip(task.items, expected.items, strict=True):
            assert [getattr(item, n) for n in same] == [getattr(other, n) for n in same]
            for metric, score in other.scores.items():
                # The sums of log-likelihoods round otherwise; what is right does not turn by it.
                close = isinstance(score, tuple)
                wanted = pytest.approx(score, rel=1e-4) if close else score
                assert item.scores[metric] == wanted
    assert log_likelihoods(found) == pytest.approx(log_likelihoods(on_cpu), rel=1e-4, abs=1e-3)


def log_likelihoods(run: Any) -> list[float]:
    """Of every choice of the multiple-choice task, as lm-eval logged them."""
    lines = (run.folder / "samples" / "llm_pydocs_choice.jsonl").read_text().splitlines()
    found = [float(answer[0][0]) for line in lines for answer in json.loads(line)["resps"]]
    assert len(found) == 4 * LIMIT
    return found


@pytest.fixture(scope="module")
def wide(tiny: Path) -> tuple[Any, Any, list[Any]]:
    """A model with many logits, its sizes, and requests: a batch of ROWS takes over LEFT."""
    from lm_eval.api.instance import Instance
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from llm_recipes.evaluation.harness_transformers import harness_lm
    from llm_recipes.models import measure_size

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.2,
    )
    loaded = SimpleNamespace(
        model=LlamaForCausalLM(config).cuda().eval().requires_grad_(False),
        tokenizer=AutoTokenizer.from_pretrained(tiny),
    )
    lm = harness_lm(loaded, None, 256, torch.float32)  # type: ignore[arg-type]
    requests = [
        Instance(
            request_type="loglikelihood",
            doc={},
            arguments=(f"{number} " + "of the documentation " * 60, "and more"),
            idx=0,
            metadata=("task", number, 1),
        )
        for number in range(ROWS)
    ]
    return lm, measure_size(loaded.model), requests


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Only LEFT of the GPU's memory is free."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(0, free - LEFT), dtype=torch.uint8, device="cuda")
    yield
    del taken
    torch.cuda.empty_cache()


@pytest.mark.parametrize("batch_size", ["auto", ROWS])
def test_batches_fit_into_little_memory(
    wide: tuple[Any, Any, list[Any]],
    batch_size: Any,
    little_memory: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llm_recipes.evaluation.harness_transformers import answer_in_batches

    lm, size, requests = wide
    expected = answer_in_batches(lm, size, 1, "loglikelihood", requests)
    capsys.readouterr()
    found = answer_in_batches(lm, size, batch_size, "loglikelihood", requests)
    shown = capsys.readouterr().err
    if batch_size == "auto":  # reckoned, more than one row, and no try failed
        assert lm.batch_size_per_gpu > 1 and "out of memory" not in shown
    else:
        assert f"out of memory with {ROWS} rows a batch: going on with {ROWS // 2}" in shown
        assert 1 < lm.batch_size_per_gpu < ROWS
    assert [right for _, right in found] == [right for _, right in expected]
    numbers = [[number for number, _ in answers] for answers in (found, expected)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)


def test_questions_are_answered_as_on_a_cpu(tiny: Path, tmp_path: Path) -> None:
    from llm_recipes.evaluation.run import read_run

    rows = [
        {"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(2, 8) for b in range(8)
    ]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for device in ("cpu", "cuda"):
        output = tmp_path / device
        command = [sys.executable, str(HOME / "recipes/evaluate/qa.py"), f"--model={tiny}"]
        command += [f"--data={data}", f"--output={output}", f"--device={device}"]
        run([*command, "--dtype=fp32", "--max-new-tokens=12", "--prompt-style=raw"])
        (task,) = read_run(output).tasks.values()
        assert all(item.shown is not None for item in task.items)
        found[device] = [(item.id, item.scores, item.shown) for item in task.items]
    assert len({shown.answer for _, _, shown in found["cpu"] if shown}) > 1
    assert found["cuda"] == found["cpu"] and len(found["cpu"]) == len(rows)
