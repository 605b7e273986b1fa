"""llm-run: run a command in an image.

    llm-run python train.py        # here, in the image `llm`
    llm-run --dry-run true         # the command line that this would be

Reads the command line and the settings, lets rank.py decide everything that depends on the node,
and becomes Apptainer: no process stays between the caller and the program, so signals and the
exit status are the program's own.
"""

from __future__ import annotations

import io
import os
import sys

from _llm.errors import LLMError, report
from _llm.options import Options, parse
from _llm.rank import ConfigurationError, Plan, plan_rank
from _llm.settings import load_settings

VERSION = "0.1.0"


def main(arguments: list[str]) -> int:
    """Run `llm-run` with `arguments` (without its name); return the exit status of a failure."""
    options = parse(arguments)
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
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
    try:
        plan = plan_rank(options, settings, env, home)
    except ConfigurationError as error:
        return report("llm-run", error.errors)
    if env.get("SLURM_PROCID", "0") == "0":
        for notice in plan.notices:
            print(f"llm-run: note: {notice}", file=sys.stderr)
    if options.dry_run:
        from _llm.help import command_line

        # Arguments may hold bytes that are no text; pasted, they have to be the same bytes.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        print(command_line(plan, env))
        return 0
    _become(plan, env)
    return 2


def _inform(options: Options, home: str) -> int:
    from _llm.help import HELP, USAGE, version_text

    if options.information == "--help":
        print(HELP)
    elif options.information == "--version":
        print(version_text(VERSION, home))
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
