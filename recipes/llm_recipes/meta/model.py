"""A Llama on fairscale's parallel layers, for inference: this process's part of it.

    from llm_recipes.meta.loading import load_shard
    model = load_shard(checkpoint, tensors, device, dtype)
    model.allocate(rows=8, tokens=2048)
    logits = model.prefill(ids, lengths)
    logits = model.step(logits.argmax(dim=-1))

All processes call the same methods with the same tokens. Prompts of unequal length cost no
padding: a prefill multiplies the weights with real tokens only, one prompt behind the other, and
attends to prompts of one length at a time. So it needs no mask, whose size would be the square of
the longest prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_recipes.meta.batch import Prompts, Running
from llm_recipes.meta.parallel import split_by_columns, split_by_rows, split_embeddings
from llm_recipes.meta.params import Params
from llm_recipes.meta.rotary import frequencies, rotations, turned

if TYPE_CHECKING:
    from llm_recipes.meta.layout import EmbeddingSplit


class MetaLlama(torch.nn.Module):
    """This process's part of a Llama. dtype, device: of its weights."""

    def __init__(
        self, params: Params, weights: Mapping[str, Tensor], embeddings: EmbeddingSplit
    ) -> None:
        """Build it around weights that are on their device.

        Args:
            params: The whole model's sizes.
            weights: This process's, by Meta's names; without output.weight, the output layer
                uses the embeddings.
            embeddings: How these are divided among the processes.
        """
        super().__init__()
        self.params = params
        embedded = weights["tok_embeddings.weight"]
        self.dtype, self.device = embedded.dtype, embedded.device
        self.tok_embeddings = split_embeddings(embedded, embeddings)
        self.layers = torch.nn.ModuleList(
            Layer(params, weights, f"layers.{number}") for number in range(params.layers)
        )
        self.norm = Norm(weights["norm.weight"], params.norm_eps)
        self.output = split_by_rows(weights.get("output.weight", embedded), gather=True)
        self._rows, self._tokens = 0, 0

    @torch.inference_mode()
    def allocate(self, rows: int, tokens: int) -> None:
        """Make the cache of keys and values, once for all batches.

        Args:
            rows: The most of a batch.
            tokens: The most of a row: its prompt and what is generated.

        Raises:
            torch.OutOfMemoryError, RuntimeError: If there is not enough memory.
        """
        for layer in self._layers():
            layer.attention.allocate(rows, tokens, self.device, self.dtype)
        params = self.params
        frequency = frequencies(params.head_size, params.rope_theta, params.rope_factor)
        self._turns = rotations(frequency, tokens).to(self.device)
        self._rows, self._tokens = rows, tokens

    @torch.inference_mode()
    def prefill(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Begin a batch; what the cache held is forgotten.

        Args:
            ids: Token ids [rows, width], each prompt at the end of its row.
            lengths: Tokens of each prompt, at least 1, int64 [rows].

        Returns:
            Logits of each row's next token, [rows, vocabulary], equal in all processes.

        Raises:
            ValueError: If the cache has no room for them.
        """
        rows, width = ids.shape
        if rows > self._rows or width > self._tokens:
            room = f"{self._rows} rows of {self._tokens} tokens"
            raise ValueError(f"{rows} rows of {width} tokens do not fit into {room}")
        prompts = Prompts(lengths.tolist(), width, self.device)
        hidden = self.tok_embeddings(ids.to(self.device)[prompts.rows, prompts.columns])
        turns = self._turns[prompts.positions]
        for layer in self._layers():
            hidden = hidden + layer.attention.prefill(layer.attention_norm(hidden), turns, prompts)
            hidden = hidden + layer.feed_forward(layer.ffn_norm(hidden))
        self._batch = Running(prompts, self._tokens, self.dtype)
        logits: Tensor = self.output(self.norm(hidden[prompts.last]))
        return logits

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Append a token [rows] to each row of the batch.

        Returns:
            Logits of each row's next token, [rows, vocabulary], equal in all processes.

        Raises:
            ValueError: If the cache is full.
        """
        batch = self._batch
        if batch.end >= self._tokens:
            raise ValueError(f"the cache has no room beyond {self._tokens} tokens")
        hidden = self.tok_embeddings(tokens.to(self.device))
        turns = self._turns[batch.positions]
        batch.append()
        mask = batch.mask()
        for layer in self._layers():
            normed = layer.attention_norm(hidden)
            hidden = hidden + layer.attention.step(normed, turns, batch, mask)
            hidden = hidden + layer.feed_forward(layer.ffn_norm(hidden))
        logits: Tensor = self.output(self.norm(hidden))
        return logits

    @torch.inference_mode()
    def keep(self, indices: Tensor) -> None:
        """Go on with these rows of the batch only, in this order.

        Args:
            indices: Of rows, int64 [rows that go on].
        """
        self._batch.keep(indices.tolist())
        for layer in self._layers():
            layer.attention.keep(indices.to(self.device), self._batch)

    def _layers(self) -> Iterator[Layer]:
        for layer in self.layers:
            assert isinstance(layer, Layer)
            yield layer


class Layer(torch.nn.Module):
    """Attention and feed-forward, each behind a norm."""

    def __init__(self, params: Params, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.attention = Attention(params, weights, f"{name}.attention")
        self.feed_forward = FeedForward(weights, f"{name}.feed_forward")
        self.attention_norm = Norm(weights[f"{name}.attention_norm.weight"], params.norm_eps)
        self.ffn_norm = Norm(weights[f"{name}.ffn_norm.weight"], params.norm_eps)


class Attention(torch.nn.Module):
    """This process's heads, and their keys and values, [rows, heads, columns, head size].

    Each key and value head serves as many query heads (grouped-query attention,
    https://arxiv.org/abs/2305.13245): 1 in Llama 1.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, params: Params, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.wq = split_by_rows(weights[f"{name}.wq.weight"])
        # A head that several processes share is in each of them: to fairscale, one head a process.
        self.wk = split_by_rows(weights[f"{name}.wk.weight"])
        self.wv = split_by_rows(weights[f"{name}.wv.weight"])
        self.wo = split_by_columns(weights[f"{name}.wo.weight"])
        self.head_size = params.head_size
        self.kv_heads = weights[f"{name}.wk.weight"].shape[0] // params.head_size

    def allocate(self, rows: int, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        """Make room. Zeros: a column that is masked must hold numbers, as 0 times NaN is NaN."""
        shape = (rows, self.kv_heads, tokens, self.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def prefill(self, hidden: Tensor, turns: Tensor, prompts: Prompts) -> Tensor:
        """Attend within each prompt and begin the cache.

        Args:
            hidden: Packed tokens, [tokens, dim].
            turns: Of their positions, [tokens, head size / 2].
            prompts: Which is whose.

        Returns:
            What attention adds to the tokens, [tokens, dim].
        """
        queries, keys, values = self._heads(hidden, turns)
        attended = []
        for group in prompts.groups:
            q, k, v = (
                heads[group.tokens].view(-1, group.length, *heads.shape[1:]).transpose(1, 2)
                for heads in (queries, keys, values)
            )
            # Left to torch, grouped heads mean a table of the square of the length for each head
            # where FlashAttention can't run: on GPUs before Ampere, in fp32.
            all_k, all_v = (
                heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v)
            )
            found = F.scaled_dot_product_attention(q, all_k, all_v, is_causal=True)
            attended.append(found.transpose(1, 2).flatten(2).flatten(0, 1))
            start = prompts.width - group.length
            for cache, new in ((self.keys, k), (self.values, v)):
                cache[group.rows, :, start : prompts.width] = new
                # What an earlier batch left in padding may be infinite if that overflowed.
                cache[group.rows, :, :start] = 0
        found = attended[0] if len(attended) == 1 else torch.cat(attended)
        added: Tensor = self.wo(found)
        return added

    def step(self, hidden: Tensor, turns: Tensor, batch: Running, mask: Tensor | None) -> Tensor:
        """Attend from each row's newest token to all of the row's.

        Args:
            hidden: [rows, dim].
            turns: Of the tokens' positions, [rows, head size / 2].
            batch: Whose last column is for these tokens.
            mask: Of the columns.

        Returns:
            What attention adds, [rows, dim].
        """
        queries, new_keys, new_values = self._heads(hidden, turns)
        self.keys[: batch.rows, :, batch.end - 1] = new_keys
        self.values[: batch.rows, :, batch.end - 1] = new_values
        keys, values = (
            cache[: batch.rows, :, batch.begin : batch.end] for cache in (self.keys, self.values)
        )
        # The query heads of a key head see the same tokens: they may stand where the kernels
        # expect several queries of one head, and no key is copied or read twice.
        grouped = queries.view(batch.rows, self.kv_heads, -1, self.head_size)
        found = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        added: Tensor = self.wo(found.flatten(1))
        return added

    def keep(self, indices: Tensor, batch: Running) -> None:
        """Only these rows of the cache go on."""
        for cache in (self.keys, self.values):
            used = cache[:, :, batch.begin : batch.end]
            used[: len(indices)] = used[indices]

    def _heads(self, hidden: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [tokens, heads, head size]."""
        queries, keys, values = (
            layer(hidden).view(len(hidden), -1, self.head_size)
            for layer in (self.wq, self.wk, self.wv)
        )
        return turned(queries, turns), turned(keys, turns), values


class FeedForward(torch.nn.Module):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.w1 = split_by_rows(weights[f"{name}.w1.weight"])
        self.w2 = split_by_columns(weights[f"{name}.w2.weight"])
        self.w3 = split_by_rows(weights[f"{name}.w3.weight"])

    def forward(self, hidden: Tensor) -> Tensor:
        """What it adds to the tokens, [tokens, dim]."""
        added: Tensor = self.w2(F.silu(self.w1(hidden), inplace=True).mul_(self.w3(hidden)))
        return added


class Norm(torch.nn.Module):
    """RMSNorm, computed in fp32 and rounded once (Zhang, Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """The tokens [tokens, dim], normed."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
