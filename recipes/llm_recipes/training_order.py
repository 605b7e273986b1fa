"""In which order a training run sees its examples: by seed alone, whatever the number of processes.

    from llm_recipes.training_order import TrainingOrder, steps_of

The examples of an epoch are a permutation drawn from (seed, epoch), and the epochs follow each
other without a gap: step k takes the examples [k·G, (k+1)·G) of that sequence, G the global batch.
So one process and eight of them, with whatever accumulation, do the same steps, and a run that is
resumed knows its place from the number of steps alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch


def steps_of(examples: int, epochs: float, global_batch: int) -> int:
    """Optimizer steps that see every example `epochs` times; the last one is filled up."""
    return max(1, math.ceil(examples * epochs / global_batch))


class TrainingOrder(torch.utils.data.Sampler[int]):
    """The indices of all examples of a run, epoch after epoch, `total` of them."""

    def __init__(self, examples: int, total: int, seed: int) -> None:
        super().__init__()
        self.examples, self.total, self.seed = examples, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        left = self.total
        epoch = 0
        while left > 0:
            generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
            order = torch.randperm(self.examples, generator=generator).tolist()
            yield from order[:left]
            left -= len(order)
            epoch += 1
