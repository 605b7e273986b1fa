"""How a recorded run was started: launch options, variables, nodes; and what differs here."""

from __future__ import annotations

import os
import re

from _llm.record.configuration import HIDDEN
from _llm.record.finding import GONE, OTHER, UNKNOWN, Finding
from _llm.record.reading import Record, plain
from _llm.slurm import job_nodes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# As in recipes/llm_recipes/run_environment.py.
CHANGES_A_RUN = re.compile(
    r"(CUDA|NCCL|GLOO|OMP|MKL|TORCH|TORCHINDUCTOR|PYTORCH|CUBLAS|CUDNN|HF|TRANSFORMERS|TOKENIZERS"
    r"|DATASETS|TRITON|GGML|LLAMA|ACCELERATE|DEEPSPEED|DS|KMP|OPENBLAS|NVIDIA|LC)_.*"
    r"|PYTHONHASHSEED|LANG|LANGUAGE|TZ"
)
# Of a host, a job or a user, not of the run: places, devices, networks, secrets.
OF_A_HOST = re.compile(
    r".*_(HOME|DIR|PATH|CACHE|IFNAME|HCA|ENDPOINT|ROOT|VERSION)"
    r"|.*_(TOKEN|SECRET|PASSWORD|KEY)(_.*)?|.*VISIBLE_DEVICES|NVIDIA_.*"
)
# llm-run makes the locale C.UTF-8 in any case; the others are set by the recipes themselves.
NOT_SHOWN = re.compile("LANG|LANGUAGE|LC_.*|HF_HUB_DISABLE_.*|TRANSFORMERS_VERBOSITY"
                       "|TOKENIZERS_PARALLELISM")
NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def variables(record: Record, env: Mapping[str, str]) -> tuple[dict[str, str], list[Finding]]:
    """Return the environment for the run, made from `env`, and what it changes in it.

    Variables of CHANGES_A_RUN that the run did not have are taken out: a thread count that is set
    only here would give other digits. Older records have no variables; then all stay.
    """
    made = dict(env)
    recorded = record.data.get("environment")
    if not isinstance(recorded, dict):
        text = "the record has no variables: those that are set here hold"
        return made, [Finding("variables", UNKNOWN, text)]
    # What hides a secret stays as it is here.
    mine = {name: env[name] for name, value in recorded.items()
            if name in env and isinstance(value, str) and HIDDEN in value}
    wanted = {name: value for name, value in recorded.items()
              if isinstance(value, str) and "\0" not in value and HIDDEN not in value
              and counts(name)} | mine
    changes = []
    for name in sorted({*wanted, *filter(counts, env)}):
        old, new = env.get(name), wanted.get(name)
        if old == new:
            continue
        if new is None:
            del made[name]
        else:
            made[name] = new
        if not NOT_SHOWN.fullmatch(name):
            was = "not set" if old is None else f"'{old}'"
            changes.append(f"{name}={new} ({was} here)" if new is not None
                           else f"without {name} ({was} here)")
    text = "as recorded: " + ", ".join(changes)
    return made, [Finding("variables", UNKNOWN, text)] if changes else []


def launch_options(record: Record, env: Mapping[str, str], variant: str) -> \
        tuple[list[str], list[Finding]]:
    """Return the options for llm-run, without --image, and what is missing here for them.

    variant: of the image that is used.
    """
    launch = record.data.get("launch")
    sharing = record.data.get("sharing")
    if not isinstance(launch, dict):
        processes = sharing.get("processes") if isinstance(sharing, dict) else 1
        if isinstance(processes, int) and processes > 1:
            return [], [Finding("launch", GONE, f"it ran as {processes} processes; the record does "
                                "not say how they were started")]
        text = "the record does not say how it was started: one process, here"
        return [], [Finding("launch", UNKNOWN, text)]
    words: list[str] = []
    gpu = launch.get("gpu")
    if isinstance(gpu, bool) and not (gpu and variant == "cpu"):
        words.append("--gpu" if gpu else "--no-gpu")
    if launch.get("torchrun") is True:
        words.append("--torchrun")
        if _count(launch, "nproc_per_node"):
            words += ["--nproc-per-node", str(_count(launch, "nproc_per_node"))]
    more, findings = _own_variables(launch.get("env"), env)
    words += more
    nodes, tasks = _count(launch, "nodes") or 1, _count(launch, "tasks_per_node") or 1
    if tasks > 1 and launch.get("torchrun") is not True:
        words += ["--tasks-per-node", str(tasks)]
    here = job_nodes(env) if env.get("SLURM_JOB_ID") else 0
    needs_job = nodes > 1 or "--tasks-per-node" in words
    if here == nodes or (not here and not needs_job):
        return words, findings
    asked = f"--nodes={nodes}" + (f" --ntasks-per-node={tasks}" if tasks > 1 else "")
    there = f"this job has {here}" if here else "this is no job"
    text = f"it ran on {nodes} node{'s' * (nodes > 1)}; {there}"
    fix = f"salloc {asked} llm-record replay {plain(record.path)}"
    return words, [*findings, Finding("launch", OTHER, text, fix)]


def hardware(record: Record, now: Mapping[str, object]) -> list[str]:
    """Return what of the hardware is another one, a line each. now: a record's `host`."""
    names = ("cpu_model", "cpus", "memory_bytes", "gpus", "gpu_memory_bytes", "driver", "kernel",
             "device")
    then = record.part("host")
    return [f"{name}: {plain(then[name])} -> {plain(now[name])}" for name in names
            if name in then and name in now and (then[name] or None) != (now[name] or None)]


def this_host() -> dict[str, object]:
    """Return what can be told of this machine without starting anything."""
    found: dict[str, object] = {"kernel": os.uname().release}
    found["cpus"] = len(os.sched_getaffinity(0))
    found["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            named = re.search(r"(?m)^(?:model name|cpu|Model)\s*:\s*(.+)$", file.read(4096))
    except OSError:
        named = None
    if named:
        found["cpu_model"] = named[1].strip()
    return found


def counts(name: str) -> bool:
    """Say whether a variable belongs to a run: not to a host, a job or a user."""
    return bool(NAME.fullmatch(name) and CHANGES_A_RUN.fullmatch(name)
                and not OF_A_HOST.fullmatch(name))


def _own_variables(own: object, env: Mapping[str, str]) -> tuple[list[str], list[Finding]]:
    """Return the --env options of a run; one with a secret in it has to be set here."""
    words, hidden = [], []
    for name, value in own.items() if isinstance(own, dict) else ():
        if not NAME.fullmatch(name) or not isinstance(value, str) or "\0" in value:
            continue
        if HIDDEN in value and name not in env:
            hidden.append(name)
        else:
            words += ["--env", f"{name}={env[name] if HIDDEN in value else value}"]
    if not hidden:
        return words, []
    text = f"the record hides what --env gave to {', '.join(hidden)}"
    fix = "; ".join(f"export {name}=VALUE" for name in hidden)
    return words, [Finding("launch", OTHER, text, fix)]


def _count(launch: dict[str, object], name: str) -> int:
    value = launch.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
