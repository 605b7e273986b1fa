"""The choice of the next token, with noise that depends on the request and not on the batch.

Each token's noise is a hash of (seed, prompt id, sample, position, token): neither the batch size
nor the order of the prompts changes a sample beyond the rounding of the logits. The winner of an
exponential race, argmax p_i / E_i with E_i ~ Exp(1), is distributed as p (the Gumbel-max trick
without its second logarithm; Maddison, Tarlow, Minka 2014, https://arxiv.org/abs/1411.0030).

    from llm_recipes.sampling import Sampling, noise_key, sample_tokens
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

GOLDEN, MIX_1, MIX_2, STEP = -1640531535, -2048144789, -1028477387, -1812433253  # odd, as int32
NUCLEUS_GUESS = 256  # tokens that nearly always hold the top_p mass


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature: 0 takes the likeliest token. top_p: 1 is off. top_k: 0 is off.
    repetition_penalty: 1 is off; above 1, tokens seen before become less likely
    (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


def noise_key(seed: int, prompt_id: str, sample: int) -> tuple[int, int]:
    """Two signed 32-bit numbers that stand for one sample of one prompt under one seed."""
    text = f"{seed}\0{prompt_id}\0{sample}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (
        int.from_bytes(digest[:4], "little", signed=True),
        int.from_bytes(digest[4:], "little", signed=True),
    )


def sample_tokens(
    logits: Tensor, sampling: Sampling, keys: Tensor, positions: Tensor, seen: Tensor | None
) -> Tensor:
    """Choose one token a row.

    Args:
        logits: Of the next token, [batch, vocabulary], any floating type.
        sampling: The controls.
        keys: `noise_key` of each row, int32 [batch, 2].
        positions: Index of the token within its completion, int32 [batch].
        seen: Tokens that the row holds already, bool [batch, vocabulary]; None without penalty.

    Returns:
        Token ids, int64 [batch].
    """
    if seen is not None and sampling.repetition_penalty != 1.0:
        logits = penalized(logits.float(), seen, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    scores = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = torch.topk(scores, sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    probabilities = torch.softmax(scores, dim=-1)
    if sampling.top_p < 1.0:
        least = nucleus_threshold(probabilities, sampling.top_p)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    noise = negative_exponential_noise(keys, positions, probabilities.shape[-1])
    return probabilities.div_(noise).argmin(dim=-1)


def penalized(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of seen tokens by the penalty, multiply negative ones by it."""
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, changed, logits)


def nucleus_threshold(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest probability that still belongs to the nucleus, [batch, 1].

    The nucleus is the smallest set of likeliest tokens with a mass of at least top_p
    (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
    """
    size = probabilities.shape[-1]
    ranked = torch.topk(probabilities, min(NUCLEUS_GUESS, size), dim=-1).values
    if size > NUCLEUS_GUESS and bool((ranked.sum(dim=-1) < top_p).any()):
        ranked = torch.sort(probabilities, dim=-1, descending=True).values
    before = ranked.cumsum(dim=-1) - ranked
    kept = (before < top_p).sum(dim=-1, keepdim=True).clamp_(min=1)
    return ranked.gather(-1, kept - 1)


def negative_exponential_noise(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """-Exp(1) numbers [batch, vocabulary], a pure function of the row's key and position.

    A counter-based generator: the token's number, spread by a multiplier and an offset that belong
    to the row and position, through the mixing steps of MurmurHash3's 32-bit finalizer (Appleby,
    public domain). Kept to few passes over [batch, vocabulary]: on a CPU this is felt.
    """
    tokens = torch.arange(vocabulary, dtype=torch.int32, device=keys.device)
    offset = _mixed(keys[:, 0] + positions * GOLDEN)
    spread = _mixed(keys[:, 1] + positions * STEP).bitwise_or_(1)
    state = torch.addcmul(offset[:, None], tokens[None, :], spread[:, None])
    state.bitwise_xor_((state >> 15).bitwise_and_(0x1FFFF)).mul_(MIX_1)
    state.bitwise_xor_((state >> 13).bitwise_and_(0x7FFFF)).mul_(MIX_2)
    state.bitwise_xor_(state >> 16)  # the shift copies the sign bit, so the result is >= 0
    return state.float().add_(0.5).mul_(-(2.0**-31)).log1p_()  # exact near 0, which decides


def _mixed(state: Tensor) -> Tensor:
    # int32 shifts copy the sign bit; the masks make them logical.
    state = (state ^ ((state >> 16) & 0xFFFF)) * MIX_1
    state = (state ^ ((state >> 13) & 0x7FFFF)) * MIX_2
    return state ^ ((state >> 16) & 0xFFFF)
