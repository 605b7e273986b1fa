"""What a Llama in several processes costs each of them: weights, keys and values, a batch's rows.

from llm_recipes.meta.sizes import fitting_rows, kv_bytes, shard_bytes
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_recipes.batch_memory import LOGIT_COPIES, MOST_ROWS, SHARE_OF_FREE, STATES_A_TOKEN
from llm_recipes.meta.layout import EMBEDDINGS, OUTPUT, EmbeddingSplit, layout, shard_shape
from llm_recipes.meta.params import Params

CONTEXT_UNKNOWN = 2048  # tokens; the first Llama's, which all later ones can see


@dataclass(frozen=True)
class Shape:
    """A model as it is run. tied: the output head is the embeddings; item_bytes: of a weight."""

    params: Params
    embeddings: EmbeddingSplit
    degree: int
    tied: bool
    item_bytes: int

    @property
    def kv_heads(self) -> int:
        """K/V heads of all processes together; several hold the same if there are more of them."""
        return max(self.params.kv_heads, self.degree)


def shard_bytes(shape: Shape) -> int:
    """Bytes of weights in each process."""
    return sum(_counts(shape).values()) * shape.item_bytes


def read_bytes(shape: Shape) -> int:
    """Bytes of weights that all processes together read a step: embeddings are looked up."""
    counts = _counts(shape)
    unread = 0 if shape.tied else counts[EMBEDDINGS]
    return (sum(counts.values()) - unread) * shape.item_bytes * shape.degree


def parameters(shape: Shape, matrices_only: bool = False) -> int:
    """Weights of the model, each once. matrices_only: what each token is multiplied with."""
    tensors = layout(shape.params, shape.embeddings)
    left_out = {OUTPUT} if shape.tied else {EMBEDDINGS} if matrices_only else set()
    return sum(
        math.prod(tensor.shape)
        for name, tensor in tensors.items()
        if name not in left_out and not (matrices_only and len(tensor.shape) == 1)
    )


def kv_bytes(shape: Shape, tokens: int) -> int:
    """Bytes of the keys and values of a row in each process."""
    heads = shape.kv_heads // shape.degree
    values = 2 * shape.params.layers * heads * shape.params.head_size
    return values * shape.item_bytes * tokens


def row_bytes(shape: Shape, tokens: int, prompt: int) -> int:
    """Bytes that a row of a batch takes in each process.

    Args:
        shape: The model's.
        tokens: That the cache has room for.
        prompt: Of the longest prompt.
    """
    logits = shape.params.vocabulary * 4 * LOGIT_COPIES
    states = shape.params.dim * shape.item_bytes * STATES_A_TOKEN * prompt
    return kv_bytes(shape, tokens) + logits + states


def fitting_rows(free: float, a_row: int, device: str, wanted: int) -> int:
    """Rows of a batch that fit into the free memory of the process that has least; at least 1.

    Args:
        free: Bytes that this process can still have.
        a_row: Bytes of a row.
        device: cpu or cuda.
        wanted: More rows are of no use.
    """
    return max(1, min(int(SHARE_OF_FREE * free / a_row), MOST_ROWS[device], wanted))


def _counts(shape: Shape) -> dict[str, int]:
    """Elements of each tensor in one process."""
    tensors = layout(shape.params, shape.embeddings)
    return {
        name: math.prod(shard_shape(tensor, shape.params, shape.degree))
        for name, tensor in tensors.items()
        if not (shape.tied and name == OUTPUT)
    }
