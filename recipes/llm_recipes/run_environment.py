"""What around a run may change it, for its record: variables, launch, host, job and code.

    llm-run python -c "from llm_recipes.run_environment import *; print(environment())"

Needs the standard library only; of torch only what is loaded, or what a GPU makes necessary.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from llm_recipes.ranks import is_first_process
from llm_recipes.run_secrets import SECRET_PREFIXES, is_secret_name, plain, without_passwords

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, WSL
RECIPES = Path(__file__).resolve().parents[1]
# Variables that change results, speed or the choice of devices.
CHANGES_A_RUN = re.compile(
    r"(CUDA|NCCL|GLOO|OMP|MKL|TORCH|TORCHINDUCTOR|PYTORCH|CUBLAS|CUDNN|HF|TRANSFORMERS|TOKENIZERS"
    r"|DATASETS|TRITON|GGML|LLAMA|ACCELERATE|DEEPSPEED|DS|KMP|OPENBLAS|NVIDIA|LC)_.*"
    r"|PYTHONHASHSEED|LANG|LANGUAGE|TZ"
)
# What a recipe is made of besides Python: presets, tasks, templates.
CODE_SUFFIXES = (".py", ".yaml", ".yml", ".json", ".j2", ".jinja", ".css")
FIRST_CPU_BYTES = 4096  # of /proc/cpuinfo: all of it takes long where there are many CPUs


def environment() -> dict[str, str]:
    """The variables that may change what the run does, by name; never a secret."""
    return {
        name: without_passwords(value)
        for name, value in sorted(os.environ.items())
        if CHANGES_A_RUN.fullmatch(name)
        and not is_secret_name(name)
        and "KEY" not in name.upper().split("_")
        and not value.startswith(SECRET_PREFIXES)
    }


def launch() -> dict[str, Any] | None:
    """How llm-run started the program (LLM_LAUNCH); None if something else did."""
    try:
        found = json.loads(os.environ.get("LLM_LAUNCH") or "null")
    except (ValueError, RecursionError):
        return None
    return plain(found) if isinstance(found, dict) else None


def working_directory() -> str | None:
    """The working directory; None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def image() -> dict[str, str | None]:
    """The image: its name, variant, the digest of its payload and that of its inputs."""
    names = ("name", "variant", "digest", "inputs")
    return {name: os.environ.get(f"LLM_IMAGE_{name.upper()}") or None for name in names}


def host(device_name: str) -> dict[str, Any]:
    """The hardware and its drivers. Sizes are in bytes; GPUs are those that the process sees."""
    gpus = _gpus()
    return {
        "site": os.environ.get("LLM_SITE") or None,
        "nodes": [os.uname().nodename],
        "kernel": os.uname().release,
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": _cpu_model(),
        "memory_bytes": _memory_bytes(),
        "gpus": [name for name, _ in gpus],
        "gpu_memory_bytes": [size for _, size in gpus],
        "device": device_name,
        "driver": os.environ.get("LLM_HOST_DRIVER") or None,
    }


def slurm() -> dict[str, str | None]:
    """The job as Slurm describes it, without account and user; all None outside of a job."""
    variables = {
        "job": ("SLURM_JOB_ID",),
        "step": ("SLURM_STEP_ID",),
        "array_task": ("SLURM_ARRAY_TASK_ID",),
        "cluster": ("SLURM_CLUSTER_NAME",),
        "partition": ("SLURM_JOB_PARTITION",),
        "constraint": ("SLURM_JOB_CONSTRAINTS", "SBATCH_CONSTRAINT", "SLURM_CONSTRAINT"),
        "nodes": ("SLURM_JOB_NODELIST",),
        "ntasks": ("SLURM_NTASKS",),
        "tasks_per_node": ("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
        "cpus_per_task": ("SLURM_CPUS_PER_TASK",),
        "cpus_on_node": ("SLURM_CPUS_ON_NODE",),
        "gpus_on_node": ("SLURM_GPUS_ON_NODE",),
        "restarts": ("SLURM_RESTART_COUNT",),
    }
    found = {
        name: next((os.environ[one] for one in ones if os.environ.get(one)), None)
        for name, ones in variables.items()
    }
    # Tests and laptops set single variables of Slurm's to steer thread counts: no job, no facts.
    return found if found["job"] else dict.fromkeys(found)


def code(recipe: str) -> dict[str, Any]:
    """Commit, the recipe's file, and a hash of all recipes' files: some may be in no commit.

    Only the first process, whose record is written, reads them all.
    """
    return {
        "commit": os.environ.get("LLM_CODE_COMMIT") or None,
        "dirty": _flag(os.environ.get("LLM_CODE_DIRTY")),
        "recipe": _recipe_file(recipe),
        "files_sha256": files_sha256() if is_first_process() else None,
    }


def files_sha256(folder: Path = RECIPES) -> str:
    """A hash of the recipes and their library: all files with one of CODE_SUFFIXES.

    It is that of what `sha256sum -z` prints for these files, sorted by their bytes, in the folder:
    64 digits, two spaces, the path in the folder, a zero byte. Hidden folders and those of compiled
    bytecode don't count. An installed library that has no recipes beside it counts alone.
    """
    root = folder if (folder / "inference").is_dir() else folder / "llm_recipes"
    found = []
    for above, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name[:1] != "." and name != "__pycache__"]
        for name in names:
            path = os.path.join(above, name)
            if name.endswith(CODE_SUFFIXES) and name[:1] != "." and os.path.isfile(path):
                found.append((os.fsencode(os.path.relpath(path, root)), path))
    lines = sha256()
    for shown, path in sorted(found):
        lines.update(f"{_file_sha256(path)}  ".encode() + shown + b"\0")
    return lines.hexdigest()


def _recipe_file(recipe: str) -> dict[str, str | None]:
    """Where the recipe that runs is, in LLM_HOME if it is there, and the hash of its file."""
    own = RECIPES / f"{recipe}.py"
    main: str = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    # A runner of tests is no recipe, nor is a program that was installed with Python.
    installed = "/site-packages/" in main or _is_in(main, sys.prefix)
    path = str(own) if own.is_file() else None
    if main.endswith(".py") and not installed:
        path = main
    if path is None:
        return {"path": None, "sha256": None}
    home = os.environ.get("LLM_HOME")
    name = os.path.realpath(path)
    if home and _is_in(name, home):
        name = os.path.relpath(name, os.path.realpath(home))
    return {"path": name, "sha256": _file_sha256(path)}


def _is_in(path: str, folder: str) -> bool:
    root = os.path.realpath(folder)
    return os.path.realpath(path).startswith(root.rstrip("/") + "/")


def _file_sha256(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return sha256(file.read()).hexdigest()
    except OSError:
        return None


def _flag(text: str | None) -> bool | None:
    return None if not text else text.lower() in ("1", "true", "yes")


def _cpu_model() -> str | None:
    """The CPU's name as Linux has it; None on those that have none (ARM)."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", "rb", buffering=0) as file:
        text = file.read(FIRST_CPU_BYTES).decode("utf-8", "replace")
        named = re.search(r"^(?:model name|cpu|Model)\s*:\s*(.+)$", text, re.MULTILINE)
        return named[1].strip() if named else None
    return None


def _memory_bytes() -> int | None:
    """All memory of the node."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _gpus() -> list[tuple[str, int]]:
    """Name and bytes of each GPU."""
    # Recipes that compute nothing need not wait seconds for torch where no driver is.
    if "torch" not in sys.modules and not any(map(os.path.exists, GPU_DRIVERS)):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [(one.name, one.total_memory) for one in found]
