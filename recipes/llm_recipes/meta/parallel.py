"""fairscale's groups of processes, and its parallel layers around weights that exist already.

    from llm_recipes.meta.parallel import start_model_parallel
    start_model_parallel(start_ranks(use_gpus=True))

A weight's rows are divided among the processes (fairscale: column-parallel, as it thinks of the
transposed matrix) or its columns (row-parallel). Embeddings: rows in Llama 3, columns before.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from fairscale.nn.model_parallel import initialize, layers
from torch import Tensor

from llm_recipes.ranks import Ranks

if TYPE_CHECKING:
    from llm_recipes.meta.layout import EmbeddingSplit


def start_model_parallel(ranks: Ranks) -> None:
    """Make all processes one model-parallel group; `end_ranks` leaves it.

    A single process that torchrun didn't start gets a group of its own, without a network.

    Args:
        ranks: From `start_ranks`.
    """
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        initialize.destroy_model_parallel()  # groups of processes that `end_ranks` has left
    if initialize.model_parallel_is_initialized():
        return
    # fairscale says on standard output, where answers go, what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        initialize.initialize_model_parallel(ranks.count)


def split_by_rows(weight: Tensor, gather: bool = False) -> torch.nn.Module:
    """A linear layer of which this process holds some rows of the weight.

    Args:
        weight: This process's part, [rows, in].
        gather: Return the outputs of all processes and not only of these rows.
    """
    rows, width = weight.shape
    with _no_weights():
        layer = layers.ColumnParallelLinear(
            width, rows * _degree(), bias=False, gather_output=gather
        )
    return _with_weight(layer, weight)


def split_by_columns(weight: Tensor) -> torch.nn.Module:
    """A linear layer of which this process holds some columns of the weight, [out, columns].

    Its input is this process's part; its output the sum over all processes.
    """
    rows, width = weight.shape
    with _no_weights():
        layer = layers.RowParallelLinear(
            width * _degree(), rows, bias=False, input_is_parallel=True
        )
    return _with_weight(layer, weight)


def split_embeddings(weight: Tensor, split: EmbeddingSplit) -> torch.nn.Module:
    """The embeddings of which this process holds some rows or columns."""
    rows, width = weight.shape
    with _no_weights():
        layer = (
            layers.VocabParallelEmbedding(rows * _degree(), width)
            if split == "rows"
            else layers.ParallelEmbedding(rows, width * _degree())
        )
    return _with_weight(layer, weight)


def _degree() -> int:
    return int(initialize.get_model_parallel_world_size())


def _with_weight(layer: torch.nn.Module, weight: Tensor) -> torch.nn.Module:
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


@contextlib.contextmanager
def _no_weights() -> Iterator[None]:
    """Keep fairscale's layers from filling the weights that they allocate and that are replaced.

    Each would make the whole weight of all processes at random and copy its part: for a model of
    70 billion parameters that takes minutes and the memory of its largest weights. Memory that
    is only allocated and never written to costs nothing.
    """
    usual = layers._initialize_affine_weight
    layers._initialize_affine_weight = lambda *_, **__: None
    try:
        yield
    finally:
        layers._initialize_affine_weight = usual
