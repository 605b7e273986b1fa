"""Load a model for fine-tuning: the right precision, quantized or not, with its adapter's settings.

    from llm_recipes.sft_model import adapter_settings, load_for_training, meta_model

Precision: weights that are trained are fp32 (or fp32 copies that the strategy shards); those that
stay as they are have the computing precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_recipes.device import DTYPES
from llm_recipes.model_folder import ModelFolder
from llm_recipes.models import import_architecture, loading


def meta_model(folder: Path, trust_remote_code: bool) -> Any:
    """The model without weights, to see its modules before anything is loaded.

    Raises:
        LLMError: If the files do not describe a model this library knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading(folder):
        import_architecture(folder, trust_remote_code)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The model's tokenizer; the end token pads where it has no token for that.

    Raises:
        LLMError: If its files can't be read.
    """
    from transformers import AutoTokenizer

    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weights_dtype(method: str, compute_dtype: str, pure_bf16: bool, strategy: str) -> torch.dtype:
    """The precision in which weights are loaded.

    DeepSpeed makes the fp32 copies of trained weights itself.
    """
    if pure_bf16:
        return torch.bfloat16
    if method == "full" and not strategy.startswith("zero"):
        return torch.float32
    return DTYPES[compute_dtype]


def load_for_training(
    folder: ModelFolder,
    dtype: torch.dtype,
    attention: str,
    quantized: bool,
    device: torch.device,
    trust_remote_code: bool,
) -> Any:
    """The model, on the CPU or where the strategy puts it; 4-bit weights on their device.

    Args:
        folder: Its files.
        dtype: Of the weights; of the computation if they are quantized.
        attention: transformers' name of the attention.
        quantized: Load matrices as 4-bit NormalFloat with double quantization (QLoRA).
        device: Where quantized weights go.
        trust_remote_code: Run Python code that the model brings along.

    Raises:
        LLMError: If the files do not make a model this library knows.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {}
    if quantized:
        # Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3.
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": device}
    with loading(folder.path):
        model = AutoModelForCausalLM.from_pretrained(
            folder.path,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            weights_only=True,
            **options,
        )
    model.config.use_cache = False
    return model


def adapter_settings(
    rank: int, alpha: float | None, dropout: float, targets: Sequence[str]
) -> Any:
    """PEFT's settings of a LoRA adapter; alpha None: twice the rank."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def train_in(model: Any, dtype: torch.dtype) -> None:
    """Give trained weights this precision.

    TRL makes adapters on quantized models bf16, and PEFT those on bf16 models fp32.
    """
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype != dtype and weight.numel():
            weight.data = weight.data.to(dtype)
