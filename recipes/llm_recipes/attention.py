"""Which attention a model trains with on a device, and one that packs sequences without leaks.

    from llm_recipes.attention import choose_attention

`varlen` computes each sequence of a row by itself: no padding, no mask of the whole row, and no
token that sees another sequence. On GPUs from compute capability 8.0 that is the variable-length
kernel of torch, elsewhere torch's scaled-dot-product attention, one call for all sequences of a
length. Older GPUs never get a flash-attention kernel: its packages are for 8.0 and newer, and
models that fit without it failed to train with it there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

from llm_recipes.errors import LLMError

Asked = Literal["auto", "varlen", "sdpa", "eager"]
VARLEN = "llm_varlen"  # our name in transformers' list of implementations
# Families whose layers call transformers' attention interface and take their positions from
# position_ids: tests/recipes/test_attention.py shows for each that packed sequences don't see each
# other. Falcon has attention code of its own, and there they do.
PACKABLE = frozenset({"gpt_neox", "llama", "mistral", "qwen2"})
VARLEN_CAPABILITY = (8, 0)
LARGEST_HEAD, HEAD_STEP = 256, 8  # of the flash kernels; only SDPA pads other heads for them


@dataclass(frozen=True)
class Attention:
    """What was chosen. name: for transformers' attn_implementation. packs: rows may hold several
    sequences. reason: for people.
    """

    name: str
    packs: bool
    reason: str


def choose_attention(model_type: str, asked: Asked, device: torch.device) -> Attention:
    """The attention for a family of models on a device.

    Raises:
        LLMError: If `varlen` is asked for and the family can't.
    """
    packable = model_type in PACKABLE
    if asked == "varlen" and not packable:
        raise varlen_fault(model_type)
    if asked == "auto":
        if not packable:
            return Attention("sdpa", False, f"sdpa with padding: {model_type} can't be packed")
        return Attention(VARLEN, True, f"varlen, without padding: {kernel_name(device)}")
    if asked == "varlen":
        return Attention(VARLEN, True, f"varlen, as asked for: {kernel_name(device)}")
    return Attention(asked, packable, f"{asked}, as asked for")


def varlen_fault(model_type: str) -> LLMError:
    """What it means that `varlen` was asked for with a family that can't."""
    return LLMError(
        f"--attention varlen does not work with {model_type} models",
        "their code has an attention of its own, in which packed sequences see each other",
        "leave it out: their batches are padded",
    )


def kernel_name(device: torch.device) -> str:
    """What computes `varlen` on a device."""
    if has_varlen_kernel(device):
        return "torch's variable-length kernel"
    if device.type == "cuda":
        return "a call a sequence (this GPU is older than flash attention's kernels)"
    return "a call for all sequences of a length"


def has_varlen_kernel(device: torch.device) -> bool:
    """Whether torch's variable-length kernel runs on a device."""
    return (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= VARLEN_CAPABILITY
    )


def register_varlen() -> None:
    """Make `llm_varlen` known to transformers; again does no harm."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)


def varlen_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segment_lengths: Sequence[int] | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each sequence of a row by itself.

    Args:
        module: The attention layer.
        query, key, value: (rows, heads, tokens, head size); keys may have fewer heads.
        attention_mask: None always: rows have no padding.
        dropout: Of the attention's weights.
        scaling: Of the scores; None: 1 / sqrt(head size).
        sliding_window: Tokens that a token sees at most; None: all before it.
        segment_lengths: Lengths of the sequences of the only row; None: each row is one sequence.
        cu_seq_lens_q: Where they begin, and the end, on the device.

    Returns:
        (rows, tokens, heads, head size), and no weights.
    """
    if segment_lengths is None:
        segment_lengths = [query.shape[2]] * query.shape[0]
        cu_seq_lens_q = None
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in in_compute_dtype(query, key, value))
    if sliding_window is not None and sliding_window >= max(segment_lengths):
        sliding_window = None
    if has_varlen_kernel(q.device) and dropout == 0.0 and kernel_takes(q):
        out = _by_kernel(q, k, v, segment_lengths, cu_seq_lens_q, scaling, sliding_window)
    else:
        out = _by_length(q, k, v, segment_lengths, dropout, scaling, sliding_window)
    return out.unflatten(0, (query.shape[0], query.shape[2])), None


def in_compute_dtype(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors in the precision of autocast, where it is on.

    With fp32 weights rotary embeddings make fp32 of its 16-bit queries and keys, but not of the
    values. SDPA casts them back by itself; the kernel takes 16 bits and one type only.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [x.to(torch.get_autocast_dtype(kind)) for x in tensors]


def kernel_takes(q: torch.Tensor) -> bool:
    """Whether torch's kernel knows the precision and the size of these heads."""
    size = q.shape[-1]
    fits = size <= LARGEST_HEAD and size % HEAD_STEP == 0
    return fits and q.dtype in (torch.bfloat16, torch.float16)


def _by_kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Sequence[int],
    starts: torch.Tensor | None,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if starts is None:
        ends = torch.tensor(lengths, device=q.device).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    longest = max(lengths)
    # The kernel counts the tokens before the own one, transformers counts that one too.
    left = -1 if window is None else window - 1
    found: torch.Tensor = varlen_attn(
        q,
        k,
        v,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return found


def _by_length(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Sequence[int],
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Sequences of one length are a batch of their own; tensors are (tokens, heads, head size)."""
    groups: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        groups[length].append(number)
    if len(groups) == 1:  # one sequence, or all of one length: no copies
        length = lengths[0]
        a, b, c = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
        return _attend(a, b, c, dropout, scaling, window).transpose(1, 2).flatten(0, 1)
    # Split and not sliced: each slice's gradient would be a tensor of the whole row.
    pieces = [x.split(list(lengths)) for x in (q, k, v)]
    found: dict[int, torch.Tensor] = {}
    for numbers in groups.values():
        rows = (torch.stack([x[number] for number in numbers]) for x in pieces)
        a, b, c = (x.transpose(1, 2) for x in rows)
        outputs = _attend(a, b, c, dropout, scaling, window).transpose(1, 2)
        found.update(zip(numbers, outputs.unbind(0), strict=True))
    return torch.cat([found[number] for number in range(len(lengths))])


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Tensors are (sequences, heads, tokens, head size)."""
    mask = None
    length = q.shape[2]
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.device.type == "cuda":
        # On GPUs without the kernel above, shared heads make torch step back to the slow way that
        # keeps all scores.
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    if window is not None and window < length:
        position = torch.arange(length, device=q.device)
        distance = position[:, None] - position
        mask = (distance >= 0) & (distance < window)
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
