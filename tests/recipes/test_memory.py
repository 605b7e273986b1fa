"""The memory model against the parameters and caches that transformers really makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from llm_recipes import memory
from llm_recipes.memory import ModelShape

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "intermediate_size": 96},
    "llama-grouped-tied": {
        "model_type": "llama",
        "intermediate_size": 96,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "llama-biased-wide-heads": {
        "model_type": "llama",
        "intermediate_size": 96,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 32,
    },
    "mistral": {"model_type": "mistral", "intermediate_size": 96, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "intermediate_size": 96, "num_key_value_heads": 2},
    "falcon-7b": {"model_type": "falcon"},
    "falcon-untied": {"model_type": "falcon", "tie_word_embeddings": False, "ffn_hidden_size": 96},
    "falcon-40b": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-180b": {
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    "falcon-rw-1b": {
        "model_type": "falcon",
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        "alibi": True,
    },
    "gpt_neox": {"model_type": "gpt_neox", "intermediate_size": 96},
    "gpt_neox-no-bias": {
        "model_type": "gpt_neox",
        "intermediate_size": 96,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
}
LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_the_real_model(name: str) -> None:
    config = AutoConfig.for_model(**SMALL, **CONFIGS[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    shape = ModelShape.from_config(config.to_dict())
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    matrices = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.matmul_parameters == sum(matrices)
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 5, dtype=torch.long), past_key_values=cache, use_cache=True)
    cached = sum(x.numel() for layer in cache.layers for x in (layer.keys, layer.values))
    assert shape.kv_bytes_per_token(1) == cached // 5


def test_what_hub_files_leave_out_is_the_familys_default() -> None:
    config = SMALL | CONFIGS["falcon-7b"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    real = sum(weight.numel() for weight in model.parameters())
    assert ModelShape.from_config(config).parameters == real


def test_llama_3_8b() -> None:
    shape = ModelShape.from_config(LLAMA_3_8B)
    assert shape.parameters == 8_030_261_248  # the model card's 8.03 B
    assert shape.weight_bytes(2) == 16_060_522_496
    assert shape.kv_bytes_per_token(2) == 128 * 1024
    assert shape.matmul_parameters == shape.parameters - 128256 * 4096 - 65 * 4096
    assert shape.flops_per_token(0) == 2 * shape.matmul_parameters
    assert shape.flops_per_token(1000) - shape.flops_per_token(0) == 4 * 32 * 4096 * 1000


def test_llama_2_70b_keys_and_values() -> None:
    seventy = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    shape = ModelShape.from_config(LLAMA_3_8B | seventy | {"num_attention_heads": 64})
    assert shape.kv_bytes_per_token(2) == 320 * 1024


def test_faults_name_all_that_is_missing() -> None:
    with pytest.raises(ValueError, match=r"'gpt2' is not known .*llama, mistral"):
        ModelShape.from_config({"model_type": "gpt2"})
    with pytest.raises(ValueError, match=r"hidden_size, num_hidden_layers, .*intermediate_size"):
        ModelShape.from_config({"model_type": "llama", "vocab_size": 10, "num_hidden_layers": -1})


def test_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    config = tmp_path / "config of mine.json"
    config.write_text('{"model_type": "gpt2"}')
    command = [sys.executable, "-I", "-S", memory.__file__, str(config)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "'gpt2' is not known" in result.stderr
    assert "Traceback" not in result.stderr
