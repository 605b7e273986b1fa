"""A GGUF model opened as a command line's options say: placement, threads, room for sequences.

from llm_recipes.gguf.opening import OpenOptions, open_model
with open_model(read_gguf(path), OpenOptions(...)) as (model, settings): ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from llm_recipes.gguf import threads as cpu
from llm_recipes.gguf.engine import gpu_devices
from llm_recipes.gguf.file import GgufFile
from llm_recipes.gguf.model import ContextSettings, GgufModel, Split
from llm_recipes.gguf.placement import (
    GpuLayers,
    plan_placement,
    sequences_that_fit,
    shares_of,
)
from llm_recipes.gguf.remote_hosts import (
    REMOTE,
    RemoteHost,
    connected_hosts,
    place_on_hosts,
    verify_hosts,
)
from llm_recipes.gguf.tuning import threads_for
from llm_recipes.host_memory import free_host_bytes

SHARE_OF_FREE = 0.8  # the need is an estimate
MOST_AT_ONCE = {"cpu": 16, "gpu": 64}  # sequences, if the memory allows them
Number = int | Literal["auto"]


@dataclass(frozen=True)
class OpenOptions:
    """How a model is opened: options of the recipes, under their names."""

    parallel: Number = "auto"
    gpu_layers: GpuLayers = "auto"
    split: Split = "layer"
    shares: str | None = None
    kv_type: str = "f16"
    flash_attention: str = "auto"
    threads: Number = "auto"
    prompt_threads: Number = "auto"
    load_mode: str = "auto"


@contextmanager
def open_model(
    file: GgufFile, options: OpenOptions, tokens: int, most: int | None = None
) -> Iterator[tuple[GgufModel, ContextSettings]]:
    """The loaded model and the settings of contexts in it; says where it goes.

    Args:
        file: The model's header.
        options: Where and how.
        tokens: Room of a sequence.
        most: Sequences that are needed at most; None: as many as fit.

    Raises:
        LLMError: If it does not fit into memory, or llama.cpp can't load it.
    """
    hosts = connected_hosts()
    chosen = threads_for(file, options.threads, options.prompt_threads)
    cpu.use(chosen)
    room = _room(file, options, tokens, chosen, most, hosts)
    shares = shares_of(options.shares)
    if hosts:
        placement = place_on_hosts(hosts, file, room, options.gpu_layers, shares)
    else:
        placement = plan_placement(file, options.gpu_layers, options.split, shares, room)
    where = f", {placement.gpu_layers} layers on GPUs" if placement.gpu_layers else ""
    threads = f"{cpu.counted(chosen.generate)} ({chosen.reason})"
    size = f"{file.bytes / 1e9:.3g} GB, {file.file_type}"
    print(f"loading {file.path} ({size}){where}; {threads}", file=sys.stderr, flush=True)
    with GgufModel.load(file, placement, options.load_mode, progress=True) as model:
        if hosts:
            verify_hosts(hosts, model)
        yield model, room


def _room(
    file: GgufFile,
    options: OpenOptions,
    tokens: int,
    threads: cpu.Threads,
    most: int | None,
    hosts: Sequence[RemoteHost],
) -> ContextSettings:
    """Room for so many sequences as are asked for, or fit."""

    def of(sequences: int) -> ContextSettings:
        return ContextSettings(
            tokens=tokens,
            sequences=sequences,
            threads=threads.generate,
            prompt_threads=threads.prompt,
            key_type=options.kv_type,
            value_type=options.kv_type,
            flash_attention=options.flash_attention,
        )

    if options.parallel != "auto":
        return of(min(options.parallel, most or options.parallel))
    # What a CPU host says to llama.cpp is all memory of its node, not the job's.
    gpus = [gpu for gpu in gpu_devices() if not gpu.name.startswith(REMOTE)]
    if options.gpu_layers == 0:
        gpus = []
    elif options.split == "none":
        gpus = gpus[:1]
    free = sum(gpu.free_bytes for gpu in gpus) + sum(sum(host.rooms) for host in hosts)
    if hosts or not gpus:
        free += free_host_bytes()
    on_gpus = gpus or any(host.has_gpus for host in hosts)
    useful = min(MOST_AT_ONCE["gpu" if on_gpus else "cpu"], most or MOST_AT_ONCE["gpu"])
    return of(sequences_that_fit(file, of(1), useful, int(SHARE_OF_FREE * free)))
