"""llm-doctor: what works here, and what to do about the rest.

llm-doctor                      # this machine
llm-doctor --job                # inside a job: every node of it
"""

from __future__ import annotations

import io
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from _llm.doctor import gpu, image, machine, network, quota, report, scheduler, start, storage
from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, SKIP, Finding
from _llm.doctor.limits import HANGS, Stage, Task, run_tasks
from _llm.doctor.options import HELP, Options, parse
from _llm.errors import LLMError
from _llm.settings import load_settings
from _llm.slurm import job_nodes
from _llm.values import user_home

FOLDER_SECONDS = 10.0
# Folders that users fill.
QUOTAS = ("working folder", "home", "cache", "scratch")
HOST_SECONDS = 30.0
# Kept for the image even where everything else took its time.
CLEANING_SECONDS = 2.0


def main(arguments: list[str]) -> int:
    """Run `llm-doctor` with `arguments` (without its name); return its exit status."""
    options = parse(arguments)
    home = os.path.dirname(
        os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    )
    if options.information:
        return _inform(options, home)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    started = time.monotonic()
    env = dict(os.environ)
    overrides = {"container.image": options.image} if options.image else {}
    settings = load_settings(env, home, options.site, overrides)
    token = secrets.token_hex(8)
    context = Context(
        settings, env, home, token, tuple(options.models), options.checksum, options.collect_env
    )
    deadline = started + options.limit - CLEANING_SECONDS
    if options.node:
        from _llm.doctor import node

        def check() -> Iterator[list[Finding]]:
            return check_node(context, options, deadline, sys.stdin.fileno())

        return node.run(context, check, options.limit)
    if options.job:
        from _llm.doctor import job

        return job.run(options, context, started)
    found = []
    color = report.wants_color(env)
    for findings in check_node(context, options, deadline):
        found += findings
        if not options.json:
            for finding in findings:
                print(report.lines(finding, 0, [], color), flush=True)
    return finish(options, settings.site, found, [os.uname().nodename], started)


def finish(
    options: Options, site: str, found: Sequence[Finding], nodes: Sequence[str], started: float
) -> int:
    """Print the end, or everything as JSON; return the exit status."""
    if options.json:
        named = [
            finding if finding.node or len(nodes) > 1 else finding.on(nodes[0]) for finding in found
        ]
        print(report.as_json(named, site, nodes))
    else:
        print(report.summary(found, len(nodes), time.monotonic() - started))
    return 1 if any(finding.status == FAIL for finding in found) else 0


def check_node(
    context: Context, options: Options, deadline: float, stop_when_readable: int | None = None
) -> Iterator[list[Finding]]:
    """Check this node: first all that needs no image, at once, then what a program in it sees.

    deadline, stop_when_readable: as for run_tasks.
    """
    env, settings = context.env, context.settings
    node_count = job_nodes(env)
    user, cwd = _home(env), _working_folder()
    places = storage.folders(settings, env, user, cwd)
    tasks = [
        Task("site", HOST_SECONDS, lambda stage: scheduler.site(settings, env, options.site)),
        Task("machine", HOST_SECONDS, lambda stage: machine.machine(env)),
        Task("apptainer", HOST_SECONDS, lambda stage: machine.runtime(env, context.home, settings)),
        Task("gpu", HOST_SECONDS, lambda stage: gpu.node(context, stage)),
        *(_folder_task(place, context, user) for place in places),
        Task(
            "image",
            3600.0 if options.checksum else HOST_SECONDS,
            lambda stage: image.image(context, stage),
            "is its file system reachable? LLM_IMAGE_DIR=/where/it/is names another",
        ),
        Task(
            "network",
            HOST_SECONDS,
            lambda stage: network.node(settings, node_count, stage),
            "an administrator: is the name service (DNS, LDAP) reachable from this node?",
        ),
        Task("slurm", HOST_SECONDS + 10, lambda stage: scheduler.slurm(settings, env, stage)),
        Task("modules", HOST_SECONDS, lambda stage: scheduler.modules(settings, env)),
    ]
    found: list[Finding] = []
    try:
        for findings in run_tasks(tasks, deadline, stop_when_readable):
            found += findings
            yield findings
        yield from _inside(context, places, found, deadline, stop_when_readable)
    finally:
        hanging = [finding.check for finding in found if finding.text.startswith(HANGS)]
        _clean([place for place in places if place.name not in hanging], context.token)


def _folder_task(place: storage.Folder, context: Context, user: str) -> Task:
    def probe(stage: Stage) -> list[Finding]:
        found = storage.check_folder(place, context.env, user, context.token, stage)
        return found + (quota.quota(place, context.env, stage) if place.name in QUOTAS else [])

    return Task(
        place.name,
        FOLDER_SECONDS,
        probe,
        f"its server or disk does not answer: tell the administrator, or {place.fix}",
    )


def _inside(
    context: Context,
    places: Sequence[storage.Folder],
    found: Sequence[Finding],
    deadline: float,
    stop_when_readable: int | None,
) -> Iterator[list[Finding]]:
    broken = [
        f.check
        for f in found
        if f.status == FAIL
        and (f.check in ("apptainer", "image", "image file") or f.text.startswith(HANGS))
    ]
    if broken:
        text = f"not started, because of: {'; '.join(broken)}"
        yield [Finding("start", SKIP, text)]
        return
    states = {f.check: f.data["writable"] for f in found if "writable" in f.data}
    folders = {
        place.name: replace(place, writable=bool(states[place.name]))
        for place in places
        if place.name in states
    }
    seconds = max(1.0, deadline - time.monotonic())

    def probe(stage: Stage) -> list[Finding]:
        return start.inside(context, folders, seconds - 1, stage)

    yield from run_tasks([Task("start", seconds, probe)], deadline, stop_when_readable)


def _clean(folders: Sequence[storage.Folder], token: str) -> None:
    """Remove what checks left that were ended from outside; in processes, because that may hang."""

    def probe(folder: storage.Folder) -> list[Finding]:
        storage.remove_mark(folder, token)
        return []

    tasks = [
        Task("cleaning", CLEANING_SECONDS, lambda stage, folder=folder: probe(folder))  # type: ignore[misc]
        for folder in folders
    ]
    list(run_tasks(tasks, time.monotonic() + CLEANING_SECONDS))


def _home(env: dict[str, str]) -> str:
    try:
        return user_home(env)
    except LLMError:
        return "/"


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""  # gone; the start says so


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _inform(options: Options, home: str) -> int:
    if options.information == "--version":
        from _llm.help import version_text
        from _llm.run import VERSION

        print(version_text("llm-doctor", VERSION, home))
    else:
        print(HELP)
    return 0
