"""Counts, rates, MFU, and when a loss is lost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_recipes.memory import ModelShape
from llm_recipes.tiny_models import ARCHITECTURES, Shape, model_config
from llm_recipes.training_numbers import LossGuard, ModelWork, run_metrics, step_row, work_of


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_work_of_a_model_is_that_of_the_memory_model(family: Any) -> None:
    config = model_config(family, Shape(64, 128, 2, 4, None, 300, 128))
    model = AutoModelForCausalLM.from_config(config)
    shape = ModelShape.from_config(config.to_dict())
    work = work_of(model)
    assert work.trained == shape.matmul_parameters and work.frozen == 0
    assert work.attention_width == 2 * 64


def test_frozen_weights_and_adapters_count_apart() -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_config(model_config("llama", Shape(64, 128, 2, 4)))
    whole = work_of(model)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    work = work_of(tuned)
    assert work.frozen == whole.trained and work.trained == 2 * (64 * 4 + 4 * 64)


def test_the_formula() -> None:
    work = ModelWork(trained=10, frozen=100, attention_width=8)
    # Two sequences of 3 and 5 tokens: s = (9 + 25) / 8.
    assert work.flops(8, 34, 4) == 6 * 10 * 8 + 4 * 100 * 8 + 6 * 8 * (34 / 8) * 8
    row = step_row({"tokens": 8, "loss_tokens": 4, "squares": 34}, 2.0, work, 4, 100.0)
    assert row["tokens_per_s"] == 4 and row["tokens_per_s_per_process"] == 1
    assert row["loss_tokens_per_s"] == 2
    assert row["mfu"] == pytest.approx(work.flops(8, 34, 4) / 2 / 4 / 100, rel=1e-3)
    sums = {"tokens": 8, "loss_tokens": 4, "squares": 34}
    assert step_row(sums, 2.0, work, 4, None)["mfu"] is None


def test_the_head_counts_where_something_is_learned() -> None:
    model = AutoModelForCausalLM.from_config(model_config("llama", Shape(64, 128, 2, 4, None, 300)))
    work = work_of(model)
    assert work.head == 300 * 64 and work.head_trained
    assert work.flops(8, 0, 8) - work.flops(8, 0, 5) == 6 * 300 * 64 * 3


def test_a_run_is_the_median_of_its_later_steps() -> None:
    rows = [
        {"step": s, "loss": 9.0 - s, "step_s": t, "tokens": 10, "loss_tokens": 5, "tokens_per_s": t}
        for s, t in ((1, 99.0), (2, 50.0), (3, 1.0), (4, 3.0), (5, 2.0))
    ]
    metrics = run_metrics([*rows, {"step": 5, "held_out_loss": 4.5}])
    assert metrics["step_s"] == 2.0 and metrics["tokens"] == 50 and metrics["steps"] == 5
    assert metrics["first_loss"] == 8.0 and metrics["held_out_loss"] == 4.5
    assert run_metrics([]) == {}


def test_a_loss_that_is_no_number() -> None:
    guard = LossGuard()
    assert guard.fault(2.0, 1.0, False) is None
    assert "nan" in str(guard.fault(math.nan, 1.0, False))
    assert "inf" in str(LossGuard().fault(2.0, math.inf, False))
    assert LossGuard().fault(2.0, math.inf, True) is None, "fp16's scaler left the step out"
    assert LossGuard().fault(2.0, None, False) is None


def test_a_loss_that_explodes_and_one_that_only_jumps() -> None:
    guard = LossGuard()
    for _ in range(10):
        assert guard.fault(1.0, 1.0, False) is None
    for _ in range(4):
        assert guard.fault(9.0, 1.0, False) is None
        assert guard.high_steps
    assert guard.fault(1.1, 1.0, False) is None and not guard.high_steps
    said = [guard.fault(9.0, 1.0, False) for _ in range(5)]
    assert said[:4] == [None] * 4 and "about 1 and is now 9" in str(said[4])


def test_linear_layers_without_gradient_are_frozen() -> None:
    model = AutoModelForCausalLM.from_config(model_config("llama", Shape(64, 128, 1, 4)))
    model.requires_grad_(False)
    assert work_of(model).trained == 0
    assert isinstance(model.lm_head, torch.nn.Linear)
