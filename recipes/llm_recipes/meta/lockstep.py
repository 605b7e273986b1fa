"""One model in several processes: the first decides, the others do what it does.

Rank 0 runs the whole program: it reads prompts, makes batches, samples, stops, writes answers.
Before each call of the model it tells the others which call and with what (tokens, not logits), so
that all make the same calls in the same order, which the collectives inside the model need. As no
decision is made twice, nothing has to be equal by chance: there is one seed, one batch size, one
clock. A decode step costs one small broadcast, a prefill two; one process alone sends nothing.

    with leading(ranks, part, most_rows, shielded) as model: ...    # rank 0
    status = follow(ranks, part, most_rows)                         # the others

Commands go through gloo, on the CPU, whatever the model's own collectives use: on a GPU each step
waits for its tokens.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from llm_recipes.cli import INTERRUPTED, Terminated
from llm_recipes.errors import USER_MISTAKE, LLMError
from llm_recipes.meta.leaving import finish_in_spite_of_sigterm, signals_wait
from llm_recipes.ranks import Ranks, is_gone, let_another_speak

HEADER = 3  # numbers of a command before its tokens: kind and two more
# A follower waits for a command as long as a person at the terminal thinks.
PATIENCE = datetime.timedelta(days=365)
Found = TypeVar("Found")


class Part(Protocol):
    """This rank's part of a model: what the commands do."""

    def load(self) -> list[dict[str, Any]]:
        """Load the weights; facts of every rank's part, on all ranks. All fail together."""

    def allocate(self, rows: int, tokens: int) -> None:
        """Make room for keys and values. All fail together."""

    def prefill(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Begin a batch with prompts [rows, width], left-padded; logits [rows, vocabulary]."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token [rows] to each row; logits [rows, vocabulary]."""

    def keep(self, indices: Tensor) -> None:
        """Only these rows of the batch go on."""

    def measure(self) -> list[dict[str, int]]:
        """The memory's peaks of every rank, on all ranks."""


class Command(IntEnum):
    """What the others are told to do."""

    END, LOAD, ALLOCATE, PREFILL, STEP, KEEP, MEASURE = range(7)


class End(IntEnum):
    """Why all come to their end."""

    DONE, FAILED, INTERRUPTED = range(3)


class Channel:
    """How commands get from rank 0 to the others.

    most_rows: of a batch; the same on all ranks, as it is the length of a command.
    """

    def __init__(self, ranks: Ranks, most_rows: int) -> None:
        self.alone = ranks.count == 1
        self._command = torch.zeros(HEADER + most_rows, dtype=torch.int64)
        self._group: Any = None
        if not self.alone:
            self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def send(
        self, kind: Command, first: int = 0, second: int = 0, row: Tensor | None = None
    ) -> None:
        """Tell the others; row: up to most_rows tokens or indices."""
        self._command[:HEADER] = torch.tensor([kind, first, second])
        if row is not None:
            self._command[HEADER : HEADER + len(row)] = row
        self._broadcast(self._command)

    def receive(self) -> tuple[Command, int, int, Tensor]:
        """The next command: kind, two numbers, and as many tokens as the first of them says."""
        self._broadcast(self._command)
        kind, first, second = self._command[:HEADER].tolist()
        row = self._command[HEADER : HEADER + first].clone()
        return Command(kind), first, second, row

    def send_prompts(self, ids: Tensor, lengths: Tensor) -> None:
        """The tokens [rows, width] of a prefill and the rows' lengths."""
        self._broadcast(torch.cat([ids.cpu(), lengths.cpu()[:, None]], dim=1))

    def receive_prompts(self, rows: int, width: int) -> tuple[Tensor, Tensor]:
        """What `send_prompts` sends."""
        table = torch.zeros(rows, width + 1, dtype=torch.int64)
        self._broadcast(table)
        return table[:, :width].contiguous(), table[:, width].contiguous()

    def _broadcast(self, table: Tensor) -> None:
        torch.distributed.broadcast(table, src=0, group=self._group)


class Leader:
    """The whole model as rank 0 sees it: each call is one of all ranks.

    shielded: Ctrl-C and SIGTERM wait for the end of a call. Collectives of GPUs hang if one rank
    leaves between two of them; those of gloo raise, and a call may take long on a CPU.
    """

    def __init__(self, channel: Channel, part: Part, shielded: bool) -> None:
        self._channel = channel
        self._part = part
        self._shielded = shielded and not channel.alone
        self._busy = False

    def load(self) -> list[dict[str, Any]]:
        """Load the weights of all ranks; facts of every rank's part."""
        return self._call(self._part.load, Command.LOAD)

    def allocate(self, rows: int, tokens: int) -> None:
        """Make room for keys and values."""
        self._call(lambda: self._part.allocate(rows, tokens), Command.ALLOCATE, rows, tokens)

    def prefill(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Begin a batch with prompts [rows, width], left-padded; logits [rows, vocabulary]."""

        def work() -> Tensor:
            if not self._channel.alone:
                self._channel.send_prompts(ids, lengths)
            return self._part.prefill(ids, lengths)

        return self._call(work, Command.PREFILL, *ids.shape)

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token [rows] to each row; logits [rows, vocabulary]."""
        return self._call(lambda: self._part.step(tokens), Command.STEP, len(tokens), row=tokens)

    def keep(self, indices: Tensor) -> None:
        """Only these rows of the batch go on."""
        self._call(lambda: self._part.keep(indices), Command.KEEP, len(indices), row=indices)

    def measure(self) -> list[dict[str, int]]:
        """The memory's peaks of every rank; empty if an earlier call has not come to its end."""
        if self._busy and not self._channel.alone:
            return []
        return self._call(self._part.measure, Command.MEASURE)

    def end(self, why: End) -> None:
        """Let the others go. In the middle of a call they don't listen: they see this rank leave.

        Whatever is wrong with them by now, it must not hide what ended this rank.
        """
        if not self._channel.alone and not self._busy:
            with contextlib.suppress(RuntimeError):
                self._channel.send(Command.END, why)

    def _call(
        self,
        work: Callable[[], Found],
        kind: Command,
        first: int = 0,
        second: int = 0,
        row: Tensor | None = None,
    ) -> Found:
        try:
            with signals_wait() if self._shielded else contextlib.nullcontext():
                self._busy = True
                if not self._channel.alone:
                    self._channel.send(kind, first, second, row)
                found = work()
                self._busy = False
        except RuntimeError as error:
            if is_gone(error):
                finish_in_spite_of_sigterm()
            raise
        return found


@contextlib.contextmanager
def leading(ranks: Ranks, part: Part, most_rows: int, shielded: bool) -> Iterator[Leader]:
    """The model for rank 0; whatever ends the block, the others end too."""
    leader = Leader(Channel(ranks, most_rows), part, shielded)
    why = End.FAILED
    try:
        yield leader
        why = End.DONE
    except (KeyboardInterrupt, Terminated):
        why = End.INTERRUPTED
        raise
    finally:
        leader.end(why)


def follow(ranks: Ranks, part: Part, most_rows: int) -> int:
    """Do what rank 0 says until it ends; the exit status.

    Raises:
        LLMError: If this rank alone fails, such as for lack of memory.
    """
    channel = Channel(ranks, most_rows)
    with torch.no_grad():
        while True:
            kind, first, second, row = channel.receive()
            if kind is Command.END:
                return _status(End(first))
            try:
                _do(channel, part, kind, first, second, row)
            except LLMError:
                # Where memory ends, it may end for all at once: the first to say so is enough.
                let_another_speak(float(ranks.index))
                raise


def _status(why: End) -> int:
    """The exit status of a follower when all have come to their end."""
    if why is End.FAILED:  # rank 0 is about to say more
        let_another_speak()
    return {End.DONE: 0, End.FAILED: USER_MISTAKE, End.INTERRUPTED: INTERRUPTED}[why]


def _do(channel: Channel, part: Part, kind: Command, first: int, second: int, row: Tensor) -> None:
    if kind is Command.PREFILL:
        part.prefill(*channel.receive_prompts(first, second))
    elif kind is Command.STEP:
        part.step(row)
    elif kind is Command.KEEP:
        part.keep(row)
    elif kind is Command.ALLOCATE:
        part.allocate(first, second)
    elif kind is Command.LOAD:
        part.load()
    elif kind is Command.MEASURE:
        part.measure()
