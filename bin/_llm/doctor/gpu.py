"""GPUs: driver and architecture against the image, whether torch computes on them, who else does.

llm-doctor --image llm-cuda13
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from _llm.apptainer import find_program
from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.doctor.limits import Stage, run_command
from _llm.doctor.machine import gib
from _llm.gpus import DRIVER_OF_CUDA12, DRIVER_OF_CUDA13, Gpus, find_gpus

# Major version of CUDA -> oldest compute capability that its compiler and libraries still have:
# 11 dropped Kepler's 3.0, 12 all of Kepler, 13 Maxwell, Pascal and Volta.
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/ (the notes of 11.0, 12.0 and 13.0)
OLDEST_CAPABILITY = {11: (3, 5), 12: (5, 0), 13: (7, 5)}
# GPU architecture -> first CUDA that knows it (the same release notes).
FIRST_CUDA = {
    (8, 9): (11, 8),
    (9, 0): (11, 8),
    (10, 0): (12, 8),
    (12, 0): (12, 8),
    (10, 3): (12, 9),
    (12, 1): (12, 9),
}
# What Slurm says that a job or step has been given.
GRANTED = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
SMI_FIELDS = (
    "index",
    "name",
    "memory.used",
    "memory.total",
    "utilization.gpu",
    "ecc.errors.uncorrected.volatile.total",
    "compute_mode",
)
# A product of two matrices of integers-as-floats in double precision differs by rounding alone.
LARGEST_ERROR = 1e-6
# Seconds; 2 to 4 from a local disk.
SLOW_IMPORT = 30.0
# Memory that a driver with nothing to do may hold, in MiB.
IDLE_MIB = 1024


def node(context: Context, stage: Stage, root: str = "/") -> list[Finding]:
    """GPUs of this node without a look into the image. root: where to look for dev/ and proc/."""
    stage("looking for GPUs")
    gpus = find_gpus(context.env, root)
    granted = next((context.env[name] for name in GRANTED if context.env.get(name)), "")
    if not gpus.kind and granted:
        text = f"the job was given GPUs here ({granted}), but this node shows none"
        fix = "an administrator: nvidia-smi on this node; is the driver loaded, gres.conf right?"
        return [Finding("gpu", FAIL, text, fix)]
    if not gpus.kind:
        where = "; jobs on this site's GPU nodes have them" if _site_has_gpus(context) else ""
        return [Finding("gpu", SKIP, f"no GPU on this node{where}")]
    if gpus.hidden:
        fix = "ask for one: sbatch --gpus=1; or unset CUDA_VISIBLE_DEVICES if you set it yourself"
        text = "CUDA_VISIBLE_DEVICES hides this node's GPUs from you"
        return [Finding("gpu", WARN, text, fix)]
    names = ", ".join(dict.fromkeys(gpus.models)) or gpus.kind
    data = {"kind": gpus.kind, "driver": gpus.driver, "models": list(gpus.models)}
    count = f"{len(gpus.models)} x " if gpus.models else ""
    text = f"{count}{names}" + (f", driver {gpus.driver}" if gpus.driver else "")
    found = [Finding("gpu", OK, text, data=data)]
    if gpus.kind == "amd":
        text = "no image of this project is for AMD GPUs: programs run on the CPU"
        return [*found, Finding("gpu driver", WARN, text)]
    found += driver(gpus)
    return found + _ask_nvidia_smi(context.env, stage)


def driver(gpus: Gpus) -> list[Finding]:
    """Which variants of an image the driver can run."""
    major = int(gpus.driver.partition(".")[0] or 0)
    if not major:
        return [Finding("gpu driver", WARN, "its version is unknown", "nvidia-smi, on this node")]
    if major < DRIVER_OF_CUDA12:
        text = f"driver {gpus.driver} is too old for every image: CUDA 12 needs {DRIVER_OF_CUDA12}"
        return [Finding("gpu driver", FAIL, text, "an administrator updates the NVIDIA driver")]
    newest = 13 if major >= DRIVER_OF_CUDA13 else 12
    text = f"driver {gpus.driver} runs CUDA {newest} and older"
    return [Finding("gpu driver", OK, text, data={"newest_cuda": newest})]


def _site_has_gpus(context: Context) -> bool:
    settings = context.settings
    count = settings.get("gpus", "per_node")
    return bool(settings.get("gpus", "model") or (count.isdigit() and int(count)))


def _ask_nvidia_smi(env: Mapping[str, str], stage: Stage) -> list[Finding]:
    program = find_program("nvidia-smi", env.get("PATH", ""))
    if not program:
        return [Finding("gpu health", SKIP, "no nvidia-smi on PATH")]
    stage("asking nvidia-smi")
    form = "--format=csv,noheader,nounits"
    done = run_command([program, f"--query-gpu={','.join(SMI_FIELDS)}", form], 20)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().split("\n")[-1]
        fix = "an administrator: dmesg | grep NVRM; a restart of the node often helps"
        return [Finding("gpu health", FAIL, f"nvidia-smi fails: {said}", fix)]
    apps = run_command([program, "--query-compute-apps=pid,process_name,used_memory", form], 20)
    return health(done.stdout, apps.stdout if apps.returncode == 0 else "")


def health(gpus: str, processes: str) -> list[Finding]:
    """Findings from nvidia-smi's tables of SMI_FIELDS and of processes (pid, name, MiB)."""
    found = []
    for line in gpus.strip().splitlines():
        values = [word.strip() for word in line.split(",")]
        if len(values) != len(SMI_FIELDS):
            continue
        number, _, used, total, busy, errors, mode = values
        if errors.isdigit() and int(errors):
            text = (
                f"GPU {number} has had {errors} uncorrectable memory errors: results may be wrong"
            )
            fix = "an administrator: nvidia-smi --query-remapped-rows, drain and reset the node"
            found.append(Finding("gpu health", FAIL, text, fix))
        if mode == "Prohibited":
            text = f"GPU {number} is closed to programs (compute mode Prohibited)"
            found.append(Finding("gpu health", FAIL, text, f"nvidia-smi -i {number} -c 0"))
        if used.isdigit() and int(used) > IDLE_MIB:
            measured = f"{used} of {total} MiB used, {busy} % busy"
            text = f"GPU {number} is in use"
            fix = "see who: nvidia-smi; ask for a GPU of your own: sbatch --gpus=1"
            found.append(Finding("gpu health", WARN, text, fix, measured))
    others = [line.split(",")[0].strip() for line in processes.strip().splitlines() if "," in line]
    text = "no memory errors, nobody else on them"
    if others:
        text = f"no memory errors; processes on them: {', '.join(others[:8])}"
    return found or [Finding("gpu health", OK, text)]


