"""The machine itself: system, CPUs, memory, and Apptainer with what it needs of the kernel."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from _llm import checks
from _llm.apptainer import Apptainer, find_apptainer
from _llm.doctor.finding import FAIL, OK, WARN, Finding, from_error, from_problem
from _llm.errors import LLMError
from _llm.gpus import find_gpus
from _llm.settings import Settings
from _llm.slurm import number
from _llm.unpack import is_privileged, is_setuid

# Before it, image files were mounted by setuid installations only.
# https://github.com/apptainer/apptainer/releases/tag/v1.1.0
OLDEST_APPTAINER = (1, 1)


def machine(env: Mapping[str, str]) -> list[Finding]:
    """What this node is, and whether the CPUs that this process may use are enough for its GPUs."""
    cpus = len(os.sched_getaffinity(0))
    every = os.cpu_count() or cpus
    memory = memory_bytes()
    limit = memory_limit(env)
    share = f"{cpus} of {every} CPUs" if cpus < every else f"{cpus} CPUs"
    text = f"{_system()}, Linux {platform.release()}, {platform.machine()}"
    measured = f"{share}, {gib(limit or memory)} memory" + (" for this job" if limit else "")
    version = ".".join(map(str, sys.version_info[:3]))
    data = {"cpus": cpus, "all_cpus": every, "memory_bytes": memory, "memory_limit_bytes": limit}
    found = [
        Finding("machine", OK, text, measured=measured, data=data),
        Finding("python", OK, f"the host's is {version} ({sys.executable})"),
    ]
    if cpus < 2 and every > 1 and env.get("SLURM_JOB_ID") and find_gpus(env).usable:
        fix = "ask for more: sbatch --cpus-per-task=8, or --cpus-per-gpu=8"
        text = "the job has 1 CPU and a GPU: preparing data will hold the GPU up"
        found.append(Finding("cpus", WARN, text, fix))
    return found


def runtime(env: Mapping[str, str], home: str, settings: Settings) -> list[Finding]:
    """Apptainer: which one, its version, how it starts images, what the kernel allows it."""
    try:
        program = find_apptainer(env, home, settings.get("container", "apptainer"))
    except LLMError as error:
        return [from_error("apptainer", error), *_kernel("")]
    version = checks.apptainer_version(program.path)
    name = os.path.basename(os.path.realpath(program.path))
    text = f"{name} {version} at {program.path}, {mode(program)}"
    data = {"path": program.path, "version": version, "mode": mode(program)}
    status, fix = OK, ""
    numbers = tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())
    if len(numbers) < 2:
        status, fix = FAIL, f"it does not answer: '{program.path}' --version"
    elif name == "apptainer" and numbers < OLDEST_APPTAINER and not is_setuid(program.path):
        status, fix = WARN, "install Apptainer 1.1 or newer: older ones unpack the whole image"
    return [Finding("apptainer", status, text, fix, data=data), *_kernel(program.path, program)]


def mode(program: Apptainer) -> str:
    """How an Apptainer starts images for this user."""
    if "--userns" in program.exec_flags:
        return "as root in a user namespace"
    if os.geteuid() == 0:
        return "as root"
    return "setuid" if is_setuid(program.path) else "in a user namespace"


def _kernel(path: str, program: Apptainer | None = None) -> list[Finding]:
    namespaces = from_problem("user namespaces", checks.user_namespaces(path), "available")
    fuse = from_problem("fuse", checks.fuse_device(), "/dev/fuse can be used")
    if fuse.status == WARN and program and is_privileged(program):
        text = "/dev/fuse is not accessible, and not needed: this Apptainer mounts images itself"
        fuse = Finding("fuse", OK, text)
    problem = checks.subordinate_ids()
    text = "builds can use subordinate ids"
    if problem:
        text = f"{problem.what}: needed for builds alone, which then use the fakeroot program"
    return [namespaces, fuse, Finding("subordinate ids", OK, text)]


def memory_bytes() -> int:
    """Memory of this node."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_limit(env: Mapping[str, str], root: str = "/") -> int:
    """What this job may use of the node's memory, in bytes; 0 for all of it.

    root: where to look for proc/ and sys/.
    """
    limits = [number(env, "SLURM_MEM_PER_NODE", 0) << 20]
    per_core = number(env, "SLURM_MEM_PER_CPU", 0) << 20
    limits.append(per_core * number(env, "SLURM_CPUS_ON_NODE", 0))
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    limits += [0 if soft == resource.RLIM_INFINITY else soft, *_cgroup_limits(root)]
    smallest = min((limit for limit in limits if limit), default=0)
    return smallest if smallest < memory_bytes() else 0


def _cgroup_limits(root: str) -> list[int]:
    """Limits of this process's control group and of those above it (cgroups(7))."""
    try:
        lines = Path(root, "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        names = {"": "memory.max", "memory": "memory.limit_in_bytes"}
        if kinds not in names:
            continue
        top = Path(root, "sys/fs/cgroup", kinds)
        folder = top / path.lstrip("/")
        for place in [folder, *folder.parents]:
            with contextlib.suppress(OSError, ValueError):  # "max" is none
                found.append(int((place / names[kinds]).read_text(encoding="utf-8")))
            if place == top:
                break
    return found


def _system() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            fields = dict(line.strip().split("=", 1) for line in file if "=" in line)
        return fields["PRETTY_NAME"].strip('"')
    except (OSError, KeyError, UnicodeDecodeError):
        return "Linux"


def gib(size: float) -> str:
    """A size in bytes for people."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return (
                f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:.0f} {name}"
            )
    return f"{size / 1024:.0f} KiB"
