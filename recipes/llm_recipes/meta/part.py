"""One process's part of a checkpoint in Meta's format, as `llm_recipes.meta.lockstep` drives it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_recipes.device import (
    GB,
    free_memory_bytes,
    is_out_of_memory,
    memory_errors,
    peak_memory_bytes,
    use_granted_cpus,
)
from llm_recipes.errors import LLMError
from llm_recipes.meta.checkpoint import MetaCheckpoint
from llm_recipes.meta.model import MetaLlama
from llm_recipes.meta.sizes import Shape, kv_bytes
from llm_recipes.ranks import Ranks
from llm_recipes.stored_weights import StoredTensor

LESS = "lower --max-batch-size or --max-seq-len, or use a device with more memory"
LARGER = "use devices with more memory, or more of them: reshard.py --to meta --model-parallel N"


@dataclass(frozen=True)
class Shard:
    """What this process is to load. tensors: its shard's, where they lie."""

    checkpoint: MetaCheckpoint
    tensors: Mapping[str, StoredTensor]
    shape: Shape
    device: torch.device
    precision: torch.dtype


class MetaPart:
    """Loads a shard and runs it, together with the other ranks."""

    def __init__(self, shard: Shard, ranks: Ranks) -> None:
        self._shard = shard
        self._ranks = ranks
        self._model: MetaLlama | None = None

    @property
    def model(self) -> MetaLlama:
        """The loaded part."""
        assert self._model is not None
        return self._model

    def load(self) -> list[dict[str, Any]]:
        """Load the weights; seconds, and bytes that are free after that, of every rank.

        Raises:
            LLMError, SystemExit: On all ranks, if one of them cannot.
        """
        shard = self._shard
        start = time.perf_counter()
        self._model = self._ranks.together(self._load)
        load_s = time.perf_counter() - start
        free = free_memory_bytes(shard.device)
        if shard.device.type == "cpu":  # a node's memory is for all of its processes
            free //= processes_here()
        return self._ranks.of_all({"load_s": load_s, "free": free})

    def allocate(self, rows: int, tokens: int) -> None:
        """Make room for keys and values.

        Raises:
            LLMError, SystemExit: On all ranks, if one of them cannot.
        """
        self._ranks.together(lambda: self._allocate(rows, tokens))

    def prefill(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Begin a batch with prompts [rows, width], left-padded; logits [rows, vocabulary]."""
        if self._ranks.count == 1:  # a batch that is too large is halved
            return self.model.prefill(ids, lengths)
        rows, width = ids.shape
        with memory_errors(f"a batch of {rows} prompts up to {width} tokens was run", LESS):
            return self.model.prefill(ids, lengths)

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token [rows] to each row; logits [rows, vocabulary]."""
        if self._ranks.count == 1:
            return self.model.step(tokens)
        with memory_errors(f"a batch of {len(tokens)} rows was continued", LESS):
            return self.model.step(tokens)

    def keep(self, indices: Tensor) -> None:
        """Only these rows of the batch go on."""
        self.model.keep(indices)

    def measure(self) -> list[dict[str, int]]:
        """The memory's peaks of every rank, on all ranks."""
        return self._ranks.of_all(peak_memory_bytes(self._shard.device))

    def _load(self) -> MetaLlama:
        from llm_recipes.meta.loading import load_shard
        from llm_recipes.meta.parallel import start_model_parallel

        shard = self._shard
        start_model_parallel(self._ranks)
        with memory_errors("the weights were loaded", LARGER):
            model = load_shard(shard.checkpoint, shard.tensors, shard.device, shard.precision)
        if shard.device.type == "cuda":
            torch.cuda.synchronize(shard.device)
        return model

    def _allocate(self, rows: int, tokens: int) -> None:
        shard = self._shard
        needed = kv_bytes(shard.shape, tokens) * rows
        free = free_memory_bytes(shard.device)
        # On CPUs memory is taken when it is first written to: too much would kill the process.
        if shard.device.type == "cpu" and needed * processes_here() > free:
            raise no_room(rows, tokens, needed, f"{free / GB:.3g} GB are free on this node")
        try:
            self.model.allocate(rows, tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise no_room(rows, tokens, needed, f"{free / GB:.3g} GB are free") from None


def no_room(rows: int, tokens: int, needed: int, free: str) -> LLMError:
    """The fault of keys and values that don't fit. needed: bytes in each process."""
    return LLMError(
        f"there is no memory for the keys and values of {rows} rows of {tokens} tokens",
        f"they take {needed / GB:.3g} GB in each process, and {free}",
        "a smaller --max-batch-size, --max-seq-len or --max-new-tokens",
    )


def share_cpus() -> None:
    """Let the processes of a node have no more threads together than CPUs were granted.

    torchrun and llm-run set OMP_NUM_THREADS, and what it says holds.
    """
    granted = use_granted_cpus()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), granted // processes_here())))


def processes_here() -> int:
    """Processes of this model on this node, as torchrun says."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(text)) if text.isdigit() else 1
