"""Generate completions with a GGUF model: a sequence that ends makes room for the next at once.

    from llm_recipes.gguf.decoder import GgufDecoder
    for completion in GgufDecoder(context, tokenizer, settings).complete(requests): ...

Continuous batching over llama.cpp's batch calls: each call computes one token of every running
sequence; a free place is filled with the next prompt. Sampling, stop strings and limits are those
of the transformers recipe, so the same logits give the same completions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llm_recipes.decoding import Completion, DecodeSettings, Request, Work
from llm_recipes.gguf.model import GgufContext, Logits
from llm_recipes.gguf.tokenizer import GgufTokenizer
from llm_recipes.sampling import noise_key, sample_tokens
from llm_recipes.stopping import Row


@dataclass
class _Running:
    """A sequence in its place of the context. used: its tokens that were computed."""

    request: Request
    row: Row
    key: tuple[int, int]
    used: int = 0
    last: int = -1


class GgufDecoder:
    """A context that completes requests; counts its work.

    The interface is that of `llm_recipes.decoding.Decoder`, as far as recipes use it.
    """

    def __init__(
        self, context: GgufContext, tokenizer: GgufTokenizer, settings: DecodeSettings
    ) -> None:
        self.context = context
        self.tokenizer = tokenizer
        self.settings = settings
        self.work = Work()

    def complete(
        self, requests: Sequence[Request], on_text: Callable[[str], None] | None = None
    ) -> Iterator[Completion]:
        """Complete requests, as many at once as the context has sequences.

        Args:
            requests: Started in this order; each must fit into a sequence of the context.
            on_text: Called with each new piece of text; for a single request.

        Yields:
            Each completion as soon as it has ended.

        Raises:
            LLMError: If the computation fails.
        """
        waiting = deque(requests)
        running: list[_Running] = []
        self.context.forget(-1)
        try:
            while waiting or running:
                started = self._take(waiting, len(running), on_text)
                if started:
                    self._prefill(started, len(running))
                    running += started
                else:
                    self._step(running)
                for one in running:
                    if one.row.finish_reason:
                        yield _completion(one)
                self._close_gaps(running)
        finally:
            self.context.forget(-1)

    def forget_cache(self) -> None:
        """Nothing to let go: the context has all its memory from the beginning."""

    def reset_work(self) -> None:
        """Count from zero again."""
        self.work = Work()

    def _take(
        self,
        waiting: deque[Request],
        running: int,
        on_text: Callable[[str], None] | None,
    ) -> list[_Running]:
        """Prompts for the free places, at most a batch of tokens; a long one comes alone."""
        started: list[_Running] = []
        tokens = 0
        while waiting and running + len(started) < self.context.settings.sequences:
            length = len(waiting[0].token_ids)
            if started and tokens + length > self.context.batch:
                break
            request = waiting.popleft()
            place = running + len(started)
            row = Row(place, request.token_ids, self.tokenizer, self.settings, on_text)
            key = noise_key(self.settings.sampling.seed, request.prompt_id, request.sample)
            started.append(_Running(request, row, key))
            tokens += length
        return started

    def _prefill(self, started: list[_Running], first: int) -> None:
        """Compute prompts and their first tokens; of equal prompts one, for all their samples."""
        start = time.perf_counter()
        originals: dict[tuple[int, ...], int] = {}
        computed: list[_Running] = []
        for place, new in enumerate(started, start=first):
            if originals.setdefault(new.request.token_ids, place) == place:
                computed.append(new)
        logits = self._compute_prompts(computed, originals)
        rows = {ids: row for row, ids in enumerate(originals)}
        for place, new in enumerate(started, start=first):
            new.used = len(new.request.token_ids)
            original = originals[new.request.token_ids]
            if original != place:
                self.context.copy(original, place)
        if len(computed) < len(started):
            logits = logits[[rows[new.request.token_ids] for new in started]]
        self._choose(started, logits)
        self._count_prefill(computed, len(started), time.perf_counter() - start)

    def _compute_prompts(
        self, prompts: list[_Running], places: dict[tuple[int, ...], int]
    ) -> Logits:
        """Logits of what follows each prompt; a prompt longer than a batch comes alone."""
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        last: list[bool] = []
        for prompt in prompts:
            length = len(prompt.request.token_ids)
            ids += prompt.request.token_ids
            positions += range(length)
            sequences += [places[prompt.request.token_ids]] * length
            last += [False] * (length - 1) + [True]
        size = self.context.batch
        for offset in range(0, len(ids), size):
            part = slice(offset, offset + size)
            logits = self.context.decode(ids[part], positions[part], sequences[part], last[part])
        return logits

    def _count_prefill(self, computed: list[_Running], started: int, seconds: float) -> None:
        lengths = [prompt.used for prompt in computed]
        self.work.prefills += 1
        self.work.prefill_s += seconds
        self.work.first_token_s += [seconds] * started
        self.work.prompt_tokens += sum(lengths)
        self.work.prompt_attended += sum(length * (length + 1) // 2 for length in lengths)

    def _step(self, running: list[_Running]) -> None:
        """One more token of every running sequence."""
        start = time.perf_counter()
        count = len(running)
        logits = self.context.decode(
            [one.last for one in running],
            [one.used for one in running],
            range(count),
            [1] * count,
        )
        for one in running:
            one.used += 1
        self._choose(running, logits)
        self.work.decode_s += time.perf_counter() - start
        self.work.steps += 1
        self.work.decoded_tokens += count
        self.work.decode_attended += sum(one.used for one in running)

    def _choose(self, rows: list[_Running], logits: Logits) -> None:
        """Append the next token of each row."""
        sampling = self.settings.sampling
        tensor = torch.from_numpy(logits)
        if sampling.temperature == 0.0 and sampling.repetition_penalty == 1.0:
            chosen = tensor.argmax(dim=-1)
        else:
            seen = self._seen(rows, logits.shape[1]) if sampling.repetition_penalty != 1 else None
            keys = torch.tensor([one.key for one in rows], dtype=torch.int32)
            positions = torch.tensor([len(one.row.generated) for one in rows], dtype=torch.int32)
            chosen = sample_tokens(tensor, sampling, keys, positions, seen)
        for one, token in zip(rows, chosen.tolist(), strict=True):
            one.last = token
            one.row.append(token)
        self.work.generated_tokens += len(rows)

    def _seen(self, rows: list[_Running], vocabulary: int) -> torch.Tensor:
        seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
        for index, one in enumerate(rows):
            seen[index, [*one.request.token_ids, *one.row.generated]] = True
        return seen

    def _close_gaps(self, running: list[_Running]) -> None:
        """Give the places of sequences that ended to the last ones.

        llama.cpp computes sequences of neighbouring numbers together, and others one by one.
        """
        place = 0
        while place < len(running):
            if not running[place].row.finish_reason:
                place += 1
                continue
            self.context.forget(place)
            moved = running.pop()
            if place < len(running):
                self.context.copy(len(running), place)
                self.context.forget(len(running))
                running[place] = moved


def _completion(one: _Running) -> Completion:
    return Completion(one.request, tuple(one.row.generated), one.row.text(), one.row.finish_reason)