def findings(answers: Mapping[str, list[dict[str, Any]]], gpus: Gpus) -> list[Finding]:
    """What torch in the image made of this node's GPUs. answers: of inside.py, by topic."""
    if "torch" not in answers:
        return []
    torch = answers["torch"][0]
    if "version" not in torch:
        if torch["missing"]:
            return [Finding("torch", SKIP, "the image has no torch")]
        fix = "build or copy the image again; llm-run python -c 'import torch' shows all"
        return [Finding("torch", FAIL, f"torch can't be imported: {torch['error']}", fix)]
    found = [_imported(torch)]
    if not gpus.usable:
        return found
    if not torch["cuda"]:
        text = f"torch {torch['version']} is for the CPU: this node's GPU stays idle"
        return [*found, Finding("gpu in image", WARN, text, "make image, on this node")]
    if not torch["count"]:
        said = torch["error"] or "torch finds no GPU"
        text = f"a program in the image sees none of this node's GPUs: {said}"
        fix = "llm-run nvidia-smi; /dev/nvidia* readable? driver as new as the image needs?"
        return [*found, Finding("gpu in image", FAIL, text, fix)]
    for gpu in answers.get("gpu", ()):
        found += _computed(gpu, torch)
    return found + transport(answers)


def _imported(torch: Mapping[str, Any]) -> Finding:
    seconds = float(torch["import_s"])
    data = {"version": torch["version"], "cuda": torch["cuda"], "import_s": seconds}
    measured = f"import {seconds:.1f} s, {torch['threads']} threads"
    text = f"torch {torch['version']} works on the CPU"
    if not torch["right"]:
        fix = "this node computes wrongly: run it again, and tell the administrator"
        return Finding("torch", FAIL, "torch multiplied two matrices wrongly", fix, measured, data)
    if seconds > SLOW_IMPORT:
        fix = "an image on a busy file system: put it on another, LLM_IMAGE_DIR=/where/it/is"
        return Finding("torch", WARN, f"{text}, but its import is slow", fix, measured, data)
    return Finding("torch", OK, text, measured=measured, data=data)


