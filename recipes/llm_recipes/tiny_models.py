"""Configurations of small models of the families that the recipes are tested with.

    from llm_recipes.tiny_models import Shape, model_config
    model = AutoModelForCausalLM.from_config(model_config("falcon", Shape()))

`recipes/data/tiny.py` trains them; tests use them with random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from llm_recipes.errors import LLMError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Architecture = Literal["llama", "mistral", "falcon", "gpt_neox", "qwen2"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
# Ids that the SentencePiece model and every configuration agree on; Llama's own, and a pad token.
UNK_ID, BOS_ID, EOS_ID, PAD_ID = 0, 1, 2, 3


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. The defaults are multiples of 256, as llama.cpp's K-quants want them.

    kv_heads None: as the family has it (Llama 2 7B and GPT-NeoX one for each head, Mistral and
    Qwen2 one for each two heads, Falcon a single one).
    """

    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    vocab_size: int = 4096
    context_length: int = 2048


def shape_faults(architecture: Architecture, shape: Shape) -> list[LLMError]:
    """Return everything that makes this shape impossible."""
    faults = []
    for name in ("hidden_size", "intermediate_size", "layers", "heads", "context_length"):
        if getattr(shape, name) < 1:
            faults.append(_fault(name, getattr(shape, name), "it must be at least 1"))
    if faults:
        return faults
    if shape.hidden_size % shape.heads:
        fix = f"choose a multiple of --heads {shape.heads}"
        faults.append(_fault("hidden_size", shape.hidden_size, "the heads can't share it", fix))
    elif shape.hidden_size // shape.heads % 8:
        # GPT-NeoX turns a quarter of each head, in pairs; 8 suits all families.
        why = f"a head would have {shape.hidden_size // shape.heads} values: no multiple of 8"
        faults.append(_fault("hidden_size", shape.hidden_size, why, "use fewer or wider heads"))
    if shape.kv_heads is None:
        return faults
    if shape.kv_heads < 1 or shape.heads % shape.kv_heads:
        why = f"it must divide --heads {shape.heads}"
        faults.append(_fault("kv_heads", shape.kv_heads, why))
    elif architecture in ("gpt_neox", "falcon") and shape.kv_heads != kv_heads(architecture, shape):
        why = f"{architecture} has {kv_heads(architecture, shape)} with --heads {shape.heads}"
        faults.append(_fault("kv_heads", shape.kv_heads, why, "leave it out"))
    return faults


def _fault(name: str, value: int, why: str, fix: str = "") -> LLMError:
    return LLMError(f"--{name.replace('_', '-')} {value} is not possible", why, fix)


def kv_heads(architecture: Architecture, shape: Shape) -> int:
    """Return the number of key and value heads, by default the family's."""
    if shape.kv_heads is not None and architecture not in ("gpt_neox", "falcon"):
        return shape.kv_heads
    if architecture in ("mistral", "qwen2"):
        return shape.heads // 2 if shape.heads % 2 == 0 else shape.heads
    return 1 if architecture == "falcon" else shape.heads


def model_config(architecture: Architecture, shape: Shape) -> PreTrainedConfig:
    """Return the configuration of a small model.

    Weights are drawn with a deviation of 1/sqrt(hidden size): with the usual 0.02 a layer this
    narrow adds so little that even a wrong attention mask hardly changes an untrained model.
    """
    from transformers import AutoConfig

    settings: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context_length,
        "initializer_range": round(shape.hidden_size**-0.5, 4),
        "tie_word_embeddings": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    if architecture == "falcon":
        # As Falcon 7B: one key and value head, attention and MLP side by side, rotary positions.
        settings |= {"ffn_hidden_size": shape.intermediate_size, "multi_query": True}
        settings |= {"parallel_attn": True, "new_decoder_architecture": False, "bias": False}
        settings |= {"alibi": False}
    elif architecture == "gpt_neox":
        settings |= {"intermediate_size": shape.intermediate_size}
    else:
        settings |= {"intermediate_size": shape.intermediate_size}
        settings |= {"num_key_value_heads": kv_heads(architecture, shape)}
    if architecture == "mistral":
        settings |= {"sliding_window": None}
    return AutoConfig.for_model(architecture, **settings)
