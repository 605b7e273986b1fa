"""Log-probabilities of token sequences under a GGUF model.

    from llm_recipes.gguf.scoring import score, score_all
    scores = score(context, token_ids, first=1)   # scores.logprobs.sum(), scores.best

Sequences are computed side by side in the context's slots, and beginnings that they share once.
Only the logits that are asked for leave the model, a bounded number at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from llm_recipes.errors import LLMError
from llm_recipes.gguf.model import GgufContext, Logits
from llm_recipes.gguf.shared_prefixes import Branch, Target, Tokens, common_length, plan

LOGIT_BYTES = 2**28  # of a call's logits at most: llama.cpp keeps them all until the next call
BLOCK_BYTES = 2**20  # of logits whose softmax is computed at once: they stay in the CPU's cache
# Copying takes a sequence's whole room; computing less than this is as fast.
WORTH_COPYING = 64
NO_TOKENS: Tokens = np.empty(0, np.int32)

Request: TypeAlias = tuple[Sequence[int], int]
Numbers: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


@dataclass(frozen=True, eq=False)
class Scores:
    """Of a sequence's tokens from a position on.

    logprobs: natural logarithm of each token's probability after those before it, float64 [n].
    best: the likeliest token at each of these places, int32 [n].
    """

    logprobs: Numbers
    best: Numbers


def score(context: GgufContext, ids: Sequence[int], first: int = 1) -> Scores:
    """Log-probabilities of `ids[first:]`; the context's cells are emptied.

    Args:
        context: Room for the sequence's tokens without the last.
        ids: Token ids, as the tokenizer made them: nothing is put in front.
        first: Position of the first token that counts, at least 1: something must come before it.

    Raises:
        LLMError: If the context has no room for it.
    """
    [(_, scores)] = score_all(context, [(ids, first)])
    return scores


def score_all(context: GgufContext, requests: Sequence[Request]) -> Iterator[tuple[int, Scores]]:
    """As `score` for many sequences, several at once; the context's cells are emptied.

    Args:
        context: Room for the longest; it computes as many at once as it has sequences.
        requests: Token ids and the position of the first token that counts, of each.

    Returns:
        Number of the request and its scores, each as soon as it is known: in any order.

    Raises:
        LLMError: If the context has no room for one of them.
        ValueError: If a first position is not within 1 to the sequence's length.
    """
    for ids, first in requests:
        if not 1 <= first <= len(ids):
            raise ValueError(f"position {first} of {len(ids)} tokens has nothing to be scored")
    longest = max((len(ids) - 1 for ids, _ in requests), default=0)
    if longest > context.tokens:
        why = f"it needs room for {longest} tokens and the context has {context.tokens}"
        fix = "raise --context, or shorten the text"
        raise LLMError(f"a sequence of {longest + 1} tokens is too long to score", why, fix)
    return _Scoring(context, requests).run()


class _Slot:
    """One of the context's sequences: what its cells hold, and the branches that are to come.

    held: the tokens of the cells, in order. branch: what is computed now; done is held then.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.held = NO_TOKENS
        self.branch: Branch | None = None
        self.waiting: deque[Branch] = deque()

    @property
    def coming(self) -> Tokens:
        """What the cells will hold when the branch is computed."""
        return self.held if self.branch is None else self.branch.tokens


@dataclass(frozen=True)
class _Chunk:
    """Positions start to end of a slot's branch, computed in the next call."""

    slot: _Slot
    branch: Branch
    start: int
    end: int


