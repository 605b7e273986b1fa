"""What a GGUF model needs of memory, and how many of its layers go to GPUs.

    from llm_recipes.gguf.placement import plan_placement

llama.cpp gives the last layers to GPUs: of N layers and the output, `--gpu-layers n` puts the last
n there, and several GPUs get consecutive ones in proportion to their shares.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

from llm_recipes.errors import LLMError
from llm_recipes.gguf import engine
from llm_recipes.gguf.engine import Device
from llm_recipes.gguf.file import GgufFile
from llm_recipes.gguf.model import CELLS, ContextSettings, Placement, Split
from llm_recipes.host_memory import free_host_bytes

GpuLayers = int | Literal["auto", "all"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0"]
MARGIN_BYTES = 400 * 2**20  # a GPU's context, kernels and what others allocate meanwhile
LAYER = re.compile(r"^blk\.(\d+)\.")
STATES = 12  # of a token that live at once in a layer, in widths of the model
GB = 1e9


@dataclass(frozen=True)
class Need:
    """Bytes of a model in use.

    layers: weights of each layer; the last entry is the output's. cache: keys and values of each
    layer. input: the embedding, which stays on the CPU. scratch: what computing takes on each
    device. tied: the output is the embedding, and on the CPU the same bytes.
    """

    layers: tuple[int, ...]
    cache: tuple[int, ...]
    input: int
    scratch: int
    tied: bool = False

    @property
    def total(self) -> int:
        """Everything on the CPU."""
        embedding = 0 if self.tied else self.input
        return sum(self.layers) + sum(self.cache) + embedding + self.scratch

    def on_host(self, gpu_layers: int) -> int:
        """What stays on the CPU when the last layers, the output being one of them, go to GPUs."""
        if not gpu_layers:
            return self.total
        stays = range(max(0, len(self.layers) - gpu_layers))
        return self.of(stays) + self.input + self.scratch

    def of(self, layers: Sequence[int]) -> int:
        """Bytes of some layers, the output being the one after the last."""
        cached = sum(self.cache[i] for i in layers if i < len(self.cache))
        return sum(self.layers[i] for i in layers) + cached


def memory_need(file: GgufFile, context: ContextSettings) -> Need:
    """What the model needs with room for these sequences; the scratch is an estimate.

    The weights are the file's own sizes, the cache is exact for attention without windows.
    """
    layers = [0] * (file.layers + 1)
    embedding = 0
    for tensor in file.tensors:
        named = LAYER.match(tensor.name)
        if named and int(named[1]) < file.layers:
            layers[int(named[1])] += tensor.bytes
        elif tensor.name == "token_embd.weight":
            embedding = tensor.bytes
        else:
            layers[-1] += tensor.bytes
    tied = not any(tensor.name == "output.weight" for tensor in file.tensors)
    if tied:
        layers[-1] += embedding  # a GPU that has the output gets a copy
    cells = -(-context.tokens // CELLS) * CELLS * context.sequences
    width = int(file.value("embedding_length", 0))
    wide = max(int(_first(file.value("feed_forward_length", 0))), STATES * width)
    scratch = context.micro_batch * (file.vocabulary + 2 * wide) * 4
    return Need(
        tuple(layers),
        tuple(cells * size for size in cache_bytes_per_token(file, context)),
        embedding,
        scratch,
        tied,
    )


def cache_bytes_per_token(file: GgufFile, context: ContextSettings) -> list[int]:
    """Bytes of a token's key and value in each layer."""
    heads = _per_layer(file, "attention.head_count", 0)
    shared = _per_layer(file, "attention.head_count_kv", None) or heads
    width = int(file.value("embedding_length", 0))
    sizes = []
    for layer in range(file.layers):
        head = width // heads[layer] if heads[layer] else 0
        key = int(file.value("attention.key_length", head)) * shared[layer]
        value = int(file.value("attention.value_length", head)) * shared[layer]
        size = engine.row_bytes(context.key_type, key) if key else 0
        sizes.append(size + (engine.row_bytes(context.value_type, value) if value else 0))
    return sizes


