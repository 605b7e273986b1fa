"""Start the image: once to see that it starts, once more to look around in it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _llm import options as run_options
from _llm.doctor import gpu, model, seen
from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding, from_error
from _llm.doctor.inside import MARK as LINE_MARK
from _llm.doctor.limits import Stage, run_command
from _llm.doctor.programs import COLLECTIVE, RUN
from _llm.doctor.storage import Folder, mark_path, remove_mark
from _llm.gpus import find_gpus
from _llm.rank import ConfigurationError, Plan, plan_rank

# What a start may take: about 0.2 s from a local disk.
SLOW_START = 5.0
START_SECONDS = 60.0
# Runs Python in an image, whatever it is called there; 97: there is none.
PYTHON = 'p=$(command -v python3 || command -v python) || exit 97; exec "$p" -c "$@"'
NO_PYTHON = 97
COLLECT_ENV = "from torch.utils.collect_env import main; main()"


def plan(context: Context) -> Plan:
    """The start of `true` in the image, as llm-run would make it. Raises ConfigurationError."""
    options = run_options.Options()
    options.command = ["true"]
    return plan_rank(options, context.settings, context.env, context.home)


def python(start: Plan, source: str, *arguments: str) -> list[str]:
    """The command that runs a Python program in the image instead of `true`."""
    return [*start.arguments[:-1], "/bin/sh", "-c", PYTHON, "sh", RUN, source, *arguments]


def inside(
    context: Context, folders: Mapping[str, Folder], seconds: float, stage: Stage
) -> list[Finding]:
    """Start the image, look around in it with inside.py, and judge what that tells.

    folders: those that should be visible, and whether they can be written. seconds: for all of it.
    """
    deadline = time.monotonic() + seconds
    stage("preparing the start, where llm-run would hang, too")
    try:
        prepared = plan(context)
    except ConfigurationError as error:
        return [from_error("start", fault) for fault in error.errors]
    env = prepared.environment(context.env)
    found = [_started(prepared, env, min(START_SECONDS, seconds), stage)]
    if found[0].status == FAIL:
        return found
    names = {*prepared.dropped, *prepared.variables, "LD_LIBRARY_PATH", "LD_PRELOAD"}
    # A new user's cache exists from the first start on.
    there = {name: folder for name, folder in folders.items() if os.path.isdir(folder.path)}
    with _marked(there, context.token) as marks:
        question = {
            "names": sorted(names),
            "models": context.models,
            "marks": marks,
            "collective": ["-c", RUN, COLLECTIVE],
        }
        program = _start(prepared, env, question)
        fault = _read(program, "basics", deadline - 2, stage)
        found += seen.findings(program.answers, prepared, context, marks)
    # Our files are gone from the user's folders before the long part begins.
    fault = fault or _read(program, "end", deadline - 2, stage)
    found += [fault] if fault else []
    found += model.findings(program.answers, context.models)
    found += gpu.findings(program.answers, find_gpus(context.env))
    if context.collect_env:
        found.append(_collect_env(prepared, env, deadline - 1 - time.monotonic(), stage))
    return found


def _started(start: Plan, env: dict[str, str], seconds: float, stage: Stage) -> Finding:
    stage("starting the image")
    begin = time.monotonic()
    done = run_command(start.arguments, seconds, env)
    taken = time.monotonic() - begin
    if done.returncode != 0:
        said = " ".join(done.stderr.split()[-60:]) or f"exit status {done.returncode}"
        fix = f"see the lines above; more: '{start.arguments[0]}' exec '{start.arguments[-2]}' true"
        return Finding("start", FAIL, f"the image does not start: {said}", fix)
    measured, data = f"{taken:.2f} s", {"seconds": taken}
    if taken > SLOW_START:
        fix = "an image on a busy file system: put it on another, LLM_IMAGE_DIR=/where/it/is"
        return Finding("start", WARN, "the image starts slowly", fix, measured, data)
    return Finding("start", OK, "the image starts", measured=measured, data=data)


def _collect_env(start: Plan, env: dict[str, str], seconds: float, stage: Stage) -> Finding:
    stage("asking torch for its environment")
    done = run_command(python(start, COLLECT_ENV), max(1.0, seconds), env)
    if done.returncode:
        return Finding("collect-env", WARN, f"it failed: {done.stderr.strip()[-200:]}")
    return Finding("collect-env", OK, "torch's own description follows", data={"text": done.stdout})


@contextlib.contextmanager
def _marked(folders: Mapping[str, Folder], token: str) -> Iterator[dict[str, tuple[str, str]]]:
    """Put a file of ours into each folder: name -> (its path, the path of the answer).

    A folder that can't be written to is told by its inode, and has no answer.
    """
    marks: dict[str, tuple[str, str]] = {}
    try:
        for name, folder in folders.items():
            marks[name] = (folder.path, "")
            if folder.writable:
                path = mark_path(folder, token)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(token)
                marks[name] = (path, path + ".reply")
        yield marks
    finally:
        for folder in folders.values():
            remove_mark(folder, token)


class _Program:
    """inside.py in the image: the process, its answers by topic, what it is about to do."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout and process.stderr
        self.process = process
        self.output, self.errors = process.stdout, process.stderr
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self.rest, self.complaints = b"", b""
        self.topic = "starting Python in the image"
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.output, selectors.EVENT_READ)
        self.selector.register(self.errors, selectors.EVENT_READ)

    def read(self, pause: float) -> list[dict[str, Any]] | None:
        """What it says next; None after `pause` seconds of silence."""
        answers = []
        ready = self.selector.select(pause) if pause > 0 else []
        for key, _ in ready:
            piece = os.read(key.fd, 1 << 16)
            if not piece:
                self.selector.unregister(key.fileobj)
            elif key.fileobj is self.errors:
                self.complaints = (self.complaints + piece)[-20_000:]
            else:
                *lines, self.rest = (self.rest + piece).split(b"\n")
                texts = [line.decode(errors="replace") for line in lines]
                answers += [
                    json.loads(text[len(LINE_MARK) :])
                    for text in texts
                    if text.startswith(LINE_MARK)
                ]
        return answers if ready else None


def _start(start: Plan, env: dict[str, str], question: Mapping[str, Any]) -> _Program:
    source = (Path(__file__).parent / "inside.py").read_text(encoding="utf-8")
    return _Program(
        subprocess.Popen(
            python(start, source, json.dumps(question)),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )


def _read(program: _Program, until: str, deadline: float, stage: Stage) -> Finding | None:
    """Take the answers of inside.py up to the topic `until`; return what went wrong."""
    answers = program.answers
    while until not in answers and program.selector.get_map():
        said = program.read(deadline - time.monotonic())
        if said is None:
            program.process.kill()
            text = f"no answer while {program.topic}, in the time that was left"
            fix = "run it again with a larger --limit; if it hangs again, this is what hangs"
            return Finding("inside", FAIL, text, fix)
        for answer in said:
            program.topic = answer.pop("topic")
            stage(program.topic)
            answers.setdefault(program.topic, []).append(answer)
    if until in answers:
        return None
    status = program.process.wait()
    if status == NO_PYTHON:
        return Finding("inside", SKIP, "the image has no Python to look around with")
    words = program.complaints.decode(errors="replace").strip().splitlines()[-3:]
    text = f"ended with exit status {status} while {program.topic}: {' '.join(words)}"
    return Finding("inside", FAIL, text, "run it by hand: llm-run python")
