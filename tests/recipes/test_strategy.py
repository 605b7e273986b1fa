"""Choices of strategy, batch and checkpointing, and what excludes each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.known_shapes import known_shape
from llm_recipes.strategy import (
    BATCH_SHARE,
    STATE_SHARE,
    Request,
    batch_faults,
    choose,
    compatibility_faults,
)

GB = 10**9
EIGHT = known_shape("llama-3-8b")
SMALL = known_shape("pythia-160m")


def ask(gigabytes: float, **more: Any) -> Request:
    return Request(device_bytes=round(gigabytes * GB), **more)


def faults_of(**more: Any) -> list[str]:
    return [fault.what for fault in compatibility_faults(ask(80, **more))]


def test_one_process_is_single() -> None:
    choice = choose(EIGHT, ask(42))
    assert choice.strategy == "single"
    assert choice.batch_size * choice.accumulation == 32
    assert "one process" in choice.reasons[0]
    assert "the largest power of two that fits" in choice.reasons[1]
    assert choice.reasons[2] == "checkpointing: off (it fits without)"
    given = choose(EIGHT, ask(42, batch_size=1, checkpointing=True)).reasons
    assert given[1].endswith("(asked for)") and given[2] == "checkpointing: on (asked for)"


def test_ddp_where_the_state_fits_else_fsdp() -> None:
    small = choose(SMALL, ask(42, method="full", processes=4))
    assert small.strategy == "ddp"
    large = choose(EIGHT, ask(80, method="full", processes=4))
    assert large.strategy == "fsdp"
    assert large.prediction is not None
    assert large.prediction.total <= STATE_SHARE * 80 * GB
    assert "unsharded it needs" in large.reasons[0]
    assert "72.0 GB of a device" in large.reasons[0]


def test_zero_only_if_asked_for() -> None:
    chosen = {choose(EIGHT, ask(n, method="full", processes=8)).strategy for n in (40, 80, 320)}
    assert chosen == {"fsdp", "ddp"}
    assert choose(EIGHT, ask(80, method="full", processes=8, strategy="zero3")).strategy == "zero3"


def test_the_largest_batch_that_fits() -> None:
    asked = ask(24, processes=2, global_batch=48, row_tokens=256)
    choice = choose(EIGHT, asked)
    assert choice.prediction is not None
    assert choice.batch_size & (choice.batch_size - 1) == 0
    assert choice.batch_size * 2 * choice.accumulation == 48
    assert choice.prediction.total <= BATCH_SHARE * asked.device_bytes
    doubled = choose(EIGHT, replace(asked, strategy="ddp", batch_size=2 * choice.batch_size))
    assert doubled.checkpointing is True  # it would not fit without
    roomy = choose(EIGHT, replace(asked, device_bytes=1000 * GB))
    assert (roomy.batch_size, roomy.accumulation) == (8, 3)  # 16 does not divide 24


def test_checkpointing_only_where_it_is_needed() -> None:
    assert choose(EIGHT, ask(80, row_tokens=1024)).checkpointing is False
    tight = choose(EIGHT, ask(24, row_tokens=4096))
    assert tight.checkpointing is True
    assert any("checkpointing: on (without," in reason for reason in tight.reasons)
    assert choose(EIGHT, ask(80, checkpointing=True)).checkpointing is True


def test_nothing_fits() -> None:
    with pytest.raises(LLMError) as caught:
        choose(EIGHT, ask(11, method="full", processes=2, row_tokens=2048))
    text = str(caught.value)
    assert "no choice needs less than 90% of 11.0 GB" in text
    for part in ("ddp, batch 1, checkpointing off: ", "fsdp, batch 1, checkpointing on: "):
        assert part in text
    for remedy in ("qlora", "more GPUs", "2048", "--pure-bf16"):
        assert remedy in text


def test_qlora_is_not_told_to_use_qlora() -> None:
    with pytest.raises(LLMError) as caught:
        choose(EIGHT, ask(4, method="qlora"))
    assert "qlora" not in caught.value.fix
    assert "shorter" in caught.value.fix


def test_where_nothing_is_left_to_choose_it_warns() -> None:
    asked = ask(11, strategy="single", batch_size=1, checkpointing=True)
    assert choose(EIGHT, asked).reasons[-1].startswith("warning: ")


@pytest.mark.parametrize(
    ("more", "near"),
    [
        ({"processes": 3}, "--global-batch 30 or 33"),
        ({"processes": 2, "batch_size": 5}, "--global-batch 30 or 40"),
        ({"processes": 64}, "--global-batch 64"),
    ],
)
def test_global_batches_that_work(more: dict[str, Any], near: str) -> None:
    (fault,) = batch_faults(ask(80, **more))
    assert "--global-batch 32 can't be shared" in fault.what
    assert fault.fix == f"use {near}"


def test_sizes_below_one() -> None:
    faults = batch_faults(ask(80, global_batch=0, batch_size=-1))
    assert [fault.what for fault in faults] == [
        "--global-batch 0 is not possible",
        "--batch-size -1 is not possible",
    ]


@pytest.mark.parametrize("strategy", ["fsdp", "zero2", "zero3"])
def test_quantized_weights_are_not_sharded(strategy: str) -> None:
    what = f"--method qlora does not go with --strategy {strategy}"
    assert faults_of(method="qlora", strategy=strategy, processes=2) == [what]
    assert faults_of(method="lora", strategy=strategy) == []  # a single process may


def test_auto_never_shards_quantized_weights() -> None:
    choice = choose(EIGHT, ask(32, method="qlora", processes=4))
    assert choice.strategy == "ddp"


def test_single_with_several_processes() -> None:
    assert faults_of(strategy="single", processes=2) == [
        "--strategy single does not use 2 processes"
    ]


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_pure_16_bit_is_bf16(dtype: str) -> None:
    (what,) = faults_of(method="full", pure_16bit=True, dtype=dtype)
    assert what == f"--pure-bf16 does not go with --dtype {dtype}"
    assert faults_of(method="full", pure_16bit=True) == []


def test_deepspeed_keeps_master_weights() -> None:
    (what,) = faults_of(method="full", pure_16bit=True, strategy="zero3")
    assert what == "--pure-bf16 does not go with --strategy zero3"


def test_all_faults_together() -> None:
    asked = ask(8, liger=True, device="cpu", packing=True, strategy="single", processes=3)
    faults = compatibility_faults(asked, family="falcon")
    assert len(faults) == 3
    with pytest.raises(ExceptionGroup) as caught:
        choose(known_shape("falcon-7b"), asked)
    assert len(caught.value.exceptions) == 4  # and the global batch
    assert all(isinstance(fault, LLMError) and fault.fix for fault in caught.value.exceptions)


def test_packing_is_only_falcons_fault() -> None:
    assert compatibility_faults(ask(80, packing=True), "llama") == []
    assert compatibility_faults(ask(80, packing=True), None) == []


def test_a_family_nobody_knows() -> None:
    choice = choose(None, ask(80, processes=2))
    assert (choice.strategy, choice.batch_size, choice.accumulation) == ("ddp", 1, 16)
    assert choice.checkpointing is True
    assert choice.prediction is None
