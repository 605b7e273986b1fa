"""What llm-run says to Slurm and understands of it: steps, lists of nodes, jobs.

    salloc --nodes=2 llm-run --dry-run true      # prints the srun command that this module makes
"""

from __future__ import annotations

import os
import re

from _llm.apptainer import find_program
from _llm.errors import LLMError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# `JobName=a b Partition=x`: a value ends where the next name begins.
FIELD = re.compile(r"(\S+?)=(.*?)(?= +[A-Z][\w/:]*=|$)")
# Seconds: answers of slurmctld; and until a step's resources are free.
ANSWER_LIMIT = 30
STEP_LIMIT = 120
# What a step must not inherit: the job's own idea of tasks (srun would start as many), and the
# variables of the step that this job was submitted from.
STALE_IN_STEPS = (
    *("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_CPUS_PER_TASK", "SLURM_TRES_PER_TASK"),
    *("SLURM_STEP_", "SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    *("SLURM_GTIDS", "SLURM_TASK_PID", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_DISTRIBUTION"),
    *("SLURM_SRUN_COMM_", "SLURM_LAUNCH_NODE_IPADDR", "SLURM_UMASK", "SLURM_TASKS_PER_NODE"),
    *("SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU", "SLURM_MEM_PER_NODE"),
    *("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "SLURM_THREADS_PER_CORE", "SLURM_EXACT"),
    *("SRUN_CPUS_PER_TASK", "SLURM_EXCLUSIVE", "SLURM_WAIT", "SLURM_TRES_BIND"),
)
# squeue(1), JOB STATE CODES: the ones that a job does not leave by itself.
ENDED = frozenset(
    [
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "SPECIAL_EXIT", "TIMEOUT"),
    ]
)
# Of a job that another one is submitted from, only these still mean something.
KEPT_AT_SUBMISSION = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_JWT")


def need(program: str, env: Mapping[str, str]) -> str:
    """Return the path of one of Slurm's programs. Raises LLMError where there is none."""
    path = find_program(program, env.get("PATH", "") or os.defpath)
    if not path:
        raise LLMError(
            f"{program} is not on PATH",
            "it is needed to start something through Slurm",
            "log in to a node of the cluster, or: module load slurm; "
            "llm-run --launch=local COMMAND runs it here",
        )
    return path


def step_command(
    srun: str, nodes: int, tasks_per_node: int, pty: bool = False, extra: Sequence[str] = ()
) -> list[str]:
    """Return the beginning of the command that starts a step on every node of the job.

    srun: its path. extra: more options of srun. --ntasks stands beside --ntasks-per-node because
    srun ignores the latter alone where the job asked for tasks. --mem=0: the job's memory is not
    divided, so that a second step with --overlap does not wait for some of its own. --wait=0: a
    task that is done does not end those that still save, whatever the site's WaitTime.
    """
    return [
        *(srun, f"--nodes={nodes}", f"--ntasks={nodes * tasks_per_node}"),
        *(f"--ntasks-per-node={tasks_per_node}", "--export=ALL", "--cpu-bind=none", "--mpi=none"),
        *("--kill-on-bad-exit=1", "--wait=0", "--mem=0", f"--immediate={STEP_LIMIT}"),
        *(["--pty"] if pty else []),
        *extra,
    ]


def step_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for srun: `env` without what would mislead the new step."""
    kept = {name: value for name, value in env.items() if not name.startswith(STALE_IN_STEPS)}
    # A job of `sbatch --export=NONE` tells srun to hand on nothing, and has no PATH.
    kept.pop("SLURM_EXPORT_ENV", None)
    kept.setdefault("PATH", os.defpath)
    return kept


def submission_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for sbatch: inside a job, without that job's variables."""
    return {
        name: value
        for name, value in env.items()
        if not name.startswith("SLURM_") or name in KEPT_AT_SUBMISSION
    }


def number(env: Mapping[str, str], name: str, otherwise: int) -> int:
    """Return the number that a variable holds, `otherwise` where it is unset or holds none."""
    text = env.get(name, "")
    return int(text) if text.isdigit() else otherwise


def job_nodes(env: Mapping[str, str]) -> int:
    """Return the number of nodes of the job that `env` belongs to."""
    return number(env, "SLURM_JOB_NUM_NODES", number(env, "SLURM_NNODES", 1))


