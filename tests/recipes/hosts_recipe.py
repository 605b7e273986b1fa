"""A recipe that does nothing on several hosts, for as long as it is told to; for tests."""

from __future__ import annotations

import time

from llm_recipes.cli import run_recipe
from llm_recipes.gguf.hosts import known_hosts, run_on_hosts
from llm_recipes.gguf.remote_hosts import _ask


def wait(seconds: float = 0.0, status: int = 0) -> int:
    """Wait.

    Args:
        seconds: How long.
        status: To end with.
    """
    ended = run_on_hosts(threads=1)
    if ended is not None:
        return ended
    _ask("measure")  # each host's answer: it listens to the leader, and to signals, from here on
    print("at work on", ", ".join(host.endpoint for host in known_hosts()), flush=True)
    try:
        time.sleep(seconds)
    finally:
        print("saved", flush=True)
    return status


if __name__ == "__main__":
    run_recipe(wait)
