"""Fine-tuning makes a difference: a tiny model learns what it could not do, by LoRA and in full.

Also QLoRA on a CPU, and one step of LoRA on every family of models.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES, recipe_environment
from learning_task import bounds, correct, load_recipe, write_alpaca

from llm_recipes import stop_signals, tiny_corpus
from llm_recipes.digits_task import (
    INSTRUCTION,
    Task,
    answer,
    digits_in,
    draw_task,
    pretraining_texts,
    without_order,
)
from llm_recipes.metrics_log import read_rows
from llm_recipes.tiny_models import ARCHITECTURES, Architecture

STEPS_OF_BASE = 100
SMALL = {"hidden_size": 128, "intermediate_size": 384, "vocab_size": 1024}
SEEDS = (0, 1, 2)
BASE_AT_MOST, TUNED_AT_LEAST = 0.05, 0.5
BATCH = 24  # 100 steps see each of the 2,400 items once
RATES = {"lora": 3e-3, "full": 2e-3}
TARGETS: dict[Architecture, set[str]] = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "mistral": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "falcon": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
}
LAYERS = 2
Tune = Callable[..., Path]


@contextlib.contextmanager
def process_as_before() -> Iterator[None]:
    """Recipes own their process: give back what they set for it."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    exact = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact)
        torch.set_flush_denormal(False)
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def natural_texts() -> list[str]:
    return tiny_corpus.natural_documents()


@pytest.fixture(scope="module")
def make_tiny(natural_texts: list[str]) -> Callable[..., Path]:
    """tiny.py in this process; it reads the texts of Python's help() once."""
    recipe = load_recipe("data/tiny")

    def make(folder: Path, texts: int | None = None, **options: Any) -> Path:
        with process_as_before(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny_corpus, "natural_documents", lambda: natural_texts[:texts])
            recipe.make_tiny_model(folder, **{**SMALL, **options})
        return folder

    return make


@pytest.fixture(scope="module")
def base(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("base") / "tiny's; ü", steps=STEPS_OF_BASE)


@pytest.fixture(scope="module")
def pretrained_on(natural_texts: list[str]) -> set[str]:
    return {*natural_texts, *pretraining_texts(natural_texts, STEPS_OF_BASE)}


@pytest.fixture(scope="module")
def tasks(pretrained_on: set[str]) -> dict[int, Task]:
    seen = set().union(*map(digits_in, pretrained_on))
    return {seed: draw_task(seed, seen) for seed in SEEDS}


@pytest.fixture(scope="module")
def options(
    base: Path, tasks: dict[int, Task], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    data = write_alpaca(tasks[0].tuning, tmp_path_factory.mktemp("data") / "it's; digits ü.jsonl")
    return {
        "model": str(base),
        "data": str(data),
        "format": "alpaca",
        "held_out": 0.0,
        "global_batch": BATCH,
        "lora_rank": 32,
        "schedule": "constant",
        "max_length": 64,
        "save_every": 0,
        "device": "cpu",
    }


@pytest.fixture
def tune(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """sft.py: `tune(method="lora")` returns the output folder; as_user: in its own process."""
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("LLM_STOP_FILE", "LLM_DEADLINE", "LLM_UNFINISHED_FILE", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stop_signals, "_found", False)
    monkeypatch.setattr(stop_signals, "_terminated", False)
    recipe = load_recipe("finetune/sft")

    def run(name: str = "tuned", as_user: bool = False, **changes: Any) -> Path:
        output = tmp_path / name
        chosen = {**options, **changes}
        if as_user:
            run_as_user({**chosen, "output": output})
        else:
            with process_as_before():
                assert recipe.finetune(output=output, **chosen) == 0
        return output

    return run


def run_as_user(options: dict[str, Any]) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, str(RECIPES / "finetune" / "sft.py"), *words],
        env=recipe_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_rows(output / "metrics.jsonl") if "loss" in row]


# The task


