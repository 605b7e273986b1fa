"""Choose how a training run is spread over its processes, from the memory it will need.

    from llm_recipes.strategy import Request, choose
    choice = choose(shape, Request(method="full", processes=4, device_bytes=42_200_000_000))
    print("\\n".join(choice.reasons))

Nothing runs here: the prediction (training_memory.py) decides, and each decision comes with one
line that says why, in numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.memory import ModelShape
from llm_recipes.training_memory import (
    ALL_LINEAR,
    GB,
    SHARDED,
    MemoryPrediction,
    TrainingSetup,
    predict,
)

Auto = Literal["auto"]
STATE_SHARE = 0.90  # of a device that a batch of one row may take
BATCH_SHARE = 0.85  # of a device that larger batches may take: allocators don't pack perfectly


@dataclass(frozen=True)
class Request:
    """What was asked for, and what there is.

    device_bytes: memory of one process's device. row_tokens: tokens of a row at most (max_length,
    or the longest example if all are shorter). global_batch: rows of an optimizer step, over all
    processes. attention, head, lora_targets: as in TrainingSetup. liger: its kernels were asked
    for.
    """

    device_bytes: int
    method: str = "lora"
    strategy: str = "auto"
    processes: int = 1
    nodes: int = 1
    device: str = "cuda"
    dtype: str = "bf16"
    pure_16bit: bool = False
    row_tokens: int = 1024
    global_batch: int = 32
    batch_size: int | Auto = "auto"
    checkpointing: bool | Auto = "auto"
    packing: bool = False
    attention: str = "varlen"
    head: str = "fused"
    liger: bool = False
    lora_rank: int = 16
    lora_targets: str | Sequence[str] = ALL_LINEAR


@dataclass(frozen=True)
class Choice:
    """What will be done. accumulation: micro batches of a process for an optimizer step.

    prediction: None for a model that the memory model doesn't know. reasons: lines for people.
    """

    strategy: str
    batch_size: int
    accumulation: int
    checkpointing: bool
    prediction: MemoryPrediction | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Try:
    strategy: str
    batch_size: int
    checkpointing: bool
    prediction: MemoryPrediction


def choose(shape: ModelShape | None, asked: Request) -> Choice:
    """Strategy, micro batch and checkpointing; shape None: a model of an unknown family.

    auto prefers plain data parallelism to sharding, and keeping activations to recomputing them.
    What is given is taken as it is: if nothing is left to choose, a prediction that exceeds the
    device is a warning among the reasons, since it may err.

    Raises:
        LLMError: For choices that exclude each other (several at once), or if nothing fits.
    """
    family = shape.family if shape else None
    raise_all(compatibility_faults(asked, family) + batch_faults(asked))
    if shape is None:
        return _without_prediction(asked)
    tries = list(_tries(shape, asked))
    for attempt in tries:
        if _fits(attempt, asked):
            return _chosen(asked, attempt, tries)
    if len(tries) == 1:
        return _chosen(asked, tries[0], tries)
    raise _nothing_fits(asked, tries)


def compatibility_faults(asked: Request, family: str | None = None) -> list[LLMError]:
    """Everything that was asked for and excludes each other.

    Sharded strategies with one process are allowed: they work, and tests use them.
    """
    strategy, faults = asked.strategy, []
    if strategy == "single" and asked.processes > 1:
        what = f"--strategy single does not use {asked.processes} processes"
        faults.append(LLMError(what, "each would train a model of its own", "use ddp or fsdp"))
    if asked.method == "qlora" and strategy in SHARDED:
        what = f"--method qlora does not go with --strategy {strategy}"
        fix = "use --strategy ddp, or --method lora"
        faults.append(LLMError(what, "4-bit weights are not sharded here", fix))
    if asked.pure_16bit:
        faults += _pure_faults(asked)
    if asked.liger and asked.device == "cpu":
        why = "its kernels are Triton's, for GPUs"
        faults.append(LLMError("--liger on does not run on a CPU", why, "use --liger auto or off"))
    if asked.packing and family == "falcon":
        why = "Falcon's attention sees the sequences before in the same row"
        what = "--packing true does not go with a Falcon model"
        faults.append(LLMError(what, why, "leave it out"))
    return faults


def _pure_faults(asked: Request) -> list[LLMError]:
    faults = []
    if asked.dtype != "bf16":
        why = "fp16 weights lose small updates" if asked.dtype == "fp16" else "fp32 has 32 bits"
        fix = "leave out --pure-bf16 (weights are then kept in fp32), or use --dtype bf16"
        faults.append(LLMError(f"--pure-bf16 does not go with --dtype {asked.dtype}", why, fix))
    if asked.strategy in ("zero2", "zero3"):
        what = f"--pure-bf16 does not go with --strategy {asked.strategy}"
        faults.append(LLMError(what, "DeepSpeed keeps fp32 master weights", "use --strategy fsdp"))
    return faults


def batch_faults(asked: Request) -> list[LLMError]:
    """Batch sizes that are not possible, with the nearest global batches that are."""
    rows, total = asked.batch_size, asked.global_batch
    faults = []
    if total < 1:
        faults.append(LLMError(f"--global-batch {total} is not possible", "at least 1"))
    if rows != "auto" and rows < 1:
        faults.append(LLMError(f"--batch-size {rows} is not possible", "at least 1, or auto"))
    if faults:
        return faults
    step = asked.processes * (1 if rows == "auto" else rows)
    if total % step == 0:
        return []
    each = "" if rows == "auto" else f" with --batch-size {rows}"
    near = [str(n) for n in (total // step * step, (total // step + 1) * step) if n]
    return [
        LLMError(
            f"--global-batch {total} can't be shared by {asked.processes} processes{each}",
            f"it must be a multiple of {step}",
            f"use --global-batch {' or '.join(near)}",
        )
    ]


def _tries(shape: ModelShape, asked: Request) -> Iterator[_Try]:
    """All that may be done, best first."""
    for strategy in _strategies(asked):
        for checkpointing in _checkpointings(asked):
            for rows in _batch_sizes(asked):
                setup = _setup(asked, strategy, rows, checkpointing)
                yield _Try(strategy, rows, checkpointing, predict(shape, setup))


def _strategies(asked: Request) -> tuple[str, ...]:
    if asked.strategy != "auto":
        return (asked.strategy,)
    if asked.processes == 1:
        return ("single",)
    return ("ddp",) if asked.method == "qlora" else ("ddp", "fsdp")


def _checkpointings(asked: Request) -> tuple[bool, ...]:
    return (False, True) if asked.checkpointing == "auto" else (asked.checkpointing,)


def _batch_sizes(asked: Request) -> list[int]:
    if asked.batch_size != "auto":
        return [asked.batch_size]
    share = asked.global_batch // asked.processes
    powers = [1 << n for n in range(share.bit_length())]
    return [rows for rows in reversed(powers) if share % rows == 0]


def _setup(asked: Request, strategy: str, rows: int, checkpointing: bool) -> TrainingSetup:
    return TrainingSetup(
        batch_tokens=rows * asked.row_tokens,
        longest=asked.row_tokens,
        method=asked.method,
        strategy=strategy,
        processes=asked.processes,
        dtype=asked.dtype,
        pure_16bit=asked.pure_16bit,
        checkpointing=checkpointing,
        attention=asked.attention,
        head=asked.head,
        lora_rank=asked.lora_rank,
        lora_targets=asked.lora_targets,
        device=asked.device,
    )


def _fits(attempt: _Try, asked: Request) -> bool:
    share = STATE_SHARE if attempt.batch_size == 1 else BATCH_SHARE
    return attempt.prediction.total <= share * asked.device_bytes


def _chosen(asked: Request, attempt: _Try, tries: Sequence[_Try]) -> Choice:
    need, device = attempt.prediction.total / GB, asked.device_bytes / GB
    reasons = [_strategy_reason(asked, attempt, tries)]
    per_step = attempt.batch_size * asked.processes
    accumulation = asked.global_batch // per_step
    largest = "the largest power of two that fits and divides the share"
    reasons.append(
        f"batch: {attempt.batch_size} rows x {asked.processes} processes x {accumulation} "
        f"micro batches = {asked.global_batch} "
        f"({largest if asked.batch_size == 'auto' else 'asked for'})"
    )
    if asked.checkpointing != "auto":
        why = "asked for"
    elif attempt.checkpointing:
        kept = [t for t in tries if t.strategy == attempt.strategy and not t.checkpointing]
        why = f"without, {kept[-1].prediction.total / GB:.1f} GB"
    else:
        why = "it fits without"
    reasons.append(f"checkpointing: {'on' if attempt.checkpointing else 'off'} ({why})")
    # Three digits, since a tiny model's would be 0.0.
    reasons.append(f"memory: {need:.3g} GB predicted of {device:.3g} GB a process")
    if not _fits(attempt, asked):
        reasons.append(f"warning: {need:.1f} GB may not fit into {device:.1f} GB")
    return Choice(
        attempt.strategy,
        attempt.batch_size,
        accumulation,
        attempt.checkpointing,
        attempt.prediction,
        tuple(reasons),
    )


def _strategy_reason(asked: Request, attempt: _Try, tries: Sequence[_Try]) -> str:
    strategy, start = attempt.strategy, f"strategy: {attempt.strategy}"
    if asked.strategy != "auto":
        return f"{start} (asked for)"
    if strategy == "single":
        return f"{start} (one process)"
    if strategy == "ddp":
        state = attempt.prediction.model_state / GB
        return f"{start} (the whole state, {state:.1f} GB, fits into each process's device)"
    whole = min(t.prediction.total for t in tries if t.strategy == "ddp") / GB
    room = STATE_SHARE * asked.device_bytes / GB
    return f"{start} (unsharded it needs {whole:.1f} GB, more than the {room:.1f} GB of a device)"


def _without_prediction(asked: Request) -> Choice:
    """A family that the memory model doesn't know: what is likeliest to fit."""
    strategy = _strategies(asked)[0]
    rows = 1 if asked.batch_size == "auto" else asked.batch_size
    checkpointing = True if asked.checkpointing == "auto" else asked.checkpointing
    reason = f"strategy: {strategy}, batch {rows}: the memory model doesn't know this family"
    accumulation = asked.global_batch // (rows * asked.processes)
    return Choice(strategy, rows, accumulation, checkpointing, None, (reason,))


def _nothing_fits(asked: Request, tries: Sequence[_Try]) -> LLMError:
    smallest = {(t.strategy, t.checkpointing): t for t in tries}  # the last is the smallest batch
    lines = [
        f"{t.strategy}, batch {t.batch_size}, checkpointing {'on' if t.checkpointing else 'off'}: "
        f"{t.prediction.total / GB:.1f} GB"
        for t in smallest.values()
    ]
    remedies = []
    if asked.method != "qlora":
        remedies.append("--method qlora" if asked.method == "lora" else "--method lora or qlora")
    if asked.method != "qlora":
        remedies.append("more GPUs (fsdp shares the weights)")
    remedies.append(f"a shorter --max-length than {asked.row_tokens}")
    if asked.method == "full" and asked.dtype == "bf16" and not asked.pure_16bit:
        remedies.append("--pure-bf16")
    if asked.checkpointing is False:
        remedies.append("--checkpointing true")
    room = asked.device_bytes / GB
    return LLMError(
        f"the model does not fit: no choice needs less than {STATE_SHARE:.0%} of {room:.1f} GB",
        "\n".join(lines),
        "try " + ", ".join(remedies),
    )
