"""Presets: their options exist, and their predicted memory is what the memory model says today."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from llm_recipes.known_shapes import KNOWN, known_shape
from llm_recipes.strategy import BATCH_SHARE, Choice, Request, choose

HOME = Path(__file__).resolve().parents[2]
SFT = HOME / "recipes/finetune/sft.py"
PRESETS = sorted((HOME / "recipes/finetune/presets").glob("*.yaml"))
# What torch reports as a device's whole memory, in GB (1e9 bytes), rounded down.
GPU_MEMORY = {"RTX 2080 Ti": 11.5, "V100 32 GB": 34.0, "A100 40 GB": 42.2}
HAVE_BF16 = {"A100 40 GB"}
SHAPES = {
    "EleutherAI/pythia-160m": "pythia-160m",
    "EleutherAI/pythia-410m": "pythia-410m",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-13b-hf": "llama-2-13b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b",
}
# Parameters as the published checkpoints count them.
PARAMETERS = {
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "falcon-7b": 6_921_720_704,
}

preset = pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def machine(path: Path) -> tuple[int, str]:
    found = re.search(r"(\d+) GPUs?, (.+)\.$", header(path).splitlines()[0])
    assert found, "the first line ends in the machine: '4 GPUs, A100 40 GB.'"
    return int(found[1]), found[2]


def plan(path: Path, **changes: Any) -> Choice:
    """What sft.py chooses for examples of the full length."""
    options = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    processes, gpu = machine(path)
    asked = Request(
        device_bytes=round(GPU_MEMORY[gpu] * 1e9),
        processes=processes,
        method=options["method"],
        strategy=options.get("strategy", "auto"),
        dtype=options["dtype"],
        pure_16bit=options.get("pure_bf16", False),
        row_tokens=options["max_length"],
        global_batch=options["global_batch"],
        batch_size=options["batch_size"],
        checkpointing=options["checkpointing"],
    )
    return choose(known_shape(SHAPES[options["model"]]), asked)


@pytest.mark.parametrize("name", KNOWN)
def test_published_sizes(name: str) -> None:
    assert known_shape(name).parameters == PARAMETERS[name]


def test_there_are_presets() -> None:
    assert len(PRESETS) == 9


@preset
def test_predicted_memory_is_up_to_date(path: Path) -> None:
    prediction = plan(path).prediction
    assert prediction is not None
    gpu = machine(path)[1]
    said = f"Predicted memory: {prediction.total / 1e9:.1f} GB of {GPU_MEMORY[gpu]} GB a GPU."
    assert said in header(path)


@preset
def test_fits_with_a_margin(path: Path) -> None:
    choice = plan(path)
    assert choice.prediction is not None
    assert choice.prediction.total <= BATCH_SHARE * GPU_MEMORY[machine(path)[1]] * 1e9
    assert not any("warning" in reason for reason in choice.reasons)


@preset
def test_precision_suits_the_gpu(path: Path) -> None:
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert options["dtype"] == ("bf16" if machine(path)[1] in HAVE_BF16 else "fp16")


@preset
def test_command_names_the_file_and_the_machine(path: Path) -> None:
    text = header(path)
    assert f"--config recipes/finetune/presets/{path.name} " in text
    processes, _ = machine(path)
    assert ("llm-run --torchrun recipes" in text) == (processes > 1)
    nodes = int((re.search(r"--nodes=(\d+)", text) or ["", "1"])[1])
    gpus = re.search(r"--gpus=(\d+)", text)
    each = re.search(r"--gpus-per-node=(\d+)", text)
    assert (int(gpus[1]) if gpus else nodes * int(each[1]) if each else 0) == processes


def test_why_llama_3_8b_is_trained_in_pure_bf16() -> None:
    (path,) = [path for path in PRESETS if "llama-3-8b-full" in path.name]
    with_fp32 = plan(path, pure_bf16=False, batch_size=1).prediction
    assert with_fp32 is not None
    assert f"would need {with_fp32.total / 1e9:.1f} GB even with one row" in header(path)
    assert with_fp32.total > 0.95 * GPU_MEMORY["A100 40 GB"] * 1e9


def sft_parameters() -> set[str]:
    specification = importlib.util.spec_from_file_location("sft_recipe", SFT)
    assert specification and specification.loader
    module: ModuleType = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return set(inspect.signature(module.finetune).parameters)


@preset
def test_options_are_those_of_the_recipe(path: Path) -> None:
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(options) <= sft_parameters()
    assert "data" not in options
    assert "output" not in options
