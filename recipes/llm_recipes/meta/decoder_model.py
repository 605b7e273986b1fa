"""The leader of a model in several processes, in the form that `llm_recipes.decoding` wants.

Decoder(DecoderModel(leader, params, device, dtype), tokenizer, settings)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_recipes.meta.lockstep import Leader
from llm_recipes.meta.params import Params


@dataclass(frozen=True)
class Config:
    """The little that a decoder wants to know of transformers' configuration."""

    vocab_size: int
    model_type: str = "llama"
    sliding_window: int | None = None

    def get_text_config(self) -> Config:
        """Itself: there is nothing but text."""
        return self


@dataclass(frozen=True)
class Output:
    """logits: [batch, 1, vocabulary]."""

    logits: Tensor


class Cache:
    """Stands for a batch's keys and values, which each process keeps for itself."""

    def __init__(self, leader: Leader) -> None:
        self.begun = False
        self._leader = leader

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows of the batch."""
        self._leader.keep(indices)


class DecoderModel:
    """A model whose forward is a call of all processes."""

    def __init__(
        self, leader: Leader, params: Params, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.config = Config(params.vocabulary)
        self._leader = leader

    def new_cache(self) -> Cache:
        """For a new batch; the one before is forgotten with its first prompt."""
        return Cache(self._leader)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache,
        use_cache: bool = True,
        logits_to_keep: int = 1,
    ) -> Output:
        """Logits of each row's last token. The first call with a cache brings the prompts.

        Args:
            input_ids: [batch, width], prompts left-padded; later [batch, 1].
            attention_mask: [batch, width] for the prompts: 0 is padding; later not looked at.
            past_key_values: From `new_cache`.
            use_cache, logits_to_keep: As a decoder always wants them.
        """
        if past_key_values.begun:
            logits = self._leader.step(input_ids[:, 0])
        else:
            assert attention_mask is not None
            logits = self._leader.prefill(input_ids, attention_mask.sum(dim=1))
            past_key_values.begun = True
        return Output(logits[:, None])

    def __call__(self, **arguments: Any) -> Output:
        """As `forward`."""
        return self.forward(**arguments)