class _Scoring:
    """A run over all requests; cells of the context are its own while it goes on."""

    def __init__(self, context: GgufContext, requests: Sequence[Request]) -> None:
        self.context = context
        self.slots = [_Slot(number) for number in range(context.settings.sequences)]
        self.queue = deque(plan(requests, len(self.slots)))
        self.rows = max(1, LOGIT_BYTES // (4 * context.model.vocabulary))
        self.missing = [len(ids) - first for ids, first in requests]
        self.scores = [Scores(np.empty(n), np.empty(n, np.int32)) for n in self.missing]
        self.ready = [index for index, count in enumerate(self.missing) if not count]

    def run(self) -> Iterator[tuple[int, Scores]]:
        """Compute until nothing is left."""
        self.context.forget(-1)
        try:
            yield from self._take_ready()
            while self._start_branches():
                chunks = self._next_chunks()
                self._collect(chunks, self._decode(chunks))
                yield from self._take_ready()
        finally:
            self.context.forget(-1)

    def _take_ready(self) -> Iterator[tuple[int, Scores]]:
        ready, self.ready = self.ready, []
        for index in ready:
            yield index, self.scores[index]

    def _start_branches(self) -> bool:
        """Give idle slots their next branch; whether there is anything to compute."""
        for slot in self.slots:
            if slot.branch is None and slot.waiting:
                self._begin(slot, slot.waiting.popleft())
        while self.queue:
            chosen = self._slot_for(self.queue[0][0].tokens)
            if chosen is None:
                break
            chosen.waiting.extend(self.queue.popleft())
            self._begin(chosen, chosen.waiting.popleft())
        return any(slot.branch for slot in self.slots)

    def _slot_for(self, tokens: Tokens) -> _Slot | None:
        """The idle slot that holds most of a run's beginning, or a copy of it; None: wait.

        It is worth to wait for a beginning that another slot is computing.
        """
        idle = [slot for slot in self.slots if slot.branch is None]
        if not idle:
            return None
        known = {slot: common_length(slot.held, tokens) for slot in self.slots}
        best = max(idle, key=lambda slot: (known[slot], -len(slot.held)))
        source = max(self.slots, key=lambda slot: known[slot])
        expected = max(common_length(slot.coming, tokens) for slot in self.slots)
        if expected - known[source] >= WORTH_COPYING:
            return None
        if known[source] - known[best] >= WORTH_COPYING:
            # The one with least to lose; it is emptied by the copy.
            best = min(idle, key=lambda slot: len(slot.held))
            self.context.copy(source.number, best.number)
            best.held = source.held
        return best

    def _begin(self, slot: _Slot, branch: Branch) -> None:
        """Keep what the slot's cells have of a branch; logits are only had of computed tokens."""
        kept = min(common_length(slot.held, branch.tokens), branch.first_target)
        if kept < len(slot.held) and not self.context.forget(slot.number, kept):
            # A recurrent model's state can't be taken back: all is computed again.
            self.context.forget(slot.number)
            kept = 0
        slot.held = branch.tokens[:kept]
        slot.branch = branch

    def _next_chunks(self) -> list[_Chunk]:
        """What fits into a call, slot after slot: llama.cpp wants their numbers to rise."""
        room, rows = self.context.batch, self.rows
        chunks = []
        for slot in self.slots:
            if slot.branch is None or not room or not rows:
                continue
            start = len(slot.held)
            end = min(start + room, len(slot.branch.tokens))
            wanted = sorted(p for p in slot.branch.targets if start <= p < end)
            if len(wanted) > rows:
                end = wanted[rows]
            rows -= min(rows, len(wanted))
            room -= end - start
            chunks.append(_Chunk(slot, slot.branch, start, end))
        return chunks

    def _decode(self, chunks: Sequence[_Chunk]) -> Logits:
        positions = np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])
        tokens = np.concatenate([chunk.branch.tokens[chunk.start : chunk.end] for chunk in chunks])
        numbers = [chunk.slot.number for chunk in chunks]
        sequences = np.repeat(numbers, [chunk.end - chunk.start for chunk in chunks])
        wanted = [
            position in chunk.branch.targets
            for chunk in chunks
            for position in range(chunk.start, chunk.end)
        ]
        return self.context.decode(tokens, positions, sequences, wanted)

    def _collect(self, chunks: Sequence[_Chunk], logits: Logits) -> None:
        """Take the targets of the computed positions and go on with the slots."""
        asked: list[tuple[int, Target]] = []
        row = 0
        for chunk in chunks:
            for position in range(chunk.start, chunk.end):
                targets = chunk.branch.targets.get(position)
                if targets is not None:
                    asked += [(row, target) for target in targets]
                    row += 1
            chunk.slot.held = chunk.branch.tokens[: chunk.end]
            if chunk.end == len(chunk.branch.tokens):
                chunk.slot.branch = None
        rows = np.array([row for row, _ in asked], np.int64)
        tokens = np.array([target.token for _, target in asked], np.int64)
        values, best = _log_probabilities(logits, rows, tokens)
        for place, (_, target) in enumerate(asked):
            scores = self.scores[target.request]
            scores.logprobs[target.place] = values[place]
            scores.best[target.place] = best[place]
            self.missing[target.request] -= 1
            if not self.missing[target.request]:
                self.ready.append(target.request)


def _log_probabilities(logits: Logits, rows: Numbers, tokens: Numbers) -> tuple[Numbers, Numbers]:
    """Log-probability of `tokens` in `rows` of logits [n, vocabulary], and those most likely."""
    count, vocabulary = logits.shape
    normalizers, best = np.empty(count), np.empty(count, np.int32)
    block = max(1, BLOCK_BYTES // (4 * vocabulary))
    for start in range(0, count, block):
        part = torch.from_numpy(logits[start : start + block])
        end = start + len(part)
        normalizers[start:end] = part.logsumexp(dim=1).numpy()
        best[start:end] = part.argmax(dim=1).numpy()
    chosen = logits[rows, tokens].astype(np.float64)
    return chosen - normalizers[rows], best[rows]
