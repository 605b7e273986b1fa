"""The state folder of a box: made, checked, cleaned; and the start of the process that holds it."""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

from box import cgroups, settings, slurm_conf
from box.namespaces import become_root
from box.settings import SEARCH_PATH, Box

PROGRAM = str(Path(__file__).resolve().parent)
START_TIMEOUT_S = 120.0


class BoxError(Exception):
    """Something about the box that its user should know, in a sentence."""


def default_state() -> str:
    """Return the usual state folder of a box: not in /tmp, of which nodes have their own."""
    return f"/var/tmp/llm-box-{os.geteuid()}"


def is_up(state: str) -> bool:
    """Say whether a box runs in this state folder: its supervisor holds a lock."""
    try:
        os.close(take_lock(state, wait_s=0, make=False))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BoxError:
        return True
    return False


def take_lock(state: str, wait_s: float = 1.0, make: bool = True) -> int:
    """Take the state folder's lock and return its descriptor, which the supervisor inherits.

    wait_s: seconds to wait, as others may be looking whether it is taken. make: the file, where
    there is none. Raises BoxError if the lock is taken.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    lock = os.open(os.path.join(state, "lock"), flags, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise BoxError(f"there is a box in {state} already: make cluster-down") from None
            time.sleep(0.05)


def belongs_to_box(state: str) -> bool:
    """Say whether a folder was made for a box: nothing else is ever cleaned or deleted."""
    try:
        return settings.load(state).state == os.path.realpath(state)
    except (OSError, TypeError, ValueError):
        return False


def clean(state: str, everything: bool = False) -> None:
    """Remove what a box that has ended left behind in its folder.

    everything: the user's files and the logs as well.
    """
    if not belongs_to_box(state):
        return
    for folder in settings.load(state).cgroup_folders:
        cgroups.remove(folder)
    for name in ("control", "pid"):
        Path(state, name).unlink(missing_ok=True)
    for name in ("slurmctld", "spool", "munge", "slurm", "etc"):
        shutil.rmtree(os.path.join(state, name), ignore_errors=True)
    if everything:
        delete(state)


def delete(state: str) -> None:
    """Delete the folder of a box. Files of the box's user are in it: it takes a root to do that."""
    if not belongs_to_box(state):
        return
    if os.geteuid() != 0:
        child = os.fork()
        if child == 0:
            try:
                become_root()
                shutil.rmtree(os.path.join(state, "home"), ignore_errors=True)
                shutil.rmtree(os.path.join(state, "shared"), ignore_errors=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    shutil.rmtree(state, ignore_errors=True)


def prepare(box: Box) -> int:
    """Make the state folder with all that a box needs in it. Returns the descriptor of its lock.

    Raises BoxError where a box is up, where the folder is somebody else's or holds other things.
    """
    state = box.state
    if len(box.control) > 100:
        raise BoxError(f"the state folder's path is too long for a socket: {state}")
    try:
        os.makedirs(state, mode=0o755, exist_ok=True)
        is_mine = os.lstat(state).st_uid == os.geteuid()
        is_empty = not os.listdir(state)
    except OSError as error:
        raise BoxError(f"{state} can't be the state folder: {error.strerror}") from None
    if not is_mine:
        raise BoxError(f"{state} is no folder of yours")
    if not (is_empty or belongs_to_box(state) or os.listdir(state) == ["lock"]):
        raise BoxError(f"{state} holds other things; an empty or a new folder is needed")
    lock = take_lock(state)
    clean(state)
    os.chmod(state, 0o755)
    box.save()
    for folder in ("log", "slurmctld", "spool", "munge", "home", "shared"):
        os.makedirs(box.path(folder), mode=0o755, exist_ok=True)
    os.chmod(box.path("munge"), 0o700)
    os.chmod(box.shared, 0o1777)
    key = Path(box.path("munge", "key"))
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    slurm_conf.write_all(box)
    return lock


def start_supervisor(box: Box, lock: int, attached: bool) -> subprocess.Popen[bytes]:
    """Start the process that holds the box and wait until it has started everything.

    lock: the descriptor that it keeps. attached: it ends when its standard input is closed. Raises
    BoxError with what it says.
    """
    reading, writing = os.pipe()
    words = ["supervise", box.state, "--ready", str(writing), *(["--attached"] if attached else [])]
    with open(box.path("log", "supervisor.log"), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", PROGRAM, *words],
            stdin=subprocess.PIPE if attached else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writing, lock],
            start_new_session=True,
            env={**os.environ, "PATH": SEARCH_PATH},
        )
    os.close(writing)
    answer = ""
    try:
        with open(reading, encoding="utf-8") as ready:
            if select.select([ready], [], [], START_TIMEOUT_S)[0]:
                answer = ready.readline()
    finally:
        if answer != "ready\n":
            process.kill()
            process.wait()
    if answer != "ready\n":
        text = Path(box.path("log", "supervisor.log")).read_text(encoding="utf-8", errors="replace")
        raise BoxError(f"the box did not start; logs: {box.path('log')}\n{text.strip()[-2000:]}")
    return process
