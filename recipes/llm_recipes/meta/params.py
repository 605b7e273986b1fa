"""The sizes of a Llama: from params.json and config.json, and back.

from llm_recipes.meta.params import Params, ffn_width
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Params:
    """What a Llama is made of.

    dim: numbers a token's state has. ffn: width of the feed-forward. vocabulary: rows of the
    embeddings and of the output head. rope_factor: of the scaled rotary frequencies that 3.1
    brought (its other constants are the same in all releases); None: they are not scaled.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    rope_factor: float | None

    @property
    def head_size(self) -> int:
        """Numbers a head."""
        return self.dim // self.heads
