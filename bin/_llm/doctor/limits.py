"""Run checks with a time limit each, all at the same time, and abandon those that hang.

A file system whose server is gone stops a process inside the kernel, where no signal reaches it.
So each check runs in a process of its own, which nobody waits for once its time is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from _llm.doctor.finding import FAIL, WARN, Finding, from_dict, from_error
from _llm.errors import LLMError

Stage = Callable[[str], None]
# How the text of a check begins that was abandoned.
HANGS = "did not end within"
Probe = Callable[[Stage], Sequence[Finding]]


@dataclass(frozen=True)
class Task:
    """A check to run.

    check: the name that its findings have if it does not end. seconds: its time limit. probe: the
    function; it may call its argument to say what it is about to do, which is what is reported if
    that hangs. hanging: what to do if it hangs.
    """

    check: str
    seconds: float
    probe: Probe
    hanging: str = ""


@dataclass
class _Child:
    task: Task
    process: int
    pipe: int
    seconds: float
    deadline: float
    text: bytes = b""
    stage: str = ""
    findings: list[Finding] = field(default_factory=list)
    answered: bool = False
    done: bool = False
    abandoned: bool = False


class Stopped(Exception):
    """Whoever wanted the findings does not want them any more."""


def run_tasks(
    tasks: Sequence[Task], deadline: float, stop_when_readable: int | None = None
) -> Iterator[list[Finding]]:
    """Run all tasks at once and give the findings of each, in the order of `tasks`.

    deadline: by time.monotonic(), when all have to be over, whatever their own limits are. When the
    caller stops (Ctrl-C), so do the checks and everything that they have started.
    stop_when_readable: a file descriptor; raises Stopped as soon as it has something to read, be it
    its end.
    """
    children: list[_Child] = []
    try:
        for task in tasks:
            children.append(_start(task, deadline))
        selector = selectors.DefaultSelector()
        for child in children:
            selector.register(child.pipe, selectors.EVENT_READ, child)
        if stop_when_readable is not None:
            selector.register(stop_when_readable, selectors.EVENT_READ)
        next_one = 0
        while next_one < len(children):
            waiting = [child.deadline for child in children if not child.done]
            pause = max(0.0, min(waiting) - time.monotonic()) if waiting else 0.0
            for key, _ in selector.select(pause) if waiting else ():
                if key.data is None:
                    raise Stopped
                _read(key.data, selector)
            now = time.monotonic()
            for child in children:
                if not child.done and now >= child.deadline:
                    # Before it is closed: other children have copies of it, and would keep it
                    # in the kernel's list, ready for ever.
                    selector.unregister(child.pipe)
                    _give_up(child)
            while next_one < len(children) and children[next_one].done:
                yield children[next_one].findings
                next_one += 1
    finally:
        for child in children:
            if not child.done:
                _give_up(child)
            if child.abandoned:
                os.waitpid(child.process, os.WNOHANG)


def _start(task: Task, deadline: float) -> _Child:
    seconds = max(0.0, min(task.seconds, deadline - time.monotonic()))
    reading, writing = os.pipe()
    process = fork()
    if process == 0:
        os.close(reading)
        _work(task, writing, seconds)
    os.close(writing)
    return _Child(task, process, reading, seconds, time.monotonic() + seconds)


def fork() -> int:
    """As os.fork, but no handler of the parent's ever runs in the child: signals end it."""
    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    try:
        process = os.fork()
        if process == 0:
            for number in (*ours, signal.SIGALRM):
                signal.signal(number, signal.SIG_DFL)
        return process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(task: Task, pipe: int, seconds: float) -> None:
    """Run a check in this child process, which ends here."""
    try:
        os.setsid()  # so that one signal ends it and all that it has started
        # Should llm-doctor itself be killed, nothing of it is left for long: a fatal signal also
        # ends waits in the kernel that a handler could not.
        signal.alarm(int(seconds) + 5)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)

        def tell(message: object) -> None:
            os.write(pipe, json.dumps(message).encode() + b"\n")

        tell({"findings": _findings(task, lambda text: tell({"stage": text}))})
    finally:
        os._exit(0)


def _findings(task: Task, stage: Stage) -> list[object]:
    try:
        found = list(task.probe(stage))
    except LLMError as error:
        found = [from_error(task.check, error)]
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        found = [Finding(task.check, FAIL, f"{error.strerror or error}{where}")]
    except Exception as error:
        text = f"this check stopped by itself: {type(error).__name__}: {error}"
        found = [Finding(task.check, WARN, text, "report it to the maintainers of llm-doctor")]
    return [finding.as_dict() for finding in found]


def _read(child: _Child, selector: selectors.BaseSelector) -> None:
    """Take what a child has sent, or its end."""
    piece = os.read(child.pipe, 1 << 16)
    child.text += piece
    *lines, child.text = child.text.split(b"\n")
    for line in lines:
        message = json.loads(line)
        child.stage = message.get("stage", child.stage)
        if "findings" in message:
            child.answered = True
            child.findings = [from_dict(values) for values in message["findings"]]
    if piece:
        return
    selector.unregister(child.pipe)
    os.close(child.pipe)
    child.done = True
    _kill(child.process)  # what it has started and not waited for; itself it is over already
    os.waitpid(child.process, 0)
    if not child.answered:
        child.findings = [_unfinished(child, "was killed by the system")]


def _give_up(child: _Child) -> None:
    os.close(child.pipe)
    child.done = child.abandoned = True
    child.findings = [_unfinished(child, f"{HANGS} {child.seconds:.3g} s")]
    _kill(child.process)


def _unfinished(child: _Child, how: str) -> Finding:
    stage = f" while {child.stage}" if child.stage else ""
    return Finding(child.task.check, FAIL, f"{how}{stage}", child.task.hanging)


def _kill(process: int) -> None:
    for kill in (os.killpg, os.kill):  # the group exists only once the child has made it
        with contextlib.suppress(OSError):
            kill(process, signal.SIGKILL)


def run_command(
    command: Sequence[str],
    seconds: float,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it said.

    To be used inside a check, whose process group ends with it. Raises OSError where it can't be
    started, and LLMError after `seconds`.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=env,
        cwd=cwd,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: it may hang in the kernel
        name = os.path.basename(command[0])
        raise LLMError(
            f"{name} did not answer within {seconds:g} s",
            "",
            f"run it by hand: {' '.join(command[:4])}",
        ) from None
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)
