"""Which GPUs this node has and which variant of an image they need. Starts no process.

A login node often has NVIDIA's programs and no GPU, so programs prove nothing: the device files and
/proc/driver/nvidia do. Only under WSL, which has neither, nvidia-smi is asked.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# CUDA 13 needs driver 580 and Turing; CUDA 12 runs on driver 525 and newer and still has Volta.
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
DRIVER_OF_CUDA13 = 580
DRIVER_OF_CUDA12 = 525
# Data centre GPUs older than Turing, as the driver names them, without what follows the number
# (Tesla V100-SXM2-32GB, GRID V100D-32Q).
BEFORE_TURING = frozenset(
    [
        *("V100", "GV100", "P100", "GP100", "P40", "P4", "P6"),
        *("M60", "M40", "M10", "M6", "M4", "K80", "K40", "K20"),
    ]
)


class Gpus:
    """The GPUs of this node.

    kind: "nvidia", "amd" or "". driver: version of the NVIDIA driver, such as 580.65.06, "" if
    unknown. models: their names where the driver tells them. hidden: they are there, but
    CUDA_VISIBLE_DEVICES hides all of them from this job.
    """

    __slots__ = ("driver", "hidden", "kind", "models")

    def __init__(
        self, kind: str = "", driver: str = "", models: tuple[str, ...] = (), hidden: bool = False
    ) -> None:
        self.kind = kind
        self.driver = driver
        self.models = models
        self.hidden = hidden

    @property
    def usable(self) -> bool:
        """Whether a program on this node can use them."""
        return bool(self.kind) and not self.hidden

    def __str__(self) -> str:
        vendor = {"nvidia": "NVIDIA", "amd": "AMD", "": "none"}[self.kind]
        names = ", ".join(dict.fromkeys(self.models)) or vendor
        return f"{names}, driver {self.driver}" if self.driver else names


def find_gpus(env: Mapping[str, str], root: str = "/") -> Gpus:
    """Return this node's GPUs. root: where to look for dev/ and proc/."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    # Slurm says NoDevFiles where a job was given none of a node's GPUs.
    hidden = visible is not None and visible.strip() in ("", "-1", "NoDevFiles")
    if os.path.exists(os.path.join(root, "dev/nvidiactl")):
        return Gpus("nvidia", _driver_version(root), _models(root), hidden)
    if os.path.exists(os.path.join(root, "dev/dxg")):
        found = _ask_nvidia_smi(env)
        if found:
            return Gpus("nvidia", found[0][0], tuple(name for _, name in found), hidden)
    if os.path.exists(os.path.join(root, "dev/kfd")):
        return Gpus("amd")
    return Gpus()


def visible_gpus(env: Mapping[str, str], device_folder: str = "/dev") -> int:
    """Return how many GPUs a program on this node can use, as Slurm or the device files say."""
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        visible = env.get(name)
        if visible is None:
            continue
        named = [item for item in visible.split(",") if item.strip() not in ("", "-1")]
        return 0 if visible.strip() == "NoDevFiles" else len(named)
    try:
        files = os.listdir(device_folder)
    except OSError:
        return 0
    return sum(name.startswith("nvidia") and name[6:].isdigit() for name in files)


def _driver_version(root: str) -> str:
    # "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (...)"
    try:
        with open(os.path.join(root, "proc/driver/nvidia/version"), encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return ""
    versions = [w for w in words if w[:1].isdigit() and "." in w and w.replace(".", "").isdigit()]
    return versions[0] if versions else ""


def _models(root: str) -> tuple[str, ...]:
    folder = os.path.join(root, "proc/driver/nvidia/gpus")
    models = []
    try:
        for slot in sorted(os.listdir(folder)):
            with open(os.path.join(folder, slot, "information"), encoding="utf-8") as file:
                models += [line[6:].strip() for line in file if line.startswith("Model:")]
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(models)


def _ask_nvidia_smi(env: Mapping[str, str]) -> list[tuple[str, str]]:
    import shutil
    import subprocess

    program = shutil.which("nvidia-smi", path=env.get("PATH")) or "/usr/lib/wsl/lib/nvidia-smi"
    query = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.partition(",") for line in done.stdout.splitlines()]
    return [(driver.strip(), name.strip()) for driver, comma, name in rows if comma]


def variants_for(gpus: Gpus, forced: bool | None) -> list[str]:
    """Return the variants of an image that work with these GPUs, the best one first.

    forced: True = --gpu, False = --no-gpu, None = by what is there. `cpu` always comes last; GPUs
    that only `cpu` remains for are a reason to tell the user.
    """
    if forced is False or gpus.kind == "amd" or (forced is None and not gpus.usable):
        return ["cpu"]
    major = int(gpus.driver.partition(".")[0] or 0)
    old = bool(gpus.models) and all(_is_before_turing(model) for model in gpus.models)
    variants = []
    if not old and (major >= DRIVER_OF_CUDA13 or not gpus.driver):
        variants.append("cuda13")
    if major >= DRIVER_OF_CUDA12 or not gpus.driver:
        variants.append("cuda12")
    return [*variants, "cpu"]


def _is_before_turing(model: str) -> bool:
    words = model.upper().replace("-", " ").split()
    if any(word.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ") in BEFORE_TURING for word in words):
        return True
    for brand, word in zip(words, words[1:]):
        number = word.strip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        if brand == "TITAN" and word in ("V", "X", "XP"):
            return True
        if brand == "GTX" and number.isdigit() and int(number) < 1600:
            return True
        if brand == "QUADRO" and word[0] in "KMP" and number.isdigit():
            return True
    return False