def _computed(gpu: Mapping[str, Any], torch: Mapping[str, Any]) -> list[Finding]:
    number = gpu["number"]
    check = f"gpu {number}"
    if "name" not in gpu:
        text = f"it can't be used: {gpu['error']}"
        return [
            Finding(check, FAIL, text, "llm-run nvidia-smi; is another program using all of it?")
        ]
    capability = (int(gpu["capability"][0]), int(gpu["capability"][1]))
    fault = architecture_fault(capability, torch["architectures"], torch["cuda"])
    if fault:
        return [Finding(check, FAIL, f"{gpu['name']}: {fault[0]}", fault[1])]
    if "error" in gpu:
        text = f"{gpu['name']}: a product of matrices failed: {gpu['error']}"
        return [
            Finding(check, FAIL, text, "llm-run nvidia-smi; is another program using all of it?")
        ]
    if gpu["largest_error"] > LARGEST_ERROR:
        text = f"{gpu['name']} computes wrongly: off by {gpu['largest_error']:.3g}"
        return [
            Finding(check, FAIL, text, "tell the administrator to take the node out of service")
        ]
    measured = f"{gpu['tflops']:.0f} TFLOP/s in {gpu['dtype']}, {gib(gpu['free_bytes'])} of "
    measured += f"{gib(gpu['total_bytes'])} free"
    text = f"torch computes on {gpu['name']} (sm_{capability[0]}{capability[1]})"
    return [Finding(check, OK, text, measured=measured, data=dict(gpu))]


def architecture_fault(
    capability: tuple[int, int], built_for: Sequence[str], cuda: str
) -> tuple[str, str] | None:
    """What is wrong with a GPU for an image, and what to do; None if its torch has code for it.

    capability: such as (7, 0). built_for: torch's list, such as sm_80 or compute_90. Binary code of
    sm_XY runs on X.Z with Z >= Y; compute_XY is compiled by the driver for anything newer.
    https://docs.nvidia.com/cuda/ada-compatibility-guide/
    """
    for word in built_for:
        kind, _, digits = word.partition("_")
        digits = re.sub(r"\D", "", digits)
        if len(digits) < 2:
            continue
        code = (int(digits[:-1]), int(digits[-1]))
        same = kind == "sm" and code[0] == capability[0] and code[1] <= capability[1]
        if same or (kind == "compute" and code <= capability):
            return None
    major = int(cuda.partition(".")[0] or 0)
    name = f"sm_{capability[0]}{capability[1]}"
    text = f"the image has no code for {name} (it has {', '.join(built_for)})"
    if capability < OLDEST_CAPABILITY.get(major, (0, 0)):
        fix = "CUDA 12 still has it: make image VARIANT=cuda12; llm-run --image llm-cuda12 COMMAND"
        if capability < OLDEST_CAPABILITY[12]:
            fix = "no image can use it: llm-run --no-gpu COMMAND"
        return f"{text}: CUDA {major} dropped it", fix
    first = FIRST_CUDA.get(capability)
    if first and tuple(int(part) for part in cuda.split(".")[:2]) < first:
        return f"{text}: it came with CUDA {first[0]}.{first[1]}", "make image VARIANT=cuda13"
    return text, "build an image for it: make image, on this node"


def transport(answers: Mapping[str, list[dict[str, Any]]]) -> list[Finding]:
    """Which way NCCL sends data, from what it said during an all-reduce on this node."""
    if "collective" not in answers:
        return []
    answer = answers["collective"][0]
    if answer["status"]:
        text = f"an all-reduce of {answer['ranks']} ranks failed: {answer['last']}"
        fix = "NCCL_DEBUG=INFO shows more; NCCL_P2P_DISABLE=1 tells whether GPU to GPU is at fault"
        return [Finding("nccl", FAIL, text, fix)]
    network, ways = read_nccl(answer["lines"])
    text = f"between nodes by {network or 'nothing that it names'}"
    if answer["ranks"] > 1:
        text += f", between GPUs by {', '.join(ways) or 'nothing that it names'}"
    return [Finding("nccl", OK, text, data={"network": network, "ways": ways})]


def read_nccl(lines: Sequence[str]) -> tuple[str, list[str]]:
    """The network and the ways between GPUs that NCCL names with NCCL_DEBUG=INFO.

    The words differ between versions: "Using network Socket" up to 2.2x, "Assigned NET plugin
    Socket to comm" after it.
    """
    network, ways = "", []
    for line in lines:
        found = re.search(r"(?:Using network|Assigned NET plugin) (\S+)", line)
        network = found.group(1) if found else network
        if found := re.search(r"NET/(\S+) ?: Using (.*)", line):
            network = network or found.group(1)
        if found := re.search(r"\] via (\S+)", line):
            ways.append(found.group(1))
    return network, list(dict.fromkeys(ways))
