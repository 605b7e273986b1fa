"""Run programs of llama.cpp and see what they print as it comes, one or several at once.

    from llm_recipes.gguf.watched_programs import Command, run_watched
    text = run_watched(Command(["llama-perplexity", ...]), on_text=print)

llama-perplexity and llama-imatrix say how far they are on a line that doesn't end, and most errors
with exit status 0: so everything is read, as it comes, from both streams.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.gguf.programs import ending, error_of, started_program

KEPT_LINES = 100
METADATA = "llama_model_loader: - "  # a model's values, in which any word may be


@dataclass(frozen=True)
class Command:
    """A program and its arguments. cwd: folder it runs in; None is this process's."""

    arguments: Sequence[str]
    cwd: Path | None = None


@dataclass
class _Running:
    number: int
    process: subprocess.Popen[bytes]
    stack: contextlib.ExitStack
    decoder: codecs.IncrementalDecoder
    text: list[str] = field(default_factory=list)


def run_watched(command: Command, on_text: Callable[[str], None] | None = None) -> str:
    """Run a program to its end; returns all that it printed, both streams together.

    Args:
        command: What to run.
        on_text: Gets pieces of text as they come.

    Raises:
        LLMError: If it ended with another status than 0.
    """
    printed: list[str] = []

    def pass_on(_number: int, text: str) -> None:
        if on_text is not None:
            on_text(text)

    run_several([command], 1, pass_on, lambda _number, text: printed.append(text))
    return printed[0]


def run_several(
    commands: Sequence[Command],
    jobs: int,
    on_text: Callable[[int, str], None],
    on_end: Callable[[int, str], None],
) -> None:
    """Run programs, so many at once; if one fails, or this process is to end, all of them end.

    Args:
        commands: In the order in which they start.
        jobs: How many run at once.
        on_text: Gets a program's number and a piece of what it prints.
        on_end: Gets the number of a program that ended well and all that it printed.

    Raises:
        LLMError: If one ended with another status than 0.
    """
    waiting = deque(enumerate(commands))
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as everything:
        running = 0
        while waiting or running:
            while waiting and running < jobs:
                number, command = waiting.popleft()
                started = _start(number, command, everything)
                assert started.process.stdout is not None
                selector.register(started.process.stdout, selectors.EVENT_READ, started)
                running += 1
            for key, _ in selector.select():
                one: _Running = key.data
                data = os.read(key.fd, 65536)
                text = one.decoder.decode(data, final=not data)
                if text:
                    one.text.append(text)
                    on_text(one.number, text)
                if not data:
                    selector.unregister(key.fileobj)
                    running -= 1
                    _end(one, commands[one.number])
                    on_end(one.number, "".join(one.text))


def _start(number: int, command: Command, everything: contextlib.ExitStack) -> _Running:
    stack = everything.enter_context(contextlib.ExitStack())
    process = stack.enter_context(
        started_program(command.arguments, stderr=subprocess.STDOUT, cwd=command.cwd)
    )
    return _Running(number, process, stack, codecs.getincrementaldecoder("utf-8")("replace"))


def _end(one: _Running, command: Command) -> None:
    status = one.process.wait()
    one.stack.close()
    if status != 0:
        name = Path(command.arguments[0]).name
        lines = "".join(one.text).replace("\r", "\n").splitlines()
        said = [line for line in lines[-KEPT_LINES:] if not line.startswith(METADATA)]
        raise LLMError(f"{name} {ending(status)}", error_of(said))
