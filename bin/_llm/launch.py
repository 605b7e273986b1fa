"""From a job's allocation or batch script to the nodes: becomes srun, or stays for --requeue.

sbatch --nodes=2 --gpus=2 llm-run python train.py
"""

from __future__ import annotations

import os
import sys

from _llm.batch import plan_batch, run_resident
from _llm.errors import LLMError
from _llm.step import plan_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _llm.options import Options
    from _llm.place import Place
    from _llm.settings import Settings


def launch(
    options: Options, settings: Settings, env: dict[str, str], home: str, place: Place
) -> int:
    """Start the program on every node of the job that `place` is in; return its exit status."""
    if env.get("SLURM_HET_SIZE", "1") not in ("", "1"):
        raise LLMError(
            f"job {place.job} is heterogeneous",
            f"it has {env['SLURM_HET_SIZE']} parts, and llm-run starts the same on every node",
            "start the parts yourself: srun --het-group=0,1 llm-run COMMAND",
        )
    job = None
    if place.kind == "batch":
        step, job = plan_batch(options, settings, env, home, place)
    else:
        if options.requeue:
            raise LLMError(
                "--requeue is for batch jobs",
                "an allocation ends with its shell, so there is nothing to put back into the queue",
                "llm-run --submit --requeue ... -- COMMAND, or: sbatch llm-run --requeue COMMAND",
            )
        step = plan_step(options, settings, env, home, place)
    for notice in step.notices:
        print(f"llm-run: note: {notice}", file=sys.stderr)
    if options.dry_run:
        from _llm.help import step_line

        print(step_line(step, env))
        return 0
    if job and options.requeue:
        return run_resident(options, env, home, place, step, job)
    sys.stderr.flush()
    os.execve(step.arguments[0], step.arguments, step.environment)
