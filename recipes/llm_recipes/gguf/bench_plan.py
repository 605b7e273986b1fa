"""Before llama-bench is started: which llama.cpp and devices there are, how long it will take.

from llm_recipes.gguf.bench_plan import estimate, list_gpus, llama_version
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llm_recipes.device import data_sheet
from llm_recipes.errors import LLMError
from llm_recipes.gguf.bench_points import Measurement, Point
from llm_recipes.gguf.engine import Device
from llm_recipes.gguf.programs import run_program
from llm_recipes.gguf.remote_hosts import ENDPOINTS, rpc_option
from llm_recipes.gguf.weights_read import bytes_read

MIB = 1 << 20
# Rough rates, only to say beforehand whether it is minutes or hours.
FLOPS_A_THREAD, BYTES_A_THREAD, MOST_HOST_BYTES = 15e9, 6e9, 60e9
GPU_FLOPS, GPU_BYTES, SHARE_REACHED = 50e12, 500e9, 0.5
LOAD_BYTES_PER_S, START_S = 1e9, 1.0


def rpc_endpoints() -> tuple[str, ...]:
    """ADDRESS:PORT of the RPC workers that this run may use.

    Raises:
        LLMError: If the variable holds something else.
    """
    found = tuple(part.strip() for part in rpc_option().split(",") if part.strip())
    bad = [part for part in found if not re.fullmatch(r"\S+:\d+", part)]
    if bad:
        fix = f"such as {ENDPOINTS}=10.0.0.1:50052,10.0.0.2:50052"
        raise LLMError(f"{ENDPOINTS} names no worker: {', '.join(bad)}", "ADDRESS:PORT", fix)
    return found


def list_gpus(endpoints: Sequence[str]) -> tuple[Device, ...]:
    """The devices that llama-bench sees, those of the workers included.

    In a process of its own: a CUDA context here would take memory from what is measured.

    Raises:
        LLMError: If a worker does not answer.
    """
    rpc = ["--rpc", ",".join(endpoints)] if endpoints else []
    try:
        text = run_program(["llama-bench", *rpc, "--list-devices"])
    except LLMError as error:
        if not endpoints:
            raise
        what = f"an RPC worker does not answer: {', '.join(endpoints)}"
        raise LLMError(what, error.why or error.what, "start the workers again") from None
    pattern = r"^  (\S+): (.*) \((\d+) MiB, (\d+) MiB free\)$"
    found = re.findall(pattern, text, re.MULTILINE)
    return tuple(
        Device(name, words, "gpu", int(total) * MIB, int(free) * MIB, 0)
        for name, words, total, free in found
        if not name.startswith("BLAS")
    )


def llama_version() -> str:
    """What the installed llama.cpp calls itself.

    Raises:
        LLMError: If it is not here.
    """
    lines: list[str] = []
    run_program(["llama-bench", "--version"], lines.append)
    return next((line for line in lines if line.startswith("version")), "unknown")


def estimate(
    point: Point, tests: Iterable[Measurement], repeats: int, gpus: Sequence[Device]
) -> float:
    """Seconds that a start of llama-bench takes, by rates that are only roughly those here."""
    setting, file = point.setting, point.model.file
    flops, rate = host_rates(setting.threads)
    share = setting.gpu_layers / (file.layers + 1)
    gpu_flops, gpu_rate = gpu_rates(gpus) if gpus and share else (flops, rate)
    read = bytes_read(file)
    step_s = read * ((1 - share) / rate + share / gpu_rate)
    # Weights that a token reads, in numbers: each is multiplied and added once.
    numbers = 8 * read / max(1.0, file.bits_per_weight)
    token_s = 2 * numbers * ((1 - share) / flops + share / gpu_flops)
    seconds = START_S + file.bytes / LOAD_BYTES_PER_S
    for test in tests:
        each = test.prompt * token_s + test.new * step_s
        warm_up = test.prompt * token_s + (step_s if test.new else 0.0)
        seconds += warm_up + repeats * each + setting.depth * token_s
    return seconds


def host_rates(threads: int) -> tuple[float, float]:
    """FLOP/s and bytes/s of so many threads, roughly."""
    return threads * FLOPS_A_THREAD, min(threads * BYTES_A_THREAD, MOST_HOST_BYTES)


def gpu_rates(gpus: Sequence[Device]) -> tuple[float, float]:
    """FLOP/s and bytes/s of a GPU, roughly: a share of the data sheet's where it is known."""
    sheet = data_sheet(gpus[0].description)
    if sheet is None or not sheet.flops_per_s or not sheet.bytes_per_s:
        return GPU_FLOPS, GPU_BYTES
    return SHARE_REACHED * sheet.flops_per_s, SHARE_REACHED * sheet.bytes_per_s


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
