"""torchrun, quiet about a program that has told its user what is wrong.

    llm-run --torchrun --nproc-per-node=2 train.py

Standard library and torch only, for any Python 3.9: a user's own image may be older than ours. A
recipe says a user's mistake in three lines and ends with status 2. torchrun follows that with
fifty lines of its own, a traceback among them, and ends with status 1. Here only such an end and
Ctrl-C are different; of any other failure torchrun says what it always says.
"""

from __future__ import annotations

import logging
import signal

USER_MISTAKE = 2  # as in `llm_recipes.errors`, which an older Python can't read
# What torchrun's logger says of the processes that it ends because one has ended.
SAID_ALREADY = ("Sending process ", f"failed (exitcode: {USER_MISTAKE})")


def main() -> int:
    """Run torchrun with this program's arguments; returns the exit status."""
    hears_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if hears_ctrl_c:  # torch, broken off while it is loaded, says so in many lines, or aborts
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logger = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    logger.addFilter(lambda line: not line.getMessage().startswith(SAID_ALREADY))
    if hears_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        torchrun()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode != USER_MISTAKE:
            raise
        return USER_MISTAKE
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:  # before torchrun made its own exception of it
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it may come a second time
        return 128 + int(signal.SIGINT)
    return 0

