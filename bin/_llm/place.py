"""Where a program was started: outside of Slurm, in an allocation, a batch script or a step.

    salloc --nodes=2 llm-run --dry-run true      # an allocation: prints an srun command

The environment alone does not tell. A job that was submitted from inside another one inherits that
one's SLURM_STEP_ID, an interactive step has an id of its own, and a terminal may outlive its job.
So the processes above this one decide: Slurm's slurmstepd, which names job and step, or salloc.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# slurm/slurm.h: SLURM_BATCH_SCRIPT, SLURM_INTERACTIVE_STEP
HET_IDS = "SLURM_JOB_ID_HET_GROUP_"
SPECIAL_STEPS = {"4294967291": "batch", "4294967290": "interactive", "4294967292": "extern"}


class Place:
    """Where this process runs.

    kind: "host" (no job), "allocation" (a job's resources, no step: a shell of salloc, or one with
    a job's variables), "batch", "interactive" or "step". job: its id, "" on a host.
    """

    __slots__ = ("job", "kind")

    def __init__(self, kind: str, job: str = "") -> None:
        self.kind = kind
        self.job = job


def find_place(env: Mapping[str, str], proc: str = "/proc") -> Place:
    """Return where this process runs. proc: where the kernel shows the processes."""
    job = env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID", "")
    if not job:
        return Place("host")
    parents = list(_ancestors(proc))
    for command, _ in parents:
        if os.path.basename(command.split("\0", 1)[0]) == "salloc":
            return Place("allocation", job)
        if command.startswith("slurmstepd: ["):
            found, step = _parse_title(command)
            # Parts of a heterogeneous job have ids of their own.
            parts = [value for name, value in env.items() if name.startswith(HET_IDS)]
            if found not in (job, *parts):
                return Place("allocation", job)
            return Place(_kind(step), job)
    # /proc may hide the processes of others (hidepid), slurmstepd among them; cgroups do not.
    step = _step_of_cgroup(proc, job)
    if not step and env.get("SLURM_TASK_PID") in [pid for _, pid in parents]:
        step = env.get("SLURM_STEP_ID", "batch")
    return Place(_kind(step) if step else "allocation", job)


def _kind(step: str) -> str:
    step = SPECIAL_STEPS.get(step, step)
    return "step" if step.isdigit() else step if step in ("batch", "interactive") else "allocation"


def _parse_title(title: str) -> tuple[str, str]:
    """Return job and step of `slurmstepd: [12.batch]`, `[12.0]`, of a part of one `[12+1.0]`."""
    job, _, step = title[len("slurmstepd: [") :].partition("]")[0].partition(".")
    return job.partition("+")[0], step.partition("+")[0]


def _ancestors(proc: str) -> Iterator[tuple[str, str]]:
    """Give (command line, pid) of this process and of those above it, as far as can be seen."""
    pid = "self"
    while pid != "0":
        try:
            with open(os.path.join(proc, pid, "stat"), encoding="utf-8", errors="replace") as file:
                # "12 (a name) S 11 ...": the name may hold anything.
                begin, _, rest = file.read().rpartition(")")
            with open(
                os.path.join(proc, pid, "cmdline"), encoding="utf-8", errors="replace"
            ) as file:
                command = file.read()
        except OSError:
            return
        yield command, begin.partition(" ")[0]
        pid = rest.split()[1]


def _step_of_cgroup(proc: str, job: str) -> str:
    """Return the step that this process' cgroup names: `.../job_12/step_0/...`, "" for none."""
    try:
        with open(os.path.join(proc, "self", "cgroup"), encoding="utf-8") as file:
            paths = file.read()
    except OSError:
        return ""
    for part in paths.partition(f"/job_{job}/step_")[2].split("/")[:1]:
        return part.split("\n")[0]
    return ""
