"""What a training step did and how fast: tokens, rates, MFU, memory, the time that is left.

    from llm_recipes.training_numbers import StepNumbers, work_of
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

EXPLODED_TIMES = 4.0  # the usual loss, and
EXPLODED_STEPS = 5  # that many steps in a row
USUAL_STEPS = 64
FIRST_STEPS = 2  # that warm up and count in no rate of a whole run


@dataclass(frozen=True)
class ModelWork:
    """Weights that every token is multiplied with. attention_width: layers x heads x head size.
    head: weights of the output head, which are among the others; head_trained: it is trained.
    """

    trained: int
    frozen: int
    attention_width: int
    head: int = 0
    head_trained: bool = False

    def flops(self, tokens: float, squares: float, loss_tokens: float) -> float:
        """Operations of a step, forward and backward, without recomputation.

        6 a trained weight and token, 4 a frozen one (it needs no gradient of its own), and
        6 x attention width x s for attention, s the sum of squared lengths over the sum of lengths
        (Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311, half for causality).
        Logits are computed for tokens with loss only, and only there the head counts.
        """
        weights = 6.0 * self.trained + 4.0 * self.frozen
        unused = (6.0 if self.head_trained else 4.0) * self.head * (tokens - loss_tokens)
        return weights * tokens - unused + 6.0 * self.attention_width * squares


def work_of(model: Any) -> ModelWork:
    """Count a model's matrices, quantized ones and adapters too; input embeddings are none."""
    trained = frozen = 0
    for module in model.modules():
        # By the module's sizes: 4-bit weights are packed, and ZeRO-3 has taken the weights away.
        if isinstance(module, torch.nn.Linear):
            size = module.in_features * module.out_features
            if module.weight.requires_grad:
                trained += size
            else:
                frozen += size
    head = model.get_output_embeddings()
    is_linear = isinstance(head, torch.nn.Linear)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelWork(
        trained,
        frozen,
        config.num_hidden_layers * heads * head_size,
        head.in_features * head.out_features if is_linear else 0,
        is_linear and head.weight.requires_grad,
    )


def step_row(
    sums: Mapping[str, float],
    seconds: float,
    work: ModelWork,
    processes: int,
    peak_flops: float | None,
) -> dict[str, float | None]:
    """The rates of a step.

    Args:
        sums: Of all ranks: tokens (without padding), loss_tokens, squares.
        seconds: Wall time of the step.
        work: What a token costs.
        processes: Number of ranks.
        peak_flops: Operations a second of one device at best; None: unknown.
    """
    rate = sums["tokens"] / seconds
    work_done = work.flops(sums["tokens"], sums["squares"], sums["loss_tokens"])
    achieved = work_done / seconds / processes
    return {
        "step_s": round(seconds, 6),
        "tokens": int(sums["tokens"]),
        "loss_tokens": int(sums["loss_tokens"]),
        "tokens_per_s": round(rate, 3),
        "tokens_per_s_per_process": round(rate / processes, 3),
        "loss_tokens_per_s": round(sums["loss_tokens"] / seconds, 3),
        "flop_per_s_per_process": round(achieved, 1),
        "mfu": None if not peak_flops else round(achieved / peak_flops, 5),
    }


def run_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of a whole run from its steps' rows; rates are medians without the first steps."""
    steps = [row for row in rows if "loss" in row]
    timed = steps[FIRST_STEPS:] or steps
    evaluations = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    if not steps:
        return {}

    def median(name: str) -> float | None:
        values = [row[name] for row in timed if row.get(name) is not None]
        return statistics.median(values) if values else None

    return {
        "steps": steps[-1]["step"],
        "train_s": round(sum(row["step_s"] for row in steps), 3),
        "tokens": sum(row["tokens"] for row in steps),
        "loss_tokens": sum(row["loss_tokens"] for row in steps),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "held_out_loss": evaluations[-1] if evaluations else None,
        "best_held_out_loss": min(evaluations) if evaluations else None,
        "step_s": median("step_s"),
        "tokens_per_s": median("tokens_per_s"),
        "tokens_per_s_per_process": median("tokens_per_s_per_process"),
        "loss_tokens_per_s": median("loss_tokens_per_s"),
        "mfu": median("mfu"),
        "peak_host_bytes": max(row.get("peak_host_bytes") or 0 for row in steps),
        "peak_gpu_bytes": max(row.get("peak_gpu_bytes") or 0 for row in steps) or None,
    }


class LossGuard:
    """Notices a loss that is no number, or far above what it was for several steps."""

    def __init__(self) -> None:
        self._usual: list[float] = []
        self.high_steps = 0

    def fault(self, loss: float, grad_norm: float | None, step_skipped: bool) -> str | None:
        """Why training makes no sense any more after this step; None if it does.

        Args:
            loss: Of the step.
            grad_norm: Before clipping; None if unknown.
            step_skipped: The loss scaler of fp16 left the step out, as it does now and then.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if grad_norm is not None and not math.isfinite(grad_norm) and not step_skipped:
            return f"the gradient's norm is {grad_norm}"
        usual = statistics.median(self._usual) if self._usual else math.inf
        if loss > EXPLODED_TIMES * usual and loss > usual + 2.0:
            self.high_steps += 1
            if self.high_steps >= EXPLODED_STEPS:
                return f"the loss was about {usual:.3g} and is now {loss:.3g}"
            return None
        self.high_steps = 0
        self._usual = [*self._usual[1 - USUAL_STEPS :], loss]
        return None
