"""Rotary position embeddings as Meta's checkpoints have them: neighbouring numbers are a pair.

Su et al. 2021, https://arxiv.org/abs/2104.09864. transformers turns number i with i + head / 2
instead, so its query and key weights have another order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llm_recipes.meta.params import HIGH_FREQUENCY, LOW_FREQUENCY, ORIGINAL_CONTEXT

# Llama 3.1 stretched the slow frequencies for contexts beyond 8192 tokens: those that turn less
# than once in the original context are divided by the factor, those that turn more than four
# times stay. Only the factor differs between releases.
# https://github.com/meta-llama/llama-models, apply_scaling.


def frequencies(head_size: int, theta: float, factor: float | None) -> Tensor:
    """Radians that each pair turns a token, fp32 [head_size / 2].

    Args:
        head_size: Numbers a head.
        theta: The base.
        factor: Of Llama 3.1's scaling; None: unscaled.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    found = 1.0 / theta**exponents
    if factor is None:
        return found
    turns = ORIGINAL_CONTEXT * found / (2 * math.pi)
    unchanged = ((turns - LOW_FREQUENCY) / (HIGH_FREQUENCY - LOW_FREQUENCY)).clamp(0.0, 1.0)
    return (1 - unchanged) * (found / factor) + unchanged * found


def rotations(frequency: Tensor, tokens: int) -> Tensor:
    """The turns of positions 0 to tokens - 1 as complex numbers, [tokens, head_size / 2]."""
    positions = torch.arange(tokens, dtype=torch.float32, device=frequency.device)
    angles = torch.outer(positions, frequency)
    return torch.polar(torch.ones_like(angles), angles)


def turned(heads: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys at their positions; computed in fp32 and rounded once.

    Args:
        heads: [tokens, heads, head_size]; may be overwritten.
        turns: Of each token's position, [tokens, head_size / 2].
    """
    pairs = torch.view_as_complex(heads.float().view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs.mul_(turns[:, None])).flatten(-2).to(heads.dtype)
