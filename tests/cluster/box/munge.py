"""munged, one a machine: it vouches for the host that a message comes from.

With one for all, Slurm takes every message for the controller's own, and looks there for the srun
that waits for resources.
"""

from __future__ import annotations

import os
import subprocess
import time

from box.settings import Box

FOLDER = "/run/munge"
SOCKET = FOLDER + "/munge.socket.2"
TIMEOUT_S = 60


def start(box: Box, name: str) -> None:
    """Start munged on the machine `name` and wait for its socket. Raises RuntimeError."""
    log_path = box.path("log", f"munged-{name}.out")
    files = ["--key-file", box.path("munge", "key"), "--seed-file", f"{FOLDER}/seed"]
    files += ["--socket", SOCKET, "--pid-file", f"{FOLDER}/munged.pid"]
    with open(log_path, "ab") as log:
        munged = subprocess.Popen(
            ["munged", "--foreground", "--force", *files],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=box.state,
        )
    deadline = time.monotonic() + TIMEOUT_S
    while not os.path.exists(SOCKET):
        if munged.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"munged did not start: see {log_path}")
        time.sleep(0.01)
