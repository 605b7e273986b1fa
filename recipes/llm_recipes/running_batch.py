"""The tensors of a running batch: prompts in, a token a row and step out.

Used by `llm_recipes.decoding`, which says what is asked and collects what has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llm_recipes.sampling import noise_key, sample_tokens
from llm_recipes.stopping import Row

if TYPE_CHECKING:
    from llm_recipes.decoding import Decoder, Request

# Model types whose decoder takes a ready-made mask [batch, 1, 1, length] (the tests compare each
# with transformers' generate). Others, such as those with ALiBi, get the usual [batch, length].
READY_MASK_TYPES = frozenset(
    {"llama", "mistral", "mixtral", "qwen2", "qwen3", "gpt_neox", "falcon", "phi", "phi3"}
    | {"gemma", "olmo2", "starcoder2", "stablelm", "granite", "gpt2"}
)
COMPACT_BELOW = 0.75  # share of running rows below which the others are dropped from the batch
SHORTEST_STATIC = 256  # tokens of the shortest static cache


def takes_ready_mask(config: Any, longest: int) -> bool:
    """Whether the model takes a mask [batch, 1, 1, length] for sequences up to `longest`."""
    window = getattr(config, "sliding_window", None)
    return (
        config.model_type in READY_MASK_TYPES
        and not getattr(config, "alibi", False)
        and (window is None or longest <= window)
    )


def static_shape(rows: int, longest: int) -> tuple[int, int]:
    """Rows and length of the static cache for a batch: powers of two, as each shape is compiled."""
    return _power_of_two(rows), max(SHORTEST_STATIC, _power_of_two(longest))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class RunningBatch:
    """The tensors of a running batch: left-padded, so that all rows end in the same column."""

    def __init__(self, decoder: Decoder, requests: Sequence[Request], rows: list[Row]) -> None:
        self.decoder = decoder
        self.settings = decoder.settings
        self.rows: list[Row | None] = list(rows)
        device = decoder.device
        lengths = [len(request.token_ids) for request in requests]
        self.width = max(lengths)
        steps = max(row.limit for row in rows)
        longest = self.width + steps
        self.ready_mask = takes_ready_mask(decoder.model.config, longest)
        self.compiled = decoder.compiles(longest)
        ids = [[0] * (self.width - len(r.token_ids)) + list(r.token_ids) for r in requests]
        keys = [noise_key(self.settings.sampling.seed, r.prompt_id, r.sample) for r in requests]
        if self.compiled:
            padded_rows, longest = static_shape(len(rows), longest)
            unused = padded_rows - len(rows)
            ids, lengths, keys = ([*x, *[x[-1]] * unused] for x in (ids, lengths, keys))
            self.rows += [None] * unused
            self.cache = decoder.static_cache_for(len(ids), longest)
        else:
            self.cache = decoder.new_cache(longest)
        self.token_ids = torch.tensor(ids, device=device)
        self.lengths = torch.tensor(lengths, device=device)
        self.keys = torch.tensor(keys, dtype=torch.int32, device=device)
        columns = torch.arange(longest, device=device)
        self.mask = columns[None, :] >= (self.width - self.lengths)[:, None]
        self.padded = min(lengths) < self.width
        self.seen = self._seen_tokens()
        self.chosen = 0

    @property
    def running(self) -> bool:
        """Whether any row goes on."""
        return any(row is not None and not row.finish_reason for row in self.rows)

    def most_steps_left(self) -> int:
        """Steps until the last running row reaches its limit."""
        running = [row for row in self.rows if row is not None and not row.finish_reason]
        return max(row.limit - len(row.generated) for row in running)

    def prefill(self) -> Tensor:
        """Run the prompts; logits of each row's first new token."""
        mask = self.mask[:, : self.width]
        positions = (mask.long().cumsum(dim=-1) - 1).clamp_(min=0)
        return self.decoder.forward(self.token_ids, positions, mask.long(), self.cache)

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token [batch] to each row; logits of the next."""
        positions = (self.lengths + (self.chosen - 1))[:, None]
        end = self.width + self.chosen
        work = self.decoder.work
        work.steps += 1
        if self.compiled:
            columns = torch.arange(self.mask.shape[1], device=self.mask.device)
            mask = (self.mask & (columns < end))[:, None, None, :]
            return self.decoder.compiled_forward(tokens[:, None], positions, mask, self.cache)
        shown = self.mask[:, :end]
        if not self.ready_mask:
            return self.decoder.forward(tokens[:, None], positions, shown.long(), self.cache)
        # Without padding every cached token counts: no mask lets the fastest kernel run.
        ready = shown[:, None, None, :] if self.padded else self._no_mask(shown)
        return self.decoder.forward(tokens[:, None], positions, ready, self.cache)

    def choose(self, logits: Tensor) -> Tensor:
        """Sample a token [batch] from logits [batch, vocabulary]."""
        sampling = self.settings.sampling
        at = torch.full_like(self.lengths, self.chosen, dtype=torch.int32)
        tokens = sample_tokens(logits, sampling, self.keys, at, self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        self.chosen += 1
        return tokens

    def collect(self, chosen: list[Tensor]) -> list[Row]:
        """Hand the chosen tokens [batch] to their rows; the rows that ended."""
        finished: list[Row] = []
        work = self.decoder.work
        for step in torch.stack(chosen).tolist():
            for row, token in zip(self.rows, step, strict=True):
                if row is None or row.finish_reason:
                    continue
                row.append(token)
                work.generated_tokens += 1
                if len(row.generated) > 1:  # the first token came from the prefill
                    work.decoded_tokens += 1
                    work.decode_attended += row.prompt_length + len(row.generated) - 1
                if row.finish_reason:
                    finished.append(row)
        return finished

    def drop_finished(self, tokens: Tensor) -> Tensor:
        """Shrink the batch to its running rows once enough have ended; their last tokens.

        A compiled batch stays as it is: other rows would mean another cache and another compile.
        """
        kept = [i for i, row in enumerate(self.rows) if row is not None and not row.finish_reason]
        if self.compiled or not kept or len(kept) > COMPACT_BELOW * len(self.rows):
            return tokens
        indices = torch.tensor(kept, device=tokens.device)
        self.rows = [self.rows[i] for i in kept]
        self.cache.batch_select_indices(indices)
        self.mask, self.lengths = self.mask[indices], self.lengths[indices]
        self.keys = self.keys[indices]
        self.seen = None if self.seen is None else self.seen[indices]
        return tokens[indices]

    def _seen_tokens(self) -> Tensor | None:
        if self.settings.sampling.repetition_penalty == 1.0:
            return None
        vocabulary = self.decoder.model.config.get_text_config().vocab_size
        seen = torch.zeros(len(self.rows), vocabulary, dtype=torch.bool, device=self.mask.device)
        # Padding counts as the row's last token: on a GPU nothing says which of several writes to
        # one place wins, so all must write the same.
        shown = self.mask[:, : self.width]
        tokens = torch.where(shown, self.token_ids, self.token_ids[:, -1:])
        return seen.scatter_(1, tokens, True)

    def _no_mask(self, shown: Tensor) -> Tensor | None:
        # Falcon's attention insists on a mask.
        if self.decoder.model.config.model_type == "falcon":
            return shown[:, None, None, :]
        return None
