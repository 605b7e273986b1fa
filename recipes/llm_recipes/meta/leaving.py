"""How the processes of one model come to their end: together, quickly, and with one message.

torchrun tells them by SIGINT or SIGTERM, or one of them fails and the others see its connections
close. Rank 0 alone decides what is said; what failed elsewhere speaks for itself.

    status = among_ranks(run, use_gpus=True)  # run(ranks), in every process
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import NoReturn

import torch
from fairscale.nn.model_parallel import initialize

from llm_recipes.cli import TERMINATED, Terminated
from llm_recipes.errors import LLMError
from llm_recipes.model_folder import first_line
from llm_recipes.ranks import (
    Ranks,
    end_ranks,
    is_gone,
    let_another_speak,
    only_the_failed_speaks,
    start_ranks,
)

SECONDS_TO_LEAVE = 5.0  # for a follower after SIGTERM; torchrun itself waits for 30
_ended = threading.Event()  # by torchrun, after another rank had gone


def among_ranks(work: Callable[[Ranks], int], use_gpus: bool) -> int:
    """Do the work as one of torchrun's processes; the exit status.

    Args:
        work: What every process does; gets who it is.
        use_gpus: As `start_ranks` wants it.
    """
    ranks, status = start_ranks(use_gpus), None
    try:
        leave_signals_to_first(ranks)
        with leaving_together(ranks):
            status = work(ranks)
        return status
    finally:
        # NCCL's groups are destroyed when all their work is done, which it never is once a process
        # has failed: this one would wait and not even say why. torch aborts them at its exit.
        if status == 0 or ranks.count == 1 or not _computed_on_gpus():
            end_ranks()


def _computed_on_gpus() -> bool:
    """Whether the model's collectives may be NCCL's and may have begun."""
    return torch.cuda.is_initialized() and bool(initialize.model_parallel_is_initialized())


@contextlib.contextmanager
def leaving_together(ranks: Ranks) -> Iterator[None]:
    """Leave quietly when another rank has failed or gone: it, or torchrun, says why.

    Raises:
        LLMError: On rank 0, if another has gone and nothing ended this one in the meantime.
        SystemExit: On the others.
    """
    with only_the_failed_speaks(ranks):
        try:
            yield
        except SystemExit:  # from `Ranks.together`
            let_another_speak()
            raise
        except RuntimeError as error:
            if not ranks.is_first or not is_gone(error):
                raise
            if _ended.is_set():  # and the rank that failed has spoken
                raise SystemExit(TERMINATED) from None
            let_another_speak()
            raise LLMError(
                "another process of this model has ended",
                first_line(error),
                "see what it said, above or in its node's log; answers so far are kept",
            ) from None


def finish_in_spite_of_sigterm() -> None:
    """Another rank has gone, and torchrun's SIGTERM follows: let the record be written first."""
    signal.signal(signal.SIGTERM, lambda *_: _ended.set())


def leave_signals_to_first(ranks: Ranks) -> None:
    """On the other ranks: Ctrl-C and SIGTERM reach rank 0 too, which ends all in good order.

    Some seconds after SIGTERM they end in any case, even if they wait in a collective for ever.
    """
    if ranks.is_first:
        if ranks.count > 1:
            _interrupt_once(KeyboardInterrupt)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> NoReturn:
        while os.read(reading, 1)[0] != signal.SIGTERM:
            pass
        time.sleep(SECONDS_TO_LEAVE)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()


def end_on_interrupt(ranks: Ranks) -> None:
    """Let Ctrl-C end all at once, where a conversation would go on: torchrun ends the others."""
    if ranks.count > 1:
        _interrupt_once(Terminated)


def _interrupt_once(how: type[BaseException]) -> None:
    """Raise this at Ctrl-C, which comes twice, from the terminal and from torchrun.

    The second must not break off what `finally` is saving.
    """

    def interrupt(number: int, frame: types.FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise how

    signal.signal(signal.SIGINT, interrupt)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block."""
    came: list[int] = []

    def note(number: int, frame: types.FrameType | None) -> None:
        came.append(number)

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, note) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
