"""Generate completions for a batch of prompts: one prefill, then a token a row and step.

transformers' own `generate` spends more time around the model than in it when the model is small
or the GPU fast. Here a step is the model's forward, `sample_tokens` and little else: masks and
positions are made once, the cache has room ahead and finished rows leave the batch. On a GPU the
step may be compiled into a CUDA graph over a static cache; such a batch keeps its rows to the end.

    from llm_recipes.decoding import Decoder, DecodeSettings, Request
    for completion in Decoder(model, tokenizer, settings).complete(requests): ...
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_recipes.device import is_out_of_memory
from llm_recipes.kv_cache import cache_bytes, growing_cache, rewind, static_cache
from llm_recipes.model_folder import first_line
from llm_recipes.running_batch import RunningBatch, takes_ready_mask
from llm_recipes.sampling import Sampling
from llm_recipes.stopping import Row

STEPS_BETWEEN_CHECKS = 8  # on a GPU: looking at the tokens waits for it
# Shapes that torch compiles before it goes on without a word uncompiled; its own 8 are less than a
# run's batches may have: rows 1 to 256 by lengths 256 to 131072, in powers of two.
MOST_SHAPES = 9 * 10


@dataclass(frozen=True)
class Request:
    """One completion to make: sample number `sample` of a prompt."""

    prompt_id: str
    sample: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class DecodeSettings:
    """What ends a completion and how its tokens are chosen.

    max_new_tokens: at most, a completion. stop: texts that end it and are cut off.
    stop_token_ids: tokens that end it. context: tokens that the model can see, None if unlimited.
    compiled: static cache and compiled steps.
    """

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    context: int | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Completion:
    """A finished request. token_ids includes the stop token; finish_reason: stop or length."""

    request: Request
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str


@dataclass
class Work:
    """What was done, for the summary: seconds, tokens without padding, steps, attended tokens.

    prompt_attended and decode_attended sum over all computed tokens the context each one saw.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    decoded_tokens: int = 0
    steps: int = 0
    prefills: int = 0
    prompt_attended: int = 0
    decode_attended: int = 0


class StreamingDecoder(Protocol):
    """What completes a single request and shows its text as it comes, whatever the engine."""

    settings: DecodeSettings

    def complete(
        self, requests: Sequence[Request], on_text: Callable[[str], None] | None = None
    ) -> Iterator[Completion]:
        """Complete requests; yields each completion as soon as it has ended."""

    def forget_cache(self) -> None:
        """Let go of memory that only makes the next batch faster."""


class Decoder:
    """A loaded model that completes batches; counts its work.

    compiled: whether steps are compiled; False from the start if the model does not allow it, and
    from then on if compiling failed.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: DecodeSettings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.device: torch.device = model.device
        self.work = Work()
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keep_last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.compiled = settings.compiled and takes_ready_mask(model.config, longest=1)
        self._static: tuple[tuple[int, int], Any] | None = None
        self._step: Callable[..., Tensor] | None = None
        self._shapes: set[torch.Size] = set()

    def complete(
        self, requests: Sequence[Request], on_text: Callable[[str], None] | None = None
    ) -> Iterator[Completion]:
        """Complete a batch; yields each completion as soon as it has ended.

        Args:
            requests: The batch, run at once.
            on_text: Called with each new piece of text; for a batch of one.

        Raises:
            torch.OutOfMemoryError, RuntimeError, MemoryError: If the batch is too large.
        """
        rows = [
            Row(index, request.token_ids, self.tokenizer, self.settings, on_text)
            for index, request in enumerate(requests)
        ]
        for row in self._decode(requests, rows, every_step=on_text is not None):
            request = requests[row.index]
            yield Completion(request, tuple(row.generated), row.text(), row.finish_reason)

    @torch.no_grad()
    def _decode(
        self, requests: Sequence[Request], rows: list[Row], every_step: bool
    ) -> Iterator[Row]:
        start = time.perf_counter()
        batch = RunningBatch(self, requests, rows)
        tokens = batch.choose(batch.prefill())
        yield from batch.collect([tokens])
        self._count_prefill(requests, time.perf_counter() - start)
        interval = 1 if every_step or self.device.type == "cpu" else STEPS_BETWEEN_CHECKS
        while batch.running:
            start = time.perf_counter()
            chosen = []
            for _ in range(min(interval, batch.most_steps_left())):
                tokens = batch.choose(batch.step(tokens))
                chosen.append(tokens)
            finished = batch.collect(chosen)
            tokens = batch.drop_finished(tokens)
            self.work.decode_s += time.perf_counter() - start
            yield from finished

    def _count_prefill(self, requests: Sequence[Request], seconds: float) -> None:
        lengths = [len(request.token_ids) for request in requests]
        self.work.prefills += 1
        self.work.prefill_s += seconds
        self.work.first_token_s.append(seconds)
        self.work.prompt_tokens += sum(lengths)
        self.work.prompt_attended += sum(length * (length + 1) // 2 for length in lengths)

    def forward(
        self, token_ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Any
    ) -> Tensor:
        """Logits of the last token, [batch, vocabulary]."""
        arguments: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        output = self.model(
            input_ids=token_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **self._keep_last,
            **arguments,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def compiles(self, longest: int) -> bool:
        """Whether a batch of sequences of at most `longest` tokens runs compiled."""
        return self.compiled and takes_ready_mask(self.model.config, longest)

    def compiled_forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any
    ) -> Tensor:
        """`forward` as a CUDA graph; its result is overwritten by the next call."""
        if not self.compiled:  # it failed in an earlier step of this batch
            return self.forward(tokens, positions, mask, cache)
        if self._step is None:
            torch._dynamo.config.recompile_limit = MOST_SHAPES
            # Batches differ in size and length: each shape is compiled, none is made dynamic.
            self._step = torch.compile(self.forward, mode="reduce-overhead", dynamic=False)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if mask.shape not in self._shapes:
            return self._first_of_its_shape(self._step, tokens, positions, mask, cache)
        return self._step(tokens, positions, mask, cache)

    def _first_of_its_shape(
        self,
        step: Callable[..., Tensor],
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Any,
    ) -> Tensor:
        length = int(cache.get_seq_length())
        try:
            logits = step(tokens, positions, mask, cache)
        except Exception as error:  # no C compiler, an operator unknown to it: many types
            if is_out_of_memory(error):
                raise
            print(f"going on without compiling: {first_line(error)}", file=sys.stderr)
            self.compiled, self._step = False, None
            self.forget_cache()
            rewind(cache, length)
            return self.forward(tokens, positions, mask, cache)
        self._shapes.add(mask.shape)
        return logits

    def static_cache_for(self, batch: int, longest: int) -> Any:
        """The static cache of this shape, emptied: a new one would mean a new CUDA graph."""
        if self._static is not None and self._static[0] == (batch, longest):
            self._static[1].reset()
        else:
            self._static = ((batch, longest), static_cache(self.model.config, longest))
        return self._static[1]

    def new_cache(self, longest: int) -> Any:
        """A cache for a new batch of sequences of at most `longest` tokens.

        A model that holds its keys and values itself, such as one in several processes, makes it.
        """
        own = getattr(self.model, "new_cache", None)
        return growing_cache(self.model.config, longest) if own is None else own()

    def kept_bytes(self) -> int:
        """Bytes of the static cache that the next compiled batch reuses or replaces."""
        return 0 if self._static is None else cache_bytes(self._static[1])

    def reset_work(self) -> None:
        """Count from zero again."""
        self.work = Work()

    def forget_cache(self) -> None:
        """Let go of the static cache's memory."""
        self._static = None
