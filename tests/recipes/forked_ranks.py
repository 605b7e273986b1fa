"""Run a recipe in several processes that are forked from the test's: they need not import torch."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairscale.nn.model_parallel import initialize

from llm_recipes.cli import run_recipe


@dataclass(frozen=True)
class Ended:
    """How a rank ended. status: its exit status, or minus a signal."""

    status: int
    out: str
    err: str


def run_ranks(
    recipe: Callable[..., Any],
    arguments: Sequence[object],
    count: int,
    folder: Path,
    before: Callable[[int], None] = lambda rank: None,
) -> list[Ended]:
    """Run a recipe in `count` processes as torchrun would; folder: for what they say.

    before: called in each process first, with its rank.
    """
    initialize.destroy_model_parallel()  # groups of an earlier run, whose threads don't get forked
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = [str(argument) for argument in arguments]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            _be(
                rank,
                count,
                port,
                folder,
                lambda rank=rank: (before(rank), run_recipe(recipe, names)),
            )
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    texts = [
        [(folder / f"{kind}.{r}").read_text() for kind in ("out", "err")] for r in range(count)
    ]
    return [Ended(status, out, err) for status, (out, err) in zip(ends, texts, strict=True)]


def _be(rank: int, count: int, port: int, folder: Path, work: Callable[[], Any]) -> None:
    """Be a rank, to the process's end."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{count}"}
    os.environ |= {"LOCAL_WORLD_SIZE": f"{count}", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    sys.stdout = open(folder / f"out.{rank}", "w")  # noqa: SIM115  # until the end
    sys.stderr = open(folder / f"err.{rank}", "w")  # noqa: SIM115
    status: Any = 1
    try:
        work()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
