"""Key/value caches that cost little a step: room ahead for eager decoding, fixed for compiled.

from llm_recipes.kv_cache import growing_cache, static_cache
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

ROOM = 128  # tokens that a layer's buffer grows by


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer with room ahead: a step writes its token instead of copying all before it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.key_buffer: Tensor | None = None
        self.value_buffer: Tensor | None = None
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [batch, heads, tokens, head size]; return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.key_buffer = _with_room(self.key_buffer, key_states, self.length, end)
        self.value_buffer = _with_room(self.value_buffer, value_states, self.length, end)
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows of the batch."""
        if self.key_buffer is not None and self.value_buffer is not None:
            self.key_buffer = self.key_buffer[indices]
            self.value_buffer = self.value_buffer[indices]
            self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        assert self.key_buffer is not None
        assert self.value_buffer is not None
        self.keys = keys = self.key_buffer[:, :, : self.length]
        self.values = values = self.value_buffer[:, :, : self.length]
        return keys, values


def growing_cache(config: Any, longest: int) -> DynamicCache:
    """A cache for eager decoding of sequences of at most `longest` tokens, padding included."""
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer or _window_never_slides(layer, longest):
            cache.layers[index] = RoomyLayer()
    return cache


def static_cache(config: Any, longest: int) -> StaticCache:
    """A cache of fixed size and address, which CUDA graphs need."""
    cache = StaticCache(config=config, max_cache_len=longest)
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, StaticSlidingWindowLayer):
            cache.layers[index] = StaticLayer(max_cache_len=longest)
    return cache


def rewind(cache: StaticCache, length: int) -> None:
    """Forget what came after the first `length` tokens: a step that broke off may have counted."""
    for layer in cache.layers:
        layer.cumulative_length.fill_(length)


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds, for every architecture's layout."""
    tensors = [
        value
        for layer in cache.layers
        for value in vars(layer).values()
        if isinstance(value, Tensor) and value.dim() > 1
    ]
    views = {(tensor.data_ptr(), tensor.numel()): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in views.values())


def _window_never_slides(layer: Any, longest: int) -> bool:
    return type(layer) is DynamicSlidingWindowLayer and longest <= layer.sliding_window


def _with_room(buffer: Tensor | None, states: Tensor, length: int, end: int) -> Tensor:
    if buffer is not None and end <= buffer.shape[-2]:
        return buffer
    room = end + ROOM - end % ROOM
    larger = states.new_empty((*states.shape[:2], room, states.shape[-1]))
    if buffer is not None:
        larger[:, :, :length] = buffer[:, :, :length]
    return larger
