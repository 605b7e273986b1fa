"""Which device and precision a recipe runs on, how much memory is left, how fast it could be.

    llm-run python -c "from llm_recipes.device import *; print(choose_device('auto'))"

Precision: bf16 needs compute capability 8.0 (torch's own `is_bf16_supported` also counts slow
emulation), fp16 on older GPUs, fp32 on CPUs.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_recipes.cpu_topology import cpu_model
from llm_recipes.errors import LLMError
from llm_recipes.granted_cpus import granted_cpus
from llm_recipes.host_memory import free_host_bytes
from llm_recipes.model_folder import first_line

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BF16_CAPABILITY = (8, 0)
GB = 1e9


@dataclass(frozen=True)
class Peak:
    """What a device can do at best; None is unknown.

    bytes_per_s: memory bandwidth. flops_per_s: dense 16-bit matrix products with fp32
    accumulation (no sparsity), or what was measured. source: where the numbers are from.
    """

    bytes_per_s: float | None
    flops_per_s: float | None
    source: str


# Words of a GPU's name -> GB/s and dense 16-bit TFLOP/s, from NVIDIA's data sheets (GeForce and
# RTX: the architectures' whitepapers, fp16 with fp32 accumulation); the first match counts.
KNOWN_GPUS: tuple[tuple[str, float, float], ...] = (
    ("B200", 8000, 2250),
    ("GH200", 4000, 989.4),
    ("H200", 4800, 989.4),
    ("H100 NVL", 3900, 835),
    ("H100 PCIe", 2039, 756),
    ("H100", 3350, 989.4),
    ("A100-SXM4-80GB", 2039, 312),
    ("A100 80GB PCIe", 1935, 312),
    ("A100", 1555, 312),
    ("A40", 696, 149.7),
    ("A30", 933, 165),
    ("A10", 600, 125),
    ("L40S", 864, 362),
    ("L40", 864, 181),
    ("L4", 300, 121),
    ("V100-PCIE", 900, 112),
    ("V100", 900, 125),
    ("T4", 320, 65),
    ("RTX 2080 Ti", 616, 53.8),
    ("RTX 3090", 936, 71),
    ("RTX 4090", 1008, 165.2),
    ("RTX A6000", 768, 154.8),
)
# A name with one of these words, which the table does not have, is another GPU or a part of one.
OTHER_GPU = frozenset({"MIG", "Laptop", "Ti", "SUPER", "D"})
# What errors say that are no OutOfMemoryError; cuBLAS and cuDNN allocate by themselves.
OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cuda`, `cuda:N` or `cpu` means here.

    Raises:
        LLMError: If a GPU is asked for and none can be used.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LLMError(
            f"unknown device {name!r}", fix="--device auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            why = "torch sees no GPU" if count == 0 else f"torch sees {count} GPU(s), from cuda:0"
            fix = "start on a node with a GPU and a cuda image, or use --device cpu"
            raise LLMError(f"--device {name} cannot be used", why, fix)
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise LLMError(
            f"device {name!r} is not supported", fix="--device auto, cpu, cuda or cuda:N"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision that `auto`, `bf16`, `fp16` or `fp32` means on this device."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    capable = torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return torch.bfloat16 if capable else torch.float16


def dtype_name(dtype: torch.dtype) -> str:
    """Our short name of a precision: bf16, fp16, fp32."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


def is_repeatable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the same computation gives the same bytes: promised on CPUs, in fp32."""
    return device.type == "cpu" and dtype == torch.float32


def use_granted_cpus() -> int:
    """Limit torch's threads to the CPUs that the job was granted; returns their number.

    Affinity is followed by OpenMP itself; a cgroup's CPU quota and Slurm's count are not, and more
    threads than CPUs wait for each other at every operation.
    """
    granted = granted_cpus().count
    if "OMP_NUM_THREADS" not in os.environ and granted < torch.get_num_threads():
        torch.set_num_threads(granted)
    return granted


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can still be allocated: a job's limit counts, not only the node's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reusable)
    return free_host_bytes()


def peak_memory_bytes(device: torch.device) -> dict[str, int]:
    """The most memory that was in use so far: `peak_host_bytes`, on a GPU `peak_gpu_bytes` too."""
    peaks = {"peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peaks["peak_gpu_bytes"] = torch.cuda.max_memory_reserved(device)
    return peaks


def current_host_bytes() -> int:
    """The host's memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's from /proc/cpuinfo."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_model()


def known_peak(device: torch.device) -> Peak:
    """The data sheet's numbers of this device; unknown for CPUs and for GPUs not in the table."""
    found = data_sheet(device_name(device)) if device.type == "cuda" else None
    return found or Peak(None, None, "unknown: --measure-peak measures it")


def data_sheet(name: str) -> Peak | None:
    """The data sheet's numbers of the GPU with this name, if it is in the table."""
    for words, bandwidth, tera in KNOWN_GPUS:
        other = OTHER_GPU & (set(name.split()) - set(words.split()))
        if re.search(rf"\b{re.escape(words)}\b", name) and not other:
            return Peak(bandwidth * GB, tera * 1e12, f"data sheet of {words}")
    return None


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Measure the bandwidth of reading and the rate of a large matrix product; takes seconds.

    Reading 256 MiB (CPU) or 2 GiB (GPU) is far more than any cache holds; best of several.

    Raises:
        LLMError: If there is not even memory for that.
    """
    size = 2**31 if device.type == "cuda" else 2**28
    side = 8192 if device.type == "cuda" else 1024
    with memory_errors("the device was measured", "leave out --measure-peak, or free some memory"):
        data = torch.ones(size // 4, dtype=torch.float32, device=device)
        reading_s = _best_time(data.sum, device)
        square = torch.ones(side, side, dtype=dtype, device=device)
        product_s = _best_time(lambda: square @ square, device)
    return Peak(size / reading_s, 2 * side**3 / product_s, "measured at start")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY_WORDS)


@contextlib.contextmanager
def memory_errors(doing: str, fix: str) -> Iterator[None]:
    """Turn running out of memory into an error for the user; `doing` follows "while"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise LLMError(f"memory ran out while {doing}", first_line(error), fix) from None


def _best_time(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
