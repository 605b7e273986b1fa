"""What can be wrong with sft.py's options before a model is loaded, and what a resume may change.

    from llm_recipes.sft_settings import setting_faults, model_faults
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_recipes.attention import PACKABLE, varlen_fault
from llm_recipes.errors import LLMError

# Settings that a run may be continued with in another way: they change no step beyond rounding.
FREE_TO_CHANGE = frozenset(
    {"model", "data", "output", "overwrite", "plan", "trust_remote_code", "strategy", "device"}
    | {"batch_size", "checkpointing", "attention", "liger", "save_every", "keep", "stop_before"}
    | {"measure_peak", "save_dtype"}
)
DEFAULT_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}


def setting_faults(settings: Mapping[str, Any]) -> list[LLMError]:
    """Every option that is impossible by itself or beside another one.

    settings: the recipe's options by name. What excludes each other because of device and strategy
    is in strategy.py.
    """
    return _number_faults(settings) + _choice_faults(settings)


def _number_faults(settings: Mapping[str, Any]) -> list[LLMError]:
    faults = []
    for name, least in (
        ("lora_rank", 1),
        ("global_batch", 1),
        ("max_length", 2),
        ("evaluate_every", 0),
        ("patience", 0),
        ("save_every", 0),
        ("keep", 0),
        ("stop_before", 0),
        ("seed", 0),
    ):
        if settings[name] < least:
            faults.append(_fault(name, settings[name], f"at least {least}"))
    for name in ("max_steps", "batch_size"):
        value = settings[name]
        if isinstance(value, int) and value < 1:
            faults.append(_fault(name, value, "at least 1, or leave it out"))
    for name in ("epochs", "max_grad_norm", "learning_rate", "lora_alpha"):
        value = settings[name]
        positive = value is None or value > 0 or (name == "max_grad_norm" and value == 0)
        if not positive:
            faults.append(_fault(name, value, "above 0"))
    for name, below in (("lora_dropout", 1.0), ("held_out", 1.0), ("warmup", 1.0)):
        if not 0 <= settings[name] < below:
            faults.append(_fault(name, settings[name], "a share, from 0 to below 1"))
    if settings["weight_decay"] < 0:
        faults.append(_fault("weight_decay", settings["weight_decay"], "0 or more"))
    return faults


def _choice_faults(settings: Mapping[str, Any]) -> list[LLMError]:
    faults = []
    if settings["device"] not in ("auto", "cpu", "cuda"):
        what = f"--device {settings['device']} is not possible"
        fix = "CUDA_VISIBLE_DEVICES chooses a GPU"
        faults.append(LLMError(what, "it is auto, cpu or cuda", fix))
    if settings["method"] == "full" and settings["target_modules"]:
        what, why = "--target-modules does not go with --method full", "it trains all weights"
        faults.append(LLMError(what, why, "leave one of them out"))
    if settings["pure_bf16"] and settings["method"] == "qlora":
        what = "--pure-bf16 does not go with --method qlora"
        why = "its trained weights are fp32, its others 4-bit"
        faults.append(LLMError(what, why, "leave one of them out"))
    if settings["patience"] and not settings["evaluate_every"]:
        what, why = "--patience needs --evaluate-every", "it looks at the held-out loss"
        faults.append(LLMError(what, why, "such as --evaluate-every 50"))
    if settings["evaluate_every"] and not settings["held_out"]:
        what, why = "--evaluate-every needs --held-out", "there are no held-out examples"
        faults.append(LLMError(what, why, "such as --held-out 0.05"))
    return faults


def model_faults(
    settings: Mapping[str, Any], config: Mapping[str, Any], device_type: str
) -> list[LLMError]:
    """Options that don't go with the model or the device.

    Args:
        settings: The recipe's options by name.
        config: The model's config.json.
        device_type: cpu or cuda.
    """
    faults = []
    family = str(config.get("model_type"))
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    context = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    if context is not None and settings["max_length"] > context:
        what = f"--max-length {settings['max_length']} is longer than the model's context"
        faults.append(LLMError(what, f"it sees {context} tokens", f"--max-length {context}"))
    if settings["packing"] and family not in PACKABLE:
        faults.append(
            LLMError(
                f"--packing does not work with {family} models",
                "their packed sequences would see each other: the model learns from the wrong text",
                "leave it out: batches are padded",
            )
        )
    if settings["attention"] == "varlen" and family not in PACKABLE:
        faults.append(varlen_fault(family))
    if device_type == "cpu" and settings["dtype"] == "fp16":
        what, why = "--dtype fp16 does not train on a CPU", "its loss scaling is for GPUs"
        faults.append(LLMError(what, why, "--dtype fp32, or bf16"))
    return faults


def _fault(name: str, value: object, expected: str) -> LLMError:
    return LLMError(f"--{name.replace('_', '-')} {value} is not possible", f"it must be {expected}")
