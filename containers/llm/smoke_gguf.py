"""Writes the smallest Llama that llama.cpp loads: random weights, a byte vocabulary, a few KiB."""

from pathlib import Path

import gguf
import numpy as np

WIDTH, FEED_FORWARD, HEADS, LAYERS, CONTEXT = 64, 128, 2, 1, 64


def write_tiny_gguf(path: Path) -> None:
    """Write the model. Names and shapes are those of llama.cpp's architecture `llama`."""
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    types = [gguf.TokenType.UNKNOWN] + 2 * [gguf.TokenType.CONTROL] + 256 * [gguf.TokenType.BYTE]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    noise = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> None:
        values = np.ones(shape) if "norm" in name else noise.standard_normal(shape) * 0.1
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    weight("token_embd", len(tokens), WIDTH)
    weight("output_norm", WIDTH)
    weight("output", len(tokens), WIDTH)
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weight(f"blk.{layer}.{part}", WIDTH, WIDTH)
        weight(f"blk.{layer}.attn_norm", WIDTH)
        weight(f"blk.{layer}.ffn_norm", WIDTH)
        weight(f"blk.{layer}.ffn_gate", FEED_FORWARD, WIDTH)
        weight(f"blk.{layer}.ffn_up", FEED_FORWARD, WIDTH)
        weight(f"blk.{layer}.ffn_down", WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
