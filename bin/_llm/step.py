"""Start a program on every node of a job, through srun.

    salloc --nodes=2 --gpus=2 llm-run python train.py
    sbatch --nodes=2 --gpus=2 llm-run python train.py

Nothing that depends on a node is decided here: `salloc` runs its command on the submit host. srun
starts llm-run once more on each node, in the role `rank`, and that decides.
"""

from __future__ import annotations

import os
import sys

from _llm.errors import LLMError
from _llm.lookup import PINS
from _llm.pins import pin_images, wanted_image
from _llm.rendezvous import TOKEN_VARIABLE, new_token
from _llm.signing.ahead import job_has_gpus, look_ahead
from _llm.slurm import (
    STEP_LIMIT,
    ask,
    has_ended,
    job_nodes,
    need,
    show_job,
    step_command,
    step_environment,
)
from _llm.torchrun import PORT_VARIABLE, check_gpu_counts, free_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _llm.options import Options
    from _llm.place import Place
    from _llm.settings import Settings


class Step:
    """A step to start: srun and its arguments, its environment, what the user should know.

    site: the path of the site's profile.
    """

    __slots__ = ("arguments", "environment", "notices", "site")

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.arguments = arguments
        self.environment = environment
        self.notices: list[str] = []
        self.site = ""


def plan_step(
    options: Options,
    settings: Settings,
    env: Mapping[str, str],
    home: str,
    place: Place,
    srun_options: Sequence[str] = (),
) -> Step:
    """Decide how the program starts on all nodes of the job.

    place: the allocation, batch script or interactive step that this process is in. srun_options:
    further ones. Raises LLMError where the job is over or its nodes do not fit the program.
    """
    notices: list[str] = []
    if place.kind == "allocation":
        _check_allocation(place.job, env, notices)
    nodes = job_nodes(env)
    if options.torchrun and options.processes is None and nodes > 1:
        check_gpu_counts(place.job, env)
    tasks = options.tasks_per_node or 1
    # A terminal for one task; several would share it.
    pty = place.kind != "batch" and nodes * tasks == 1 and sys.stdin.isatty() and _shows_output()
    on_a_node = place.kind != "allocation"
    notices += look_ahead(options, settings, env, home, job_has_gpus(env, on_a_node),
                          several=nodes > 1 and not options.dry_run)
    environment = step_environment(env)
    pins = pin_images(settings, env, home)
    if pins:
        environment[PINS] = pins
    if nodes > 1:
        environment[TOKEN_VARIABLE] = new_token()
        if place.kind == "batch" and PORT_VARIABLE not in env:
            environment[PORT_VARIABLE] = str(free_port(env))
    start = step_command(need("srun", env), nodes, tasks, pty, srun_options)
    step = Step([*start, *rank_command(options, settings, home)], environment)
    step.notices = notices
    step.site = settings.site_file
    return step


def rank_command(options: Options, settings: Settings, home: str) -> list[str]:
    """Return the command that starts the program on its node: llm-run in the role `rank`.

    The site's profile is named: the host names of compute nodes may match none, or another one.
    """
    return [
        *(os.path.join(home, "bin", "llm-run"), "--role", "rank", "--site", settings.site_file),
        *("--image", wanted_image(settings), *options.words(), "--", *options.command),
    ]


def _shows_output() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty()


def _check_allocation(job: str, env: Mapping[str, str], notices: list[str]) -> None:
    """Raise LLMError for a job that is over; note what else uses the job's resources."""
    fields = show_job(job, env)
    if has_ended(fields):
        state = fields.get("JobState", "Slurm does not know it any more").lower()
        raise LLMError(
            f"job {job} has ended",
            f"this terminal is left over from it (SLURM_JOB_ID={job}; {state})",
            "exit, and ask for resources again: salloc ...; "
            "or, to run it here: llm-run --launch=local COMMAND",
        )
    _, output, _ = ask([need("squeue", env), "--steps", "--noheader", "--jobs", job,
                        "--format=%i %j"], env)
    steps = [line.split(None, 1) for line in output.splitlines()]
    busy = [words[0] for words in steps if words and words[0].rpartition(".")[2].isdigit()]
    if busy and not env.get("SLURM_OVERLAP"):
        notices.append(
            f"step {', '.join(busy)} runs in this job; waiting up to {STEP_LIMIT} s for its "
            "resources (to share them: export SLURM_OVERLAP=1)"
        )
