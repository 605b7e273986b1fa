"""Tiny Llamas of each generation in Meta's layout, and the same weights for transformers.

Written from the description of the formats alone: nothing here uses the code that the tests check.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import pydoc_data.topics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIM, LAYERS, HEADS = 64, 2, 8
PIECES = 512  # of the SentencePiece model
MERGED = 512  # ranks of the tiktoken file; 256 special tokens follow
Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Generation:
    """A generation of Llama. rows: its embeddings are split by rows and not by columns."""

    name: str
    params: Mapping[str, Any]
    kv_heads: int
    ffn: int
    rows: bool
    tied: bool = False
    rope_factor: float | None = None
    context: int = 131072

    @property
    def vocabulary(self) -> int:
        """Rows of the embeddings."""
        return MERGED + 256 if self.rows else PIECES

    @property
    def head_size(self) -> int:
        """Numbers a head."""
        return DIM // HEADS


_BASE = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "norm_eps": 1e-5}
_ROPE = {"rope_theta": 500000.0}
# int(8 * 64 / 3) = 170, rounded up to a multiple; with a multiplier of 1.3: 221.
LLAMA_1 = Generation(
    "llama-1", {**_BASE, "multiple_of": 32, "norm_eps": 1e-6, "vocab_size": -1}, HEADS, 192, False
)
LLAMA_2 = Generation(
    "llama-2",
    {**_BASE, "multiple_of": 32, "ffn_dim_multiplier": 1.3, "n_kv_heads": 4, "vocab_size": -1},
    4,
    224,
    False,
)
LLAMA_3 = Generation(
    "llama-3",
    {**_BASE, **_ROPE, "multiple_of": 64, "ffn_dim_multiplier": 1.3, "n_kv_heads": 4}
    | {"vocab_size": MERGED + 256},
    4,
    256,
    True,
)
LLAMA_3_1 = Generation(
    "llama-3.1", {**LLAMA_3.params, "use_scaled_rope": True}, 4, 256, True, False, 8.0
)
LLAMA_3_2 = Generation(
    "llama-3.2",
    {**LLAMA_3.params, "use_scaled_rope": True, "n_kv_heads": 2},
    2,
    256,
    True,
    True,
    32.0,
)
GENERATIONS = (LLAMA_1, LLAMA_2, LLAMA_3, LLAMA_3_1, LLAMA_3_2)


@functools.cache
def weights(generation: Generation, dtype: torch.dtype = torch.float32, seed: int = 0) -> Weights:
    """The whole model by Meta's names, the same each time."""
    noise = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.2) -> Tensor:
        return (torch.randn(*shape, generator=noise) * scale).to(dtype)

    made: Weights = {"tok_embeddings.weight": random(generation.vocabulary, DIM, scale=1.0)}
    kv = generation.kv_heads * generation.head_size
    shapes = {
        "attention.wq": (DIM, DIM),
        "attention.wk": (kv, DIM),
        "attention.wv": (kv, DIM),
        "attention.wo": (DIM, DIM),
        "feed_forward.w1": (generation.ffn, DIM),
        "feed_forward.w2": (DIM, generation.ffn),
        "feed_forward.w3": (generation.ffn, DIM),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            made[f"layers.{layer}.{name}.weight"] = random(*shape)
        for name in ("attention_norm", "ffn_norm"):
            made[f"layers.{layer}.{name}.weight"] = (1 + random(DIM).float()).to(dtype)
    made["norm.weight"] = (1 + random(DIM).float()).to(dtype)
    made["output.weight"] = (
        made["tok_embeddings.weight"] if generation.tied else random(generation.vocabulary, DIM)
    )
    return made


def shard(generation: Generation, whole: Mapping[str, Tensor], rank: int, degree: int) -> Weights:
    """What process `rank` of `degree` holds."""
    found: Weights = {}
    for name, tensor in whole.items():
        kind = name.split(".")[-2]
        if kind.endswith("norm"):
            part = tensor
        elif kind in ("wk", "wv"):
            heads = tensor.view(generation.kv_heads, generation.head_size, DIM)
            if degree > generation.kv_heads:  # several processes share a head
                first = rank * generation.kv_heads // degree
                part = heads[first]
            else:
                part = heads.chunk(degree)[rank].reshape(-1, DIM)
        elif kind in ("wo", "w2") or (kind == "tok_embeddings" and not generation.rows):
            part = tensor.chunk(degree, dim=1)[rank]
        else:
            part = tensor.chunk(degree, dim=0)[rank]
        found[name] = part.contiguous().clone()
    if generation.tied and generation.rows:
        found["output.weight"] = found["tok_embeddings.weight"]  # one storage in the file
    found["rope.freqs"] = torch.zeros(generation.head_size // 2)
    return found


def make_checkpoint(
    folder: Path,
    generation: Generation,
    degree: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """A folder as Meta's download makes it: params.json, consolidated.NN.pth, tokenizer.model."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = weights(generation, dtype, seed)
    for rank in range(degree):
        torch.save(shard(generation, whole, rank, degree), folder / f"consolidated.{rank:02d}.pth")
    (folder / "params.json").write_text(json.dumps(dict(generation.params)))
    (folder / "tokenizer.model").write_bytes(tiktoken_file() if generation.rows else pieces_file())
    return folder


@functools.cache
def pieces_file() -> bytes:
    """A SentencePiece model with Llama's settings."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_text().splitlines()),
        model_writer=written,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        pad_id=-1,
        minloglevel=2,
    )
    return written.getvalue()


@functools.cache
def tiktoken_file() -> bytes:
    """A file of ranks in tiktoken's form, as Llama 3's."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    learned = tokenizers.Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learned.train_from_iterator(_text().splitlines(), trainer)
    byte_of = {char: byte for byte, char in _characters().items()}
    ranks = sorted(learned.get_vocab().items(), key=lambda entry: entry[1])
    lines = [
        base64.b64encode(bytes(byte_of[char] for char in text)) + f" {rank}".encode()
        for text, rank in ranks
    ]
    assert len(lines) == MERGED
    return b"\n".join(lines) + b"\n"


def hf_weights(generation: Generation, whole: Mapping[str, Tensor]) -> Weights:
    """The weights by transformers' names, queries and keys in its order of rotary pairs."""
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    found = {
        "model.embed_tokens.weight": whole["tok_embeddings.weight"],
        "model.norm.weight": whole["norm.weight"],
        "lm_head.weight": whole["output.weight"],
    }
    for layer in range(LAYERS):
        for ours, theirs in names.items():
            tensor = whole[f"layers.{layer}.{ours}.weight"]
            if ours in ("attention.wq", "attention.wk"):
                pairs = tensor.view(-1, generation.head_size // 2, 2, DIM)
                tensor = pairs.transpose(1, 2).reshape(tensor.shape)
            found[f"model.layers.{layer}.{theirs}.weight"] = tensor
    return found


def hf_model(generation: Generation, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """transformers' model with these weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope: dict[str, Any] = {"rope_theta": generation.params.get("rope_theta", 10000.0)}
    rope["rope_type"] = "default"
    if generation.rope_factor is not None:
        rope |= {"rope_type": "llama3", "factor": generation.rope_factor}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 8192}
    config = LlamaConfig(
        vocab_size=generation.vocabulary,
        hidden_size=DIM,
        intermediate_size=generation.ffn,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=generation.kv_heads,
        rms_norm_eps=generation.params["norm_eps"],
        rope_parameters=rope,
        max_position_embeddings=generation.context,
        tie_word_embeddings=generation.tied,
        bos_token_id=MERGED if generation.rows else 1,
        eos_token_id=MERGED + 1 if generation.rows else 2,
    )
    model = LlamaForCausalLM(config).to(dtype)
    found = hf_weights(generation, weights(generation, dtype, seed))
    model.load_state_dict(found, strict=True)
    return model.eval().requires_grad_(False)


def _text() -> str:
    return "\n".join(list(pydoc_data.topics.topics.values())[:40])


def _characters() -> dict[int, str]:
    """GPT-2's printable characters for bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {b: chr(256 + i) for i, b in enumerate(others)}
