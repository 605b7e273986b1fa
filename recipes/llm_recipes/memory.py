"""The memory model: what a model's shape says about bytes and operations before anything runs.

    python recipes/llm_recipes/memory.py models/tiny/config.json

Standard library only and Python 3.9, because the planner on the host reads it too. Counts are exact
for the families below (Llama, Mistral, Qwen2, Falcon, GPT-NeoX).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

FAMILIES = ("llama", "mistral", "qwen2", "falcon", "gpt_neox")
LLAMA_LIKE = ("llama", "mistral", "qwen2")
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


class Matrix(NamedTuple):
    """A linear map of a layer: its module's name in transformers, inputs, and outputs."""

    name: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Weights without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer.

    family: config.json's model_type. kv_heads: key and value heads that the cache holds. head_size:
    values a head. matrices: a layer's linear maps. layer_others: weights of its biases and norms.
    norms: how many norms a layer has. final_norm: the last norm's weights. tied: the output head is
    the input embedding. alibi: scores are biased by distance, as in Falcon RW.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    matrices: tuple[Matrix, ...]
    layer_others: int
    norms: int
    final_norm: int
    tied: bool
    alibi: bool = False

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> ModelShape:
        """Read a config.json's content.

        Raises:
            ValueError: For a family that isn't known here, or a configuration that lacks sizes.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise ValueError(f"model_type {family!r} is not known to the memory model ({known})")
        needed = NEEDED if family == "falcon" else (*NEEDED, "intermediate_size")
        faults = [key for key in needed if not _is_size(config.get(key))]
        if faults:
            raise ValueError(f"config.json has no valid {', '.join(faults)}")
        if family in LLAMA_LIKE:
            return _llama_like(config)
        return _falcon(config) if family == "falcon" else _gpt_neox(config)

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer's matrices."""
        return sum(matrix.weights for matrix in self.matrices)

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights; a tied output head counts once."""
        embeddings = self.head_weights * (1 if self.tied else 2)
        return (
            embeddings + self.layers * (self.layer_matrices + self.layer_others) + self.final_norm
        )

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: matrices and output head, no embedding."""
        return self.layers * self.layer_matrices + self.head_weights

    def weight_bytes(self, dtype_bytes: float) -> int:
        """Bytes of all weights; dtype_bytes: 4 for fp32, 2 for bf16, bits / 8 if quantized."""
        return round(self.parameters * dtype_bytes)

    def kv_bytes_per_token(self, dtype_bytes: float) -> int:
        """Bytes of keys and values that the cache holds for each token of each sequence."""
        return round(2 * self.layers * self.kv_heads * self.head_size * dtype_bytes)

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations of a forward pass for one token that sees `context` tokens.

        2 a matmul weight, and 4 a layer, head, value of a head and token seen: scores and weighted
        sum (Kaplan et al. 2020, arXiv:2001.08361, table 1; without embeddings).
        """
        return 2 * self.matmul_parameters + 4 * self.layers * self.heads * self.head_size * context


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _llama_like(config: Mapping[str, Any]) -> ModelShape:
    family, hidden, heads = (
        config[k] for k in ("model_type", "hidden_size", "num_attention_heads")
    )
    inner = config["intermediate_size"]
    # Absent in Llama 1 and 2, and in Mistral a default of its own: transformers' MistralConfig.
    kv_heads = config.get("num_key_value_heads") or (8 if family == "mistral" else heads)
    head_size = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_size, kv_heads * head_size
    others = 2 * hidden  # two RMS norms
    if family == "qwen2" or (family == "llama" and config.get("attention_bias")):
        others += queries + 2 * keys
    if family == "llama" and config.get("attention_bias"):
        others += hidden
    if family == "llama" and config.get("mlp_bias"):
        others += 2 * inner + hidden
    matrices = (
        Matrix("q_proj", hidden, queries),
        Matrix("k_proj", hidden, keys),
        Matrix("v_proj", hidden, keys),
        Matrix("o_proj", queries, hidden),
        Matrix("gate_proj", hidden, inner),
        Matrix("up_proj", hidden, inner),
        Matrix("down_proj", inner, hidden),
    )
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(
        *_sizes(config),
        kv_heads=kv_heads,
        head_size=head_size,
        matrices=matrices,
        layer_others=others,
        norms=2,
        final_norm=hidden,
        tied=tied,
    )


def _falcon(config: Mapping[str, Any]) -> ModelShape:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    inner = config.get("ffn_hidden_size") or 4 * hidden
    head_size = hidden // heads
    new = bool(config.get("new_decoder_architecture", False))
    if new:
        kv_heads = config.get("num_kv_heads") or heads
    else:
        kv_heads = 1 if config.get("multi_query", True) else heads
    fused = hidden + 2 * kv_heads * head_size
    parallel = new or config.get("parallel_attn", True)
    norms = 1
    if new:
        norms = 2 if config.get("num_ln_in_parallel_attn") in (None, 2) else 1
    elif not parallel:
        norms = 2
    others = norms * 2 * hidden  # layer norms with bias
    if config.get("bias", False):
        others += fused + hidden + inner + hidden
    # transformers' cache holds Falcon 40B's keys and values once for every head.
    cached = heads if new else kv_heads
    return ModelShape(
        *_sizes(config),
        kv_heads=cached,
        head_size=head_size,
        matrices=_four_matrices(hidden, fused, inner),
        layer_others=others,
        norms=norms,
        final_norm=2 * hidden,
        tied=bool(config.get("tie_word_embeddings", True)),
        alibi=bool(config.get("alibi", False)),
    )


def _gpt_neox(config: Mapping[str, Any]) -> ModelShape:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    inner = config["intermediate_size"]
    others = 2 * 2 * hidden + inner + hidden  # two layer norms; the MLP's biases
    if config.get("attention_bias", True):
        others += 3 * hidden + hidden
    return ModelShape(
        *_sizes(config),
        kv_heads=heads,
        head_size=hidden // heads,
        matrices=_four_matrices(hidden, 3 * hidden, inner),
        layer_others=others,
        norms=2,
        final_norm=2 * hidden,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _four_matrices(hidden: int, fused: int, inner: int) -> tuple[Matrix, ...]:
    """Falcon's and GPT-NeoX's: queries, keys and values come out of one matrix."""
    return (
        Matrix("query_key_value", hidden, fused),
        Matrix("dense", hidden, hidden),
        Matrix("dense_h_to_4h", hidden, inner),
        Matrix("dense_4h_to_h", inner, hidden),
    )


def _sizes(config: Mapping[str, Any]) -> tuple[str, int, int, int, int]:
    vocabulary, hidden, layers, heads = (config[key] for key in NEEDED)
    return config["model_type"], vocabulary, hidden, layers, heads


def main() -> int:
    """Print the numbers of the configuration files that are named on the command line."""
    if not sys.argv[1:]:
        print("usage: memory.py CONFIG_JSON [...]", file=sys.stderr)
        return 2
    for path in sys.argv[1:]:
        try:
            with open(path, encoding="utf-8") as file:
                shape = ModelShape.from_config(json.load(file))
        except (OSError, ValueError, AttributeError) as error:
            print(f"memory.py: cannot read {path}: {error}", file=sys.stderr)
            return 2
        print(f"{path}: {shape.family}, {shape.parameters / 1e6:.2f} million parameters")
        print(f"  weights in bf16: {shape.weight_bytes(2) / 1e9:.3f} GB")
        print(f"  keys and values in bf16: {shape.kv_bytes_per_token(2) / 1024:.1f} KiB a token")
        print(f"  operations a token at 1024: {shape.flops_per_token(1024) / 1e9:.3f} GFLOP")
    return 0


if __name__ == "__main__":
    sys.exit(main())
