"""An order for scoring many sequences in which what they have in common is computed once.

Multiple-choice questions come as sequences with the same beginning: the examples of the task, the
question, and only then the choices. Sorted by their tokens, each sequence shares its longest
beginning with the one before it; a branch is what it adds, and it is computed behind the part of
the branch before that it keeps.

    from llm_recipes.gguf.shared_prefixes import plan
    for branches in plan(requests, slots=8): ...
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Tokens: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"
RUNS_A_SLOT = 4  # so that the slots end at about the same time


@dataclass(frozen=True)
class Target:
    """A log-probability that is asked for: of `token`, for a request's place in its answer."""

    request: int
    place: int
    token: int


@dataclass(frozen=True)
class Branch:
    """A sequence of which the first `start` tokens are those of the branch before.

    tokens: all of them, from position 0. targets: what is asked of the logits behind a position;
    positions before `start` are never among them.
    """

    tokens: Tokens
    start: int
    targets: dict[int, list[Target]] = field(default_factory=dict)

    @property
    def first_target(self) -> int:
        """The first position whose logits are asked for."""
        return min(self.targets, default=len(self.tokens))


def common_length(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    shorter = min(len(one), len(other))
    differing = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differing[0]) if len(differing) else shorter


def plan(requests: Sequence[tuple[Sequence[int], int]], slots: int) -> list[list[Branch]]:
    """Runs of branches that cover all requests; each run is for one slot of a context.

    Args:
        requests: Token ids of a sequence, and the position from which log-probabilities are wanted.
        slots: Sequences that are computed side by side.

    Returns:
        Runs, in an order in which neighbours have the longest beginnings in common.
    """
    # What the last token is followed by is not asked, so it isn't computed.
    inputs = [np.asarray(ids[:-1], dtype=np.int32) for ids, _ in requests]
    asked = [index for index, (ids, first) in enumerate(requests) if first < len(ids)]
    if not asked:
        return []
    # Bytes of big-endian numbers compare as the numbers do, and much faster than lists of them.
    order = sorted(asked, key=lambda index: inputs[index].astype(">i4").tobytes())
    pairs = itertools.pairwise(order)
    shared = [0, *(common_length(inputs[before], inputs[index]) for before, index in pairs)]
    new = [len(inputs[index]) - common for index, common in zip(order, shared, strict=True)]
    most = max(1, sum(new) // (slots * RUNS_A_SLOT))
    return [
        _branches(requests, inputs, order[start:end], shared[start:end])
        for start, end in _runs(new, most)
    ]


def _runs(new: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of the order: a run ends when it has its share of work.

    A sequence that adds nothing to the one before stays with it: its logits are the same.
    """
    start = work = 0
    for index, added in enumerate(new):
        if added and work >= most:
            yield start, index
            start, work = index, 0
        work += added
    yield start, len(new)


def _branches(
    requests: Sequence[tuple[Sequence[int], int]],
    inputs: Sequence[Tokens],
    order: Sequence[int],
    shared: Sequence[int],
) -> list[Branch]:
    branches: list[Branch] = []
    owners: list[Branch] = []  # which branch computes each position of the current sequence
    for place, (index, common) in enumerate(zip(order, shared, strict=True)):
        ids, first = requests[index]
        tokens = inputs[index]
        del owners[common:]
        if place == 0 or common < len(tokens):
            branch = Branch(tokens, common if place else 0)
            branches.append(branch)
            owners += [branch] * (len(tokens) - len(owners))
        for position in range(first - 1, len(tokens)):
            target = Target(index, position - first + 1, int(ids[position + 1]))
            owners[position].targets.setdefault(position, []).append(target)
    return branches
