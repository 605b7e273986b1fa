"""llm-run: run a command in an image: here, on the nodes of a job, or as a job of its own.

    llm-run python train.py                              # here, in the image `llm`
    salloc --gpus=1 llm-run python train.py              # on the nodes of the allocation
    llm-run --submit --gpus=1 -- python train.py         # as a job
    llm-run --dry-run true                               # what this would start

Reads the command line and the settings and finds out which role it has (place.py). On the node
where the program runs, rank.py decides everything that depends on that node, and llm-run becomes
Apptainer: no process stays between the scheduler and the program, so signals and the exit status
are the program's own.
"""

from __future__ import annotations

import io
import os
import sys

from _llm.errors import LLMError, report
from _llm.options import Options, parse
from _llm.rank import ConfigurationError, Plan, plan_rank
from _llm.settings import Settings, load_settings

VERSION = "0.1.0"


def main(arguments: list[str]) -> int:
    """Run `llm-run` with `arguments` (without its name); return the exit status of a failure."""
    options = parse(arguments)
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    if options.information in ("--help", "--version") or not (
        options.information or options.command
    ):
        return _inform(options, home)
    # Plain dictionaries are much faster than os.environ, which encodes and decodes at each look.
    env = dict(os.environ)
    overrides = {"container.image": options.image} if options.image else {}
    settings = load_settings(env, home, options.site, overrides)
    if options.information == "--show-config":
        from _llm.help import config_text

        print(config_text(settings))
        return 0
    if options.submit:
        from _llm.submit import submit

        return submit(options, settings, env, home)
    if options.role == "signal":
        return _signal(options, settings)
    if options.role != "rank" and options.launch != "local" and env.get("SLURM_JOB_ID"):
        from _llm.place import find_place
        from _llm.slurm import job_nodes

        place = find_place(env)
        # An interactive step is a shell on the first node: enough for one node, not for several.
        several = job_nodes(env) > 1 or (options.tasks_per_node or 1) > 1
        if place.kind in ("allocation", "batch") or (place.kind == "interactive" and several):
            from _llm.launch import launch

            return launch(options, settings, env, home, place)
    if not options.role:
        _check_here(options)
    return _run_here(options, settings, env, home)


def _check_here(options: Options) -> None:
    """Raise LLMError for options that only mean something where llm-run makes the step itself."""
    for option, given in (
        ("--requeue", options.requeue),
        ("--tasks-per-node", options.tasks_per_node not in (None, 1)),
    ):
        if given:
            raise LLMError(
                f"{option} means nothing here",
                "the command runs once, here: this is no job, a step of one, or --launch=local",
                "sbatch or salloc in front of llm-run; or: llm-run --submit ... -- COMMAND",
            )


def _run_here(options: Options, settings: Settings, env: dict[str, str], home: str) -> int:
    """Run the program on this node, in this process' place."""
    # With several nodes, what went wrong has to say where.
    node = env.get("SLURMD_NODENAME", "")
    name = f"llm-run on {node}" if node and env.get("SLURM_JOB_ID") else "llm-run"
    try:
        plan = plan_rank(options, settings, env, home)
    except ConfigurationError as error:
        return report(name, error.errors)
    except LLMError as error:
        return report(name, [error])
    if env.get("SLURM_PROCID", "0") == "0":
        for notice in plan.notices:
            print(f"{name}: note: {notice}", file=sys.stderr)
    if options.dry_run:
        from _llm.help import command_line

        # Arguments may hold bytes that are no text; pasted, they have to be the same bytes.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        print(command_line(plan, env))
        return 0
    _become(plan, env)
    return 2


def _signal(options: Options, settings: Settings) -> int:
    """Signal the job's programs on this node; the command is the job's id."""
    from _llm.stop_signal import send
    from _llm.visible import local_folder

    reached = send(
        options.stop_signal, local_folder(settings), options.command[0], options.torchrun
    )
    print(f"{os.uname().nodename}: SIG{options.stop_signal} sent to {reached} processes")
    return 0


def _inform(options: Options, home: str) -> int:
    from _llm.help import HELP, USAGE, version_text

    if options.information == "--help":
        print(HELP)
    elif options.information == "--version":
        print(version_text("llm-run", VERSION, home))
    else:
        print(f"llm-run: no command given\n\n{USAGE}", file=sys.stderr)
        return 2
    return 0


def _become(plan: Plan, env: dict[str, str]) -> None:
    sys.stderr.flush()
    try:
        os.execve(plan.arguments[0], plan.arguments, plan.environment(env))
    except OSError as error:
        raise LLMError(
            f"{plan.arguments[0]} cannot be started",
            error.strerror or str(error),
            "check it with --version, or name another one with LLM_APPTAINER",
        ) from None