def test_no_item_was_seen_before(pretrained_on: set[str], tasks: dict[int, Task]) -> None:
    seen: set[str] = set()
    for text in pretrained_on:
        assert INSTRUCTION not in text
        seen |= digits_in(text)
    assert "23" in seen  # "2 + 3 = 5" and "3 + 2 = 5"
    for task in tasks.values():
        tuned, evaluated = ({*map(without_order, s)} for s in (task.tuning, task.evaluation))
        asked = {*task.tuning, *task.evaluation}
        assert not tuned & evaluated
        assert not seen & (tuned | evaluated)
        assert not seen & {without_order(answer(item)) for item in asked}
        assert len(set(task.evaluation)) == len(task.evaluation) >= 1000
        assert len(task.tuning) == 2400
    first, second, third = (set(tasks[seed].evaluation) for seed in SEEDS)
    assert len(first & second) < 100 and len(second & third) < 100  # each seed has its own items


def test_the_task_is_what_it_says() -> None:
    assert answer("27981") == "50214"
    low, high = bounds(0, 1000)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 1000))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_base_can_not_do_it(base: Path, tasks: dict[int, Task], seed: int) -> None:
    items = tasks[seed].evaluation
    assert bounds(correct(base, None, items), len(items))[1] <= BASE_AT_MOST


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
def test_tuning_makes_it_do_it(
    base: Path,
    tasks: dict[int, Task],
    tune: Tune,
    tmp_path: Path,
    method: str,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    data = write_alpaca(tasks[seed].tuning, tmp_path / "digits.jsonl")
    how = {"method": method, "seed": seed, "learning_rate": RATES[method]}
    as_user = how["method"] == "lora" and seed == SEEDS[0]  # starting a process takes seconds
    output = tune(data=str(data), as_user=as_user, **how)
    items = tasks[seed].evaluation
    model, adapter = (base, output) if method == "lora" else (output, None)
    right = correct(model, adapter, items)
    record_property("accuracy", right / len(items))
    print(f"{method}, seed {seed}: {right} of {len(items)} right")
    assert bounds(right, len(items))[0] >= TUNED_AT_LEAST


# QLoRA


def test_qlora_learns_on_a_cpu(tune: Tune) -> None:
    few = {"max_steps": 6, "learning_rate": RATES["lora"]}
    quantized, exact = losses(tune("q", method="qlora", **few)), losses(tune("l", **few))
    print(f"qlora {quantized}, lora {exact}")
    assert quantized[-1] < 0.7 * quantized[0]
    # The same batch through the same weights, as an adapter begins at nothing.
    assert quantized[0] != exact[0]
    assert quantized[0] == pytest.approx(exact[0], rel=0.05)


# Families


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_step_on_each_family(
    make_tiny: Callable[..., Path], tune: Tune, tmp_path: Path, family: Architecture
) -> None:
    model = make_tiny(
        tmp_path / family, texts=400, architecture=family, steps=0, hidden_size=64, layers=LAYERS
    )
    output = tune(model=str(model), max_steps=1, learning_rate=1e-2)
    adapter = json.loads((output / "adapter_config.json").read_bytes())
    assert set(adapter["target_modules"]) == TARGETS[family]
    matrices = adapter_matrices(output)
    assert {name.split(".")[-3] for name in matrices} == TARGETS[family]
    assert len(matrices) == 2 * LAYERS * len(TARGETS[family])
    for name, matrix in matrices.items():
        assert matrix.abs().max() > 0, f"{name} was not trained"
    with_adapter, without = answers(model, output, tmp_path), answers(model, None, tmp_path)
    assert with_adapter != without


def adapter_matrices(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def answers(model: Path, adapter: Path | None, folder: Path) -> list[str]:
    """What generate.py answers to a few prompts."""
    output = folder / f"answers-{adapter is not None}.jsonl"
    prompts = ["What is 2 + 3?", "Say hello.", "Count to five."]
    generate = load_recipe("inference/generate").generate
    options = {"prompt": prompts, "output": output, "max_new_tokens": 8, "device": "cpu"}
    with process_as_before():
        assert generate(str(model), adapter=str(adapter) if adapter else None, **options) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(prompts)
    return [row["completion"] for row in rows]