def plan_placement(
    file: GgufFile,
    gpu_layers: GpuLayers,
    split: Split,
    shares: Sequence[float],
    context: ContextSettings,
    gpus: Sequence[Device] | None = None,
) -> Placement:
    """Where the layers go: as many as fit on GPUs for `auto`, and what stays must fit here.

    Args:
        file: The model.
        gpu_layers: How many layers go to GPUs (the output is one more); auto: as many as fit; all.
        split: How several GPUs share.
        shares: Of each GPU; empty: by free memory.
        context: The room for sequences.
        gpus: The devices; None: those of this process.

    Raises:
        LLMError: If GPUs are asked for where there are none, or it can't fit.
    """
    found = engine.gpu_devices() if gpus is None else list(gpus)
    most = file.layers + 1
    if not found:
        if gpu_layers not in ("auto", 0):
            why = "llama.cpp sees no GPU and no other host"
            fix = "use a node with a GPU and a cuda image, or leave --gpu-layers out"
            raise LLMError(f"--gpu-layers {gpu_layers} cannot be", why, fix)
        placement = Placement(0, "none")
        check_host_memory(file, placement, context)
        return placement
    if shares and len(shares) != len(found):
        why = f"there are {len(found)} GPUs: {', '.join(gpu.name for gpu in found)}"
        fix = "one number for each, such as --shares 3,1"
        raise LLMError(f"--shares has {len(shares)} numbers", why, fix)
    need = memory_need(file, context)
    parts = tuple(shares) or tuple(float(max(1, gpu.free_bytes)) for gpu in found)
    if gpu_layers == "auto":
        fitting = (n for n in range(most, 0, -1) if not _full(need, n, parts, found, split))
        count = next(fitting, 0)
    else:
        count = most if gpu_layers == "all" or gpu_layers < 0 else min(gpu_layers, most)
        full = _full(need, count, parts, found, split)
        if full:
            fix = "--gpu-layers auto, a smaller --context, or --kv-type q8_0"
            raise LLMError(f"{count} layers do not fit on the GPUs", full, fix)
    placement = Placement(count, split if len(found) > 1 else "layer", tuple(shares))
    check_host_memory(file, placement, context)
    return placement


def check_host_memory(file: GgufFile, placement: Placement, context: ContextSettings) -> None:
    """Refuse what the host's memory can't hold, before it is read.

    Raises:
        LLMError: With what is needed and what is free.
    """
    need = memory_need(file, context)
    needed = need.on_host(placement.gpu_layers)
    free = free_host_bytes()
    if needed > free:
        raise LLMError(
            f"{file.path} does not fit into memory",
            f"it needs {needed / GB:.2f} GB here ({need_in_words(need)} in all),"
            f" and {free / GB:.2f} GB are free",
            "a smaller --context or fewer --parallel, --kv-type q8_0, a more quantized model,\n"
            "more memory for the job (--mem), or other hosts too: --hosts",
        )


def need_in_words(need: Need) -> str:
    """Weights, cache and scratch of a model for people."""
    weights = sum(need.layers)
    return (
        f"weights {weights / GB:.2f}, cache {sum(need.cache) / GB:.2f},"
        f" scratch {need.scratch / GB:.2f}"
    )


def layers_of_devices(count: int, layers: int, shares: Sequence[float]) -> list[list[int]]:
    """Which layers each device gets, as llama.cpp splits them.

    Args:
        count: Layers that go to devices; the output counts as one.
        layers: All layers with the output.
        shares: In which proportion.
    """
    total = sum(shares)
    ends = [end / total for end in accumulate(shares)]
    given: list[list[int]] = [[] for _ in shares]
    first = layers - count
    for layer in range(first, layers):
        device = bisect_right(ends, (layer - first) / count)
        given[min(device, len(shares) - 1)].append(layer)
    return given


def shares_of(text: str | None) -> tuple[float, ...]:
    """Numbers of `--shares 3,1`.

    Raises:
        LLMError: If they are no positive numbers.
    """
    if not text:
        return ()
    try:
        found = tuple(float(part) for part in text.split(","))
        if any(not 0 <= share < float("inf") for share in found) or sum(found) <= 0:
            raise ValueError
    except ValueError:
        what = f"--shares {text!r} are no shares"
        raise LLMError(what, fix="one number a GPU, such as --shares 3,1") from None
    return found


def sequences_that_fit(file: GgufFile, context: ContextSettings, most: int, free_bytes: int) -> int:
    """How many sequences the free memory has room for beside the weights, at least 1."""
    one = memory_need(file, replace(context, sequences=1))
    left = free_bytes - (one.total - sum(one.cache))
    return max(1, min(most, int(left // max(1, sum(one.cache)))))


def _full(
    need: Need, count: int, shares: Sequence[float], gpus: Sequence[Device], split: Split
) -> str:
    """Which GPU the layers don't fit on, and by how much; empty if they do."""
    if not count:
        return ""
    first = len(need.layers) - count
    if split in ("row", "tensor") and len(gpus) > 1:
        whole = need.of(range(first, len(need.layers)))
        parts = [int(whole * share / sum(shares)) for share in shares]
    else:
        chosen = gpus[:1] if split == "none" else gpus
        shares = shares[: len(chosen)]
        parts = [need.of(part) for part in layers_of_devices(count, len(need.layers), shares)]
    for gpu, part in zip(gpus, parts, strict=False):
        needed = part + need.scratch + MARGIN_BYTES if part else 0
        if needed > gpu.free_bytes:
            return f"{gpu.name} needs {needed / GB:.2f} GB and has {gpu.free_bytes / GB:.2f} free"
    return ""


def _per_layer(file: GgufFile, key: str, default: int | None) -> list[int]:
    value = file.value(key, default)
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, list) else [int(value)] * file.layers


def _first(value: Any) -> Any:
    return max(value, default=0) if isinstance(value, list) else value
