"""One typed function a recipe: its signature is the command line, the YAML schema and the help.

    from llm_recipes.cli import run_recipe
    def train(model: str, learning_rate: float = 1e-4) -> None: ...
    if __name__ == "__main__":
        run_recipe(train)

`python recipe.py --config settings.yaml --learning-rate 2e-4` (values override the file; `-` and
`_` are the same in names; a flag needs no value, `--no-flag` turns it off; an option that takes a
list is repeated); `--print_config` shows everything that holds.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import time
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jsonargparse

from llm_recipes.arguments import (
    config_faults,
    missing_faults,
    one_line,
    read_command_line,
    value_faults,
)
from llm_recipes.errors import USER_MISTAKE, LLMError, leaves, raise_all
from llm_recipes.ranks import is_first_process

INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141  # 128 + signal, as shells report them
SECONDS_FOR_THE_FIRST = 10.0


class Terminated(BaseException):
    """SIGTERM arrived: raised in the main thread, so that `finally` keeps what was reached."""


def run_recipe(function: Callable[..., int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a recipe's function with the command line's values and exit with its status.

    Args:
        function: The recipe; every parameter typed. It returns an exit status or None (0).
        argv: Arguments without the program's name; the process's own by default.

    Exit status: 2 for a user's mistake, each printed as what, why and fix; 130 after Ctrl-C, 143
    after SIGTERM, 141 when the reader of standard output has gone away.
    """
    program = Path(sys.argv[0]).name or "recipe"
    arguments = list(sys.argv[1:] if argv is None else argv)
    status = 1  # of a traceback
    # Registered before the libraries' own, so that it is the last of them.
    atexit.register(lambda: _end_torchruns(status))
    previous = signal.signal(signal.SIGTERM, _raise_terminated)
    _quiet_libraries()
    try:
        status = _run(function, arguments, program) or 0
        sys.stdout.flush()  # a closed pipe shows here and not after everything
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except Terminated:
        print(f"{program}: terminated", file=sys.stderr)
        status = TERMINATED
    except BrokenPipeError:
        # Python flushes standard output once more at exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    # Ctrl-C while Python tidies up, when all is done, would be a traceback
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _end_torchruns(status: int) -> None:
    """End a process that torchrun started, at once and with this status.

    While Python tidies up, a thread of gloo that lets go of a tensor aborts the process:
    https://github.com/pytorch/pytorch/pull/179291. destroy_process_group() ends such threads only
    if nothing else refers to a group; Trainer, DeepSpeed and device meshes do.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _run(function: Callable[..., int | None], argv: list[str], program: str) -> int | None:
    status: int | None = USER_MISTAKE
    try:
        status = call_with_arguments(function, argv, program)
    except* LLMError as group:
        for fault in leaves(group):
            print(f"{program}: {fault}", file=sys.stderr)
    return status


def call_with_arguments(
    function: Callable[..., int | None], argv: Sequence[str], program: str
) -> int | None:
    """Check the arguments against the function's signature, all at once, then call it.

    Raises:
        LLMError, ExceptionGroup: Every unknown option, bad value and missing option together.
    """
    line = read_command_line(function, argv)
    line.faults += config_faults(function, line)
    if line.faults:
        _refuse(line.faults + value_faults(function, line.values, "--"))
    with contextlib.suppress(NameError):
        # Otherwise jsonargparse runs a recipe's imports for type checkers too, torch among them.
        function.__annotations__ = typing.get_type_hints(function)
    try:
        result: int | None = jsonargparse.auto_cli(
            function,
            args=line.arguments,
            as_positional=False,
            prog=program,
            exit_on_error=False,
            allow_abbrev=False,
            epilog="In names of options - and _ are the same. A list's option is repeated.",
        )
    except jsonargparse.ArgumentError as error:
        faults = value_faults(function, line.values, "--") + missing_faults(function, line)
        _refuse(faults or [LLMError(one_line(str(error)), fix=f"see {program} --help")])
    return result


def _refuse(faults: Sequence[LLMError]) -> None:
    """Raise the faults; of the processes that torchrun started alike only the first says them."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not is_first_process():
        # torchrun ends the others when one fails, and the first must have spoken by then.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_FOR_THE_FIRST)
        sys.exit(USER_MISTAKE)
    raise_all(faults)


def _quiet_libraries() -> None:
    """Leave out what libraries say of themselves: faults are raised in any case."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It sets its own level when it is imported; a filter stays.
    logging.getLogger("DeepSpeed").addFilter(lambda line: line.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries about each other


def _raise_terminated(signum: int, frame: types.FrameType | None) -> NoReturn:
    # A second signal (schedulers repeat it) must not break off what `finally` is saving.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
