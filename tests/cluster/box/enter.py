"""Run a command in a node: the program behind `run`, as `ssh NODE COMMAND` would.

    python3 enter.py '{"namespaces": [], "uid": 0, "gid": 0, "cwd": "/", "env": {}, "command": []}'

Signals are passed on: SIGINT to the command's whole process group, as a terminal's Ctrl-C would be,
the others to the command alone. The exit status is the command's, 128 + signal where one killed it.
If this process is killed, so is the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from box.syscalls import die_with_parent, setns

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
             signal.SIGQUIT, signal.SIGCONT, signal.SIGWINCH)  # fmt: skip


def main() -> int:
    """Join the namespaces, start the command, wait for it."""
    request = json.loads(sys.argv[1])
    handles = [f"/proc/self/fd/{os.open(p, os.O_RDONLY)}" for p in request["namespaces"]]
    # /proc changes with the mount namespace, which therefore comes last.
    for handle in handles:
        setns(handle)
    # The command may say that it is ready before this process goes on.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        _become(request)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-child if number == signal.SIGINT else child, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _become(request: dict[str, Any]) -> NoReturn:
    """Turn into the command. Exit status 127 where there is none, 126 where the folder is not."""
    command = request["command"]
    try:
        os.setsid()
        os.closerange(3, 256)
        if os.getuid() != request["uid"] or os.getgid() != request["gid"]:
            os.setgroups([request["gid"]])
            os.setgid(request["gid"])
            os.setuid(request["uid"])
        die_with_parent()
        os.umask(0o022)
        os.chdir(request["cwd"])
    except OSError as error:
        os.write(2, f"enter: {error}\n".encode())
        os._exit(126)
    # Not execvpe: it imports modules, and Python's own files may be out of sight here.
    folders = [""] if "/" in command[0] else request["env"]["PATH"].split(":")
    reason = "not found"
    for folder in folders:
        try:
            os.execve(os.path.join(folder, command[0]), command, request["env"])
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            reason = error.strerror or str(error)
    os.write(2, f"enter: {command[0]}: {reason}\n".encode())
    os._exit(127)


if __name__ == "__main__":
    sys.exit(main())
