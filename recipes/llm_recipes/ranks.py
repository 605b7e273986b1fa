"""The processes of a training run: which one this is, sums over all of them, failing together.

    from llm_recipes.ranks import start_ranks
    ranks = start_ranks(use_gpus=True)

torchrun says who is who (RANK, WORLD_SIZE); without it there is one process.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_recipes.errors import USER_MISTAKE, LLMError

# Of a collective. The first rank prepares data and writes the final model while others wait.
TIMEOUT = datetime.timedelta(hours=2)
SEEN_SECONDS = 15  # for a file of another node to appear
# What gloo says when the process on the other end has ended.
GONE_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
)
# Until torchrun ends the others, after a rank has failed: for that rank to say why.
SECONDS_TO_SPEAK = 3.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class Ranks:
    """This process among all. index: its rank. local: its number on its node."""

    index: int = 0
    count: int = 1
    local: int = 0
    nodes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all: rank 0."""
        return self.index == 0

    def say(self, text: str) -> None:
        """Tell the user something, once for all ranks."""
        if self.is_first:
            print(text, file=sys.stderr, flush=True)

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks; on the CPU, so no GPU waits for it."""
        if self.count == 1:
            return list(numbers)
        import torch

        sums = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def of_all(self, found: Found) -> list[Found]:
        """What each rank has found, by rank, on all of them; anything that pickle knows."""
        if self.count == 1:
            return [found]
        import torch

        everything: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(everything, found)
        return everything

    def from_first(self, found: Found) -> Found:
        """What rank 0 has found, on all ranks; anything that pickle knows."""
        if self.count == 1:
            return found
        import torch

        sent = [found]
        torch.distributed.broadcast_object_list(sent, src=0)
        return sent[0]

    def least(self, number: float) -> float:
        """The smallest of all ranks' numbers."""
        own = [number if rank == self.index else 0.0 for rank in range(self.count)]
        return min(self.add_up(own))

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.add_up([0.0])

    def together(self, work: Callable[[], Found]) -> Found:
        """Do something on every rank; where it fails on one, all end, and one says why.

        A rank that ended alone would leave the others waiting for it.

        Raises:
            Exception: Of this rank's work, on the first rank that failed.
            SystemExit: On the others, with the status of a user's mistake.
        """
        failed: Exception | None = None
        try:
            found = work()
        except Exception as error:
            failed = error
        marks = [float(failed is not None and rank == self.index) for rank in range(self.count)]
        failures = self.add_up(marks)
        if not any(failures):
            return found
        if failed is not None and failures.index(1.0) == self.index:
            raise failed
        raise SystemExit(USER_MISTAKE)

    def first_does(self, work: Callable[[], object]) -> None:
        """Do something on rank 0 while the others wait; if it fails, all end.

        Raises:
            LLMError, ExceptionGroup, SystemExit: As `together`.
        """
        self.together(work if self.is_first else lambda: None)

    def first_decides(self, work: Callable[[], bool]) -> bool:
        """What rank 0 finds, on all ranks; if it fails there, all end.

        Raises:
            LLMError, ExceptionGroup, SystemExit: As `together`.
        """
        found = self.together(work if self.is_first else lambda: False)
        return self.add_up([float(found)])[0] > 0

    def check_shared(self, folder: Path) -> None:
        """See that all ranks find the same folder: shards of a checkpoint go there from each.

        Raises:
            LLMError, SystemExit: On every rank, if one of them doesn't see what the first wrote.
        """
        if self.nodes == 1:
            return
        token = folder / ".ranks"
        self.first_does(lambda: token.write_text("here\n", encoding="utf-8"))
        (missing,) = self.add_up([float(not _appears(token))])
        self.wait()
        if self.is_first:
            token.unlink(missing_ok=True)
        if missing and self.is_first:
            raise LLMError(
                f"{folder} is not the same folder on all nodes",
                f"{missing:.0f} of {self.count} processes don't see what the first one wrote there",
                "choose an --output on a file system that all nodes share",
            )
        if missing:
            raise SystemExit(USER_MISTAKE)


def _appears(path: Path) -> bool:
    """Whether a file that another node has just written is seen here within some seconds.

    Network file systems remember for a while that a file was not there; listing its folder asks.
    """
    for _ in range(SEEN_SECONDS):
        if path.exists() or (path.parent.is_dir() and path.name in os.listdir(path.parent)):
            return True
        time.sleep(1.0)
    return False


def is_first_process() -> bool:
    """Whether this is the only process or the first of torchrun's, before it is a `Ranks`, too."""
    return os.environ.get("RANK", "0") in ("0", "")


def start_ranks(use_gpus: bool) -> Ranks:
    """Join the process group of torchrun's variables; a single process needs none.

    Args:
        use_gpus: Tensors on GPUs go through NCCL; those on CPUs through gloo in any case.
    """
    count = _number("WORLD_SIZE", 1)
    if count == 1 and "RANK" not in os.environ:
        return Ranks()
    import torch

    local = _number("LOCAL_RANK", 0)
    backend = "gloo"
    if use_gpus and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise LLMError(
                f"there is no GPU for process {local + 1} of this node",
                f"torchrun started {_number('LOCAL_WORLD_SIZE', 1)} processes, and torch sees "
                f"{torch.cuda.device_count()} GPU(s)",
                "llm-run --torchrun --nproc-per-node=N with as many as there are GPUs",
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    on_node = max(1, _number("LOCAL_WORLD_SIZE", 1))
    return Ranks(_number("RANK", 0), count, local, max(1, count // on_node))


@contextlib.contextmanager
def only_the_failed_speaks(ranks: Ranks) -> Iterator[None]:
    """In the block: end without a word, status 2, where the first rank has ended before.

    That one says why it did.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.is_first or not is_gone(error):
            raise
        let_another_speak(1.0)
        raise SystemExit(USER_MISTAKE) from None


def is_gone(error: BaseException) -> bool:
    """Whether a collective failed because another process has ended."""
    return any(words in str(error) for words in GONE_WORDS)


def let_another_speak(most: float = SECONDS_TO_SPEAK) -> None:
    """Wait some seconds: torchrun ends this rank without a word when the failed one has ended.

    Args:
        most: Seconds; SECONDS_TO_SPEAK are enough in any case.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(min(most, SECONDS_TO_SPEAK))


def end_ranks() -> None:
    """Leave the process group."""
    if "torch" not in sys.modules:  # a single process that ended early: importing takes seconds
        return
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default
