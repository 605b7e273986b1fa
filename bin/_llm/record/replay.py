"""Run a recorded run again: the same image, code and configuration; then compare.

    llm-record replay runs/base --dry-run

What can't be had is found before anything runs. The run itself is llm-run's, of the recorded code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from _llm.apptainer import find_apptainer
from _llm.errors import LLMError, report
from _llm.files import write_text
from _llm.lookup import Image
from _llm.record import compare
from _llm.record.code import Code, copy_commit, find_code
from _llm.record.configuration import (
    config_file,
    redirected,
    secrets_in,
    working_directory,
)
from _llm.record.finding import GONE, OK, Finding, obstacles
from _llm.record.images import find_image
from _llm.record.inputs import check_inputs
from _llm.record.options import Options
from _llm.record.reading import ENDING, RECORD, Record, is_record_name, read_record, record_beside
from _llm.record.surroundings import hardware, launch_options, this_host, variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from _llm.settings import Settings

MOST_REPLAYS = 10_000


@dataclass
class Plan:
    """A replay that has not begun. folder: for everything that it writes. scratch: one that goes
    when it is done; config_path: in there, with config. outputs: the paths that the recipe gets.
    cwd, words, env: of the process to start.
    """

    findings: list[Finding]
    code: Code
    folder: str
    scratch: str
    outputs: list[str]
    config: dict[str, Any]
    cwd: str
    words: list[str]
    env: dict[str, str]

    @property
    def config_path(self) -> str:
        """Return where the recipe finds its configuration."""
        return os.path.join(self.scratch, "config.json")


def replay(record: Record, options: Options, settings: Settings, home: str) -> int:
    """Plan, run and compare; return the exit status: 0 same, 1 different.

    Raises LLMError where it can't be run, KeyboardInterrupt after Ctrl-C.
    """
    plan = make_plan(record, options, settings, home)
    missing = obstacles(plan.findings)
    goes_on = not missing or options.best_effort
    if options.dry_run or not goes_on:
        return _tell(record, options, plan, goes_on)
    if not plan.words:
        raise LLMError(
            "the recorded run can't be had, not even nearly",
            "\n       ".join(f.text for f in missing), "see: llm-record show --check RECORD",
        )
    while not _take_folder(plan.folder, options.output):
        plan = make_plan(record, options, settings, home)  # another replay was faster
    _say(f"replay of {record.path} into {plan.folder}")
    for finding in plan.findings:
        if finding.state != OK:
            _say(finding.lines())
    try:
        if plan.code.commit:
            copy_commit(plan.code.commit, home, plan.code.home)
        _make_folder(os.path.dirname(plan.outputs[0]))
        _make_folder(plan.scratch)
        write_text(plan.config_path, config_file(plan.config))
        status = run(plan, options.json)
    finally:
        shutil.rmtree(plan.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds something
            os.rmdir(plan.folder)
    made = _its_record(record, plan)
    if made is None or made.text("status") != "complete":
        said = f"its record says: {made.text('status')}" if made else "it left no record"
        raise LLMError(
            f"the replay ended with status {status} and without its results", said,
            f"its messages stand above; {_left(plan)}",
        )
    found = compare.compare(record, made, options.tolerance)
    link_back(record, made, found)
    answer = {
        "record": record.path, "replay": made.path, **found.as_json(),
        "findings": [finding.as_json() for finding in plan.findings],
    }
    text = json.dumps(answer, indent=2, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode()
    print(text if options.json else found.lines())
    return 0 if found.is_same else 1


def make_plan(record: Record, options: Options, settings: Settings, home: str) -> Plan:
    """Find everything that the run needs, and what of it is not here. Nothing is written."""
    cache = settings.get("paths", "cache")
    status = record.text("status")
    findings: list[Finding] = []
    if status != "complete":
        text = f"its status is '{status}': it has no results to compare with"
        findings.append(Finding("status", GONE, text))
    image, finding = find_image(record, settings, home)
    findings.append(finding)
    code = find_code(record, home, cache)
    findings += [*code.findings, *check_inputs(record, cache)]
    folder = new_folder(record, options.output)
    scratch = os.path.join(cache, "replays", f"{time.time_ns():x}-{os.getpid()}")
    config, outputs = redirected(record, folder, scratch)
    if not config or not outputs:
        text = "no configuration" if not config else "no output that could go elsewhere"
        findings.append(Finding("config", GONE, f"the record has {text}"))
    cwd, more = working_directory(record, config, options.extra)
    findings += [*more, *secrets_in(record, config, options.extra)]
    variant = Image(image).variant if image else ""
    launch, more = launch_options(record, dict(os.environ), variant)
    env, others = variables(record, dict(os.environ))
    findings += [*more, *others]
    env["LLM_HOME"] = code.home
    if code.commit:
        # A copy has no .tools, and the site's profile may never have been committed.
        env["LLM_APPTAINER"] = find_apptainer(
            os.environ, home, settings.get("container", "apptainer")).path
        env["LLM_SITE"] = settings.site if settings.site == "default" else settings.site_file
    plan = Plan(findings, code, folder, scratch, outputs, config, cwd, [], env)
    if image and outputs and code.recipe:
        plan.words = [os.path.join(code.home, "bin", "llm-run"), "--image", image, *launch, "--",
                      "python", code.recipe, "--config", plan.config_path, *options.extra]
    return plan


def new_folder(record: Record, asked: str | None) -> str:
    """Return the folder for a replay: that asked for, or the first free one beside the run's.

    Raises LLMError where the one asked for holds something.
    """
    if asked is not None:
        path = os.path.abspath(os.path.expanduser(asked))
        if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
            raise LLMError(f"--output {asked} is there already",
                           "a replay never overwrites anything", "name a new folder")
        return path
    folder, name = os.path.split(record.path)
    if name == RECORD:
        folder, name = os.path.split(folder)
    elif name.endswith(ENDING):
        name = name[: -len(ENDING)]
    for number in range(1, MOST_REPLAYS):
        path = os.path.join(folder, f"{name or 'run'}.replay-{number}")
        if not os.path.lexists(path):
            return path
    raise LLMError(f"{folder} has {MOST_REPLAYS} replays", "", "name a folder with --output")


def run(plan: Plan, quiet: bool) -> int:
    """Run the program and return its exit status; signals reach it.

    quiet: standard output is for the answer alone. Raises KeyboardInterrupt where Ctrl-C ended it.
    """
    # Ctrl-C reaches the program too, which ends in its own way; this one waits for that.
    interrupted = []
    early: list[int] = []  # before the program was there
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            interrupted.append(number)
        elif started:
            started[0].send_signal(number)
        else:
            early.append(number)

    before = {number: signal.signal(number, pass_on)
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        started.append(subprocess.Popen(plan.words, cwd=plan.cwd, env=plan.env,
                                        stdout=sys.stderr if quiet else None))
        for number in early:
            started[0].send_signal(number)
        status = started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted and status in (-signal.SIGINT, 128 + signal.SIGINT):
        _say(f"interrupted; {_left(plan)}")
        raise KeyboardInterrupt
    return status if status >= 0 else 128 - status


def link_back(record: Record, made: Record, found: compare.Comparison) -> None:
    """Write into the replay's own record what it replays, and how that went. Raises OSError."""
    made.data["replay_of"] = {"path": record.path, "digest": record.digest,
                              "same": found.is_same, "verdict": found.verdict()}
    text = json.dumps(made.data, indent=2, ensure_ascii=False) + "\n"
    write_text(made.path, text.encode("utf-8", "backslashreplace").decode())


