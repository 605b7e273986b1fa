"""How much memory a training run needs on each process, before anything runs.

    from llm_recipes.training_memory import TrainingSetup, predict
    print(predict(shape, TrainingSetup(method="lora", batch_tokens=4096, longest=1024)).describe())

Standard library only and Python 3.9: a planner on the host reads it too. Weights, gradients and
optimizer are exact counts, activations close to what was counted for real models
(activation_memory.py), and a whole step on a CPU within 20 % of the allocator's peak
(tests/recipes/test_training_memory.py). The overhead of CUDA and the buffers of DeepSpeed and FSDP
are estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Union

from llm_recipes.activation_memory import layer_bytes, saved_bytes
from llm_recipes.memory import Matrix, ModelShape

METHODS = ("lora", "qlora", "full")
STRATEGIES = ("single", "ddp", "fsdp", "zero2", "zero3")
SHARDED = ("fsdp", "zero2", "zero3")
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
ALL_LINEAR = "all-linear"
GB = 1e9
FP32 = 4
ADAM_MOMENTS = 2
# NF4 as bitsandbytes stores it: blocks of 64 weights with a scale of 8 bits, whose own scales, one
# fp32 for 256 blocks, are the "double quantization" of Dettmers et al. 2023 (arXiv:2305.14314).
NF4_BLOCK, NF4_SCALES = 64, 256
# TRL's loss projects so many tokens to so much of the vocabulary at a time (trl/kernels).
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
CUDA_CONTEXT = 600_000_000  # the context, kernels and cuBLAS's workspace
NCCL_BUFFERS = 400_000_000
DEEPSPEED_BUCKET = 500_000_000  # values: DeepSpeed's default for reduce and all-gather
DEEPSPEED_LIVE = 1_000_000_000  # values: stage3_max_live_parameters


@dataclass(frozen=True)
class TrainingSetup:
    """What a process does with a model.

    method: lora, qlora or full. strategy: single, ddp, fsdp (FSDP2), zero2 or zero3; gradients are
    reduced after every micro batch. processes: how many share the work. dtype: of computations.
    pure_16bit: trained weights and Adam's moments have 16 bits too, without fp32 copies.
    batch_tokens: tokens of a micro batch of one process, all rows together. longest: tokens of its
    longest sequence. checkpointing: layers are recomputed in the backward pass. attention: varlen
    (no padding, no scores), sdpa (masked), eager (keeps all scores). loss_tokens: tokens of a micro
    batch that have a loss; None: all. head: how the loss gets its logits: fused (TRL's tiles),
    selected (for tokens with a loss) or whole (for all). lora_targets: all-linear, or names of
    modules as PEFT matches them. device: cuda or cpu.
    """

    batch_tokens: int
    longest: int
    method: str = "lora"
    strategy: str = "single"
    processes: int = 1
    dtype: str = "bf16"
    pure_16bit: bool = False
    checkpointing: bool = False
    attention: str = "varlen"
    loss_tokens: Optional[int] = None
    head: str = "fused"
    lora_rank: int = 16
    lora_targets: Union[str, Sequence[str]] = ALL_LINEAR
    device: str = "cuda"

    @property
    def compute_bytes(self) -> int:
        """Bytes of a value in computations."""
        return DTYPE_BYTES[self.dtype]

    def adapts(self, matrix: Matrix) -> bool:
        """Whether LoRA trains beside this matrix."""
        if self.method == "full":
            return False
        if isinstance(self.lora_targets, str):
            return self.lora_targets in (ALL_LINEAR, matrix.name)
        return any(name.split(".")[-1] == matrix.name for name in self.lora_targets)


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes on each process.

    buffers: what the strategy gathers, reduces and casts, and dequantized weights. overhead: the
    device's own. trainable: parameters that are trained, over all processes.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    overhead: int
    trainable: int

    @property
    def model_state(self) -> int:
        """What does not depend on the batch."""
        return self.weights + self.gradients + self.optimizer + self.buffers + self.overhead

    @property
    def total(self) -> int:
        """All of it, at the peak of a step."""
        return self.model_state + self.activations + self.logits

    def describe(self) -> str:
        """A few lines for people, in GB (1e9 bytes)."""
        state = ("weights", "gradients", "optimizer", "buffers", "overhead")
        parts = (*state, "activations", "logits")
        shares = ", ".join(f"{name} {getattr(self, name) / GB:.2f}" for name in parts)
        return (
            f"predicted memory a process: {self.total / GB:.2f} GB\n"
            f"  {shares}\n"
            f"  {self.trainable / 1e6:.2f} million trained parameters"
        )


@dataclass(frozen=True)
class _State:
    weights: float
    gradients: float
    optimizer: float
    buffers: float


def trainable_parameters(shape: ModelShape, setup: TrainingSetup) -> int:
    """Parameters that are trained: all, or LoRA's r * (inputs + outputs) for each matrix."""
    if setup.method == "full":
        return shape.parameters
    adapted = [m.inputs + m.outputs for m in shape.matrices if setup.adapts(m)]
    return shape.layers * setup.lora_rank * sum(adapted)


def predict(shape: ModelShape, setup: TrainingSetup) -> MemoryPrediction:
    """Bytes that the setup needs on each process at the peak of a training step.

    Raises:
        ValueError: For a method, strategy or dtype that isn't known.
    """
    _check(setup)
    trainable = trainable_parameters(shape, setup)
    state = _full(shape, setup) if setup.method == "full" else _adapters(shape, setup, trainable)
    overhead = 0  # of a CPU process: what it has after its imports is for the caller to measure
    if setup.device == "cuda":
        overhead = CUDA_CONTEXT + (NCCL_BUFFERS if setup.strategy != "single" else 0)
    return MemoryPrediction(
        weights=round(state.weights),
        gradients=round(state.gradients),
        optimizer=round(state.optimizer),
        activations=saved_bytes(shape, setup),
        logits=_logits(shape, setup),
        buffers=round(state.buffers),
        overhead=overhead,
        trainable=trainable,
    )


def _check(setup: TrainingSetup) -> None:
    known = (("method", METHODS), ("strategy", STRATEGIES), ("dtype", tuple(DTYPE_BYTES)))
    for name, choices in known:
        if getattr(setup, name) not in choices:
            raise ValueError(f"{name} {getattr(setup, name)!r} is none of {', '.join(choices)}")


def _full(shape: ModelShape, setup: TrainingSetup) -> _State:
    """16 bytes a parameter: fp32 weights, gradients, two moments; pure 16 bit: 8.

    Rajbhandari et al. 2020 (arXiv:1910.02054, section 3.1) for ZeRO's shares.
    """
    count, parts, size = shape.parameters, setup.processes, setup.compute_bytes
    own = size if setup.pure_16bit else FP32
    moments = ADAM_MOMENTS * own
    if setup.strategy == "fsdp":
        shared = count / parts
        return _State(own * shared, own * shared, moments * shared, _fsdp_buffers(shape, setup))
    if setup.strategy in ("zero2", "zero3"):
        # 16-bit weights and gradients, and in fp32 master weights, moments and a step's gradients.
        optimizer = (FP32 + ADAM_MOMENTS * FP32 + FP32) * count / parts
        weights = size * count / (1 if setup.strategy == "zero2" else parts)
        return _State(weights, size * count / parts, optimizer, _zero_buffers(shape, setup, count))
    # Autocast has a 16-bit copy of each matrix, until the forward pass ends if layers are
    # recomputed: then there is either all of them or what one layer's recomputation keeps.
    buffers = size * shape.layers * shape.layer_matrices if size < own else 0
    if setup.checkpointing:
        buffers = max(0, buffers - layer_bytes(shape, setup))
    if setup.strategy == "ddp":
        buffers += own * count  # the buckets that gradients are reduced in
    return _State(own * count, own * count, moments * count, buffers)


def _adapters(shape: ModelShape, setup: TrainingSetup, trainable: int) -> _State:
    """A frozen base in the computations' precision or NF4, and 16 bytes a trained parameter."""
    own = setup.compute_bytes if setup.pure_16bit else FP32
    base = frozen_bytes(shape, setup)
    buffers = 0.0
    if setup.method == "qlora":  # each matrix is dequantized for its products
        buffers += setup.compute_bytes * max(matrix.weights for matrix in shape.matrices)
    parts = setup.processes if setup.strategy in SHARDED else 1
    if setup.strategy in ("fsdp", "zero3"):
        base /= parts
    if setup.strategy == "fsdp":
        buffers += _fsdp_buffers(shape, setup)
    elif setup.strategy in ("zero2", "zero3"):
        buffers += _zero_buffers(shape, setup, trainable)
    elif setup.strategy == "ddp":
        buffers += own * trainable
    trained = trainable / parts
    return _State(base + own * trained, own * trained, ADAM_MOMENTS * own * trained, buffers)


def frozen_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes of a frozen base, unsharded: NF4 spares the embeddings, the head and the norms."""
    if setup.method != "qlora":
        return float(shape.weight_bytes(setup.compute_bytes))
    quantized = sum(nf4_bytes(matrix.weights) for matrix in shape.matrices)
    rest = shape.parameters - shape.layers * shape.layer_matrices
    return float(shape.layers * quantized + rest * setup.compute_bytes)


def nf4_bytes(weights: int) -> int:
    """Bytes of a matrix in NF4 with double quantization: 0.516 a weight."""
    blocks = -(-weights // NF4_BLOCK)
    return -(-weights // 2) + blocks + FP32 * -(-blocks // NF4_SCALES)


def _fsdp_buffers(shape: ModelShape, setup: TrainingSetup) -> float:
    """Gathered weights and whole gradients, in the computations' precision.

    A layer and the next, which is fetched ahead; embeddings, head and last norm stay from the
    forward to the backward pass (FSDP2's root is not resharded).
    """
    root = shape.head_weights * (1 if shape.tied else 2) + shape.final_norm
    layer = shape.layer_matrices + shape.layer_others
    trained = root + layer if setup.method == "full" else 0
    return float(setup.compute_bytes * (root + 2 * layer + trained))


def _zero_buffers(shape: ModelShape, setup: TrainingSetup, trained: int) -> float:
    buckets = 2 * min(DEEPSPEED_BUCKET, trained)
    live = min(DEEPSPEED_LIVE, shape.parameters) if setup.strategy == "zero3" else 0
    return float(setup.compute_bytes * (buckets + live))


def _logits(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes of logits and their gradients, or of the tiles and sums that replace them."""
    tokens = setup.batch_tokens if setup.loss_tokens is None else setup.loss_tokens
    size = setup.compute_bytes
    if setup.head == "fused":
        tile = min(tokens, TILE_TOKENS) * TILE_VOCABULARY * size
        trained = shape.head_weights if setup.method == "full" else 0
        return tile + FP32 * (tokens * shape.hidden_size + trained)
    if setup.head == "whole":
        tokens = setup.batch_tokens
    # Logits, in fp32 too if they are not; log-probabilities; gradients in fp32.
    upcast = FP32 if size < FP32 else 0
    return tokens * shape.vocab_size * (size + upcast + FP32 + FP32)
