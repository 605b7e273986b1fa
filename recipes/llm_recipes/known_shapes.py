"""Published sizes of models that the presets are for, to predict memory without a download.

    from llm_recipes.known_shapes import known_shape
    known_shape("llama-3-8b").parameters

Standard library only and Python 3.9, as the memory model. Sources: each model's config.json.
"""

from __future__ import annotations

from typing import Any

from llm_recipes.memory import ModelShape

_LLAMA_2: dict[str, Any] = {"model_type": "llama", "vocab_size": 32000}
_PYTHIA: dict[str, Any] = {"model_type": "gpt_neox", "vocab_size": 50304}

KNOWN: dict[str, dict[str, Any]] = {
    "pythia-160m": {
        **_PYTHIA,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "pythia-410m": {
        **_PYTHIA,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "llama-2-7b": {
        **_LLAMA_2,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-2-13b": {
        **_LLAMA_2,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "falcon-7b": {
        "model_type": "falcon",
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
    },
}


def known_shape(name: str) -> ModelShape:
    """Sizes of a model by its short name.

    Raises:
        KeyError: For a name that isn't in KNOWN.
    """
    return ModelShape.from_config(KNOWN[name])