def expand_nodes(text: str) -> list[str]:
    """Return the names in a list of nodes such as `n[1-2,08],login`.

    Raises ValueError for one that is malformed.
    """
    names: list[str] = []
    for item in _split(text):
        begin, bracket, rest = item.partition("[")
        inner, closed, end = rest.partition("]")
        if bracket and not closed:
            raise ValueError(f"'{text}' is no list of nodes")
        if not bracket:
            names.append(item)
            continue
        endings = expand_nodes(end) if end else [""]
        names += [f"{begin}{number}{e}" for number in _numbers(inner, text) for e in endings]
    return names


def _split(text: str) -> list[str]:
    """Split at commas that are not in brackets."""
    items, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return [item for item in items if item]


def _numbers(text: str, whole: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit()):
            raise ValueError(f"'{whole}' is no list of nodes")
        found += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return found


def ask(
    command: Sequence[str],
    env: Mapping[str, str],
    script: str = "",
    limit: float | None = ANSWER_LIMIT,
) -> tuple[int, str, str]:
    """Run one of Slurm's programs; return exit status, output and what it complained about.

    script: its standard input. limit: in seconds, None for none. Status 124 stands for no answer
    within it.
    """
    import subprocess

    try:
        done = subprocess.run(
            command,
            env=dict(env),
            input=os.fsencode(script),
            capture_output=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer within {limit} s"
    except OSError as error:
        return 127, "", error.strerror or str(error)
    output, complaint = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return done.returncode, output, complaint.strip()


def show_job(job: str, env: Mapping[str, str], details: bool = False) -> dict[str, str]:
    """Return what `scontrol show job` says of a job, {} when Slurm does not know it (any more).

    details: also what the job has on each node, as the text of the key "details".
    Raises LLMError when Slurm does not answer.
    """
    scontrol = need("scontrol", env)
    options = ["--details"] if details else []
    env = {**env, "SLURM_TIME_FORMAT": "standard"}
    status, output, complaint = ask([scontrol, *options, "--oneliner", "show", "job", job], env)
    if status and "nvalid job id" not in complaint:
        raise LLMError(
            "Slurm does not answer",
            complaint or f"scontrol show job {job}: exit status {status}",
            "scontrol ping; sinfo",
        )
    if status:
        return {}
    # The id of an array's last task is the array's too, and means all of it.
    records = output.splitlines()
    mine = [line for line in records if line.startswith(f"JobId={job} ")] or records[:1]
    fields = dict(FIELD.findall(mine[0].rstrip())) if mine else {}
    if details and mine:
        fields["details"] = mine[0]
    return fields


def gpus_of_nodes(details: str) -> dict[str, int]:
    """Return node -> number of GPUs from what `scontrol --details show job` says.

    `Nodes=n[1-2] CPU_IDs=0-1 Mem=0 GRES=gpu:v100:2(IDX:0-1),nic:1(IDX:0)`
    """
    counts: dict[str, int] = {}
    nodes: list[str] = []
    for word in details.split():
        key, _, value = word.partition("=")
        if key == "Nodes":
            try:
                nodes = expand_nodes(value)
            except ValueError:
                nodes = []
        elif key == "GRES" and nodes:
            count = sum(_gpus(item) for item in value.replace(")", "").split(","))
            counts.update(dict.fromkeys(nodes, count))
            nodes = []
    return counts


def _gpus(item: str) -> int:
    words = item.partition("(")[0].split(":")
    return int(words[-1]) if words[0] == "gpu" and words[-1].isdigit() else 0


def has_ended(fields: Mapping[str, str]) -> bool:
    """Say whether a job, as show_job describes it, is over or unknown."""
    return not fields or fields.get("JobState", "") in ENDED


def scontrol_name(env: Mapping[str, str]) -> str:
    """Return the name of this job for scontrol: in an array, of this task and no other."""
    if env.get("SLURM_ARRAY_JOB_ID") and env.get("SLURM_ARRAY_TASK_ID"):
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def log_stem(name: str, job: str) -> str:
    """Return the beginning of the log files' names, as sbatch makes it of %x-%j and %x-%A_%a.

    job: its id, or array and task as scontrol_name has them.
    """
    return f"{name.replace('/', '_')}-{job}"