def _its_record(record: Record, plan: Plan) -> Record | None:
    name = os.path.basename(record.path)
    for output in plan.outputs:
        above = os.path.dirname(output)
        names = [os.path.join(output, RECORD), record_beside(output),
                 *([os.path.join(output, name), os.path.join(above, name)]
                   if is_record_name(name) else [])]
        for path in names:
            if os.path.isfile(path):
                made = read_record(path)
                if made.text("recipe") == record.text("recipe"):
                    return made
    return None


def _left(plan: Plan) -> str:
    """Say what a replay that did not get to its end leaves."""
    is_there = os.path.isdir(plan.folder) and os.listdir(plan.folder)
    return f"what it wrote is in {plan.folder}" if is_there else "it wrote nothing"


def _take_folder(folder: str, asked: str | None) -> bool:
    """Make the folder of a replay, so that it is this one's; False if another has it by now."""
    _make_folder(os.path.dirname(folder))
    try:
        os.mkdir(folder)
    except FileExistsError:
        return asked is not None  # an empty one may be given
    except OSError as error:
        raise _no_folder(folder, error) from None
    return True


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise _no_folder(folder, error) from None


def _no_folder(folder: str, error: OSError) -> LLMError:
    return LLMError(f"the folder {folder} can't be made", error.strerror or str(error),
                    "name another one: --output FOLDER")


def _tell(record: Record, options: Options, plan: Plan, goes_on: bool) -> int:
    """Say what would run and what can't be had; return 0, or 2 where that stops it."""
    missing = obstacles(plan.findings)
    command = shlex.join(plan.words)
    hardware_now = hardware(record, this_host())
    if options.json:
        text = json.dumps({
            "record": record.path, "can_run": goes_on and bool(plan.words), "output": plan.folder,
            "command": plan.words, "cwd": plan.cwd, "hardware": hardware_now,
            "findings": [finding.as_json() for finding in plan.findings],
        }, indent=2, ensure_ascii=False)
        print(text.encode("utf-8", "backslashreplace").decode())
    elif options.dry_run:
        print("\n".join(finding.lines() for finding in plan.findings))
        print("\n".join(f"other hardware: {text}" for text in hardware_now) or "same hardware")
        print(f"would write to {plan.folder}")
        print(f"would run in {plan.cwd}: {command}" if command else "nothing could be run")
    if goes_on and plan.words:
        return 0
    if options.json:
        return 2
    count = f"{len(missing)} things" if len(missing) > 1 else "something"
    why = "\n       ".join(f"{one.part}: {one.text}" + (
        "\n         " + one.fix.replace("\n", "\n         ") if one.fix else "") for one in missing)
    fix = "bring them back; or go on with what is here: --best-effort"
    return report("llm-record", [LLMError(f"{count} of the recorded run can't be had", why, fix)])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
