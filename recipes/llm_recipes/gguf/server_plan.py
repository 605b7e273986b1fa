"""What a server needs and where it goes, decided before llama-server is started.

    from llm_recipes.gguf.server_plan import Wanted, make_plan

Where there are GPUs or other hosts llama.cpp is loaded for it in a process of its own: a process
that has asked a GPU for its memory keeps some of it, one that has called an RPC server keeps others
out, and a server's recipe waits beside llama-server for days.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llm_recipes.errors import LLMError
from llm_recipes.gguf import engine, placement
from llm_recipes.gguf.file import GgufFile, gguf_digest, read_gguf
from llm_recipes.gguf.model import CELLS, ContextSettings, Placement, Split
from llm_recipes.gguf.remote_hosts import RemoteHost, place_on_hosts
from llm_recipes.gguf.threads import Threads
from llm_recipes.gguf.tuning import threads_for
from llm_recipes.host_memory import free_host_bytes

AUTO_CONTEXT = 8192  # tokens of a slot, where memory allows; more only for those who ask
LEAST_CONTEXT = 512
GPU_FILES = ("nvidia[0-9]*", "dxg")  # in /dev; dxg is Windows' way
# llama-server keeps the cache of earlier prompts in the host's memory, 8 GiB if nobody says less.
MOST_PROMPT_CACHE = 8 * 2**30
PROMPT_CACHE_SHARE = 4  # of what is left, so that nothing that grows meets the job's limit


@dataclass(frozen=True)
class Wanted:
    """What the user asks for.

    rpc: ADDRESS:PORT of other hosts' RPC servers. hosts: what is known of them, with `--hosts`.
    """

    model: Path
    gpu_layers: placement.GpuLayers
    split: Split
    shares: tuple[float, ...]
    context: int | Literal["auto"]
    slots: int
    kv_type: str = "f16"
    flash_attention: str = "auto"
    threads: int | Literal["auto"] = "auto"
    prompt_threads: int | Literal["auto"] = "auto"
    rpc: tuple[str, ...] = ()
    hosts: tuple[RemoteHost, ...] = ()


@dataclass(frozen=True)
class ServerPlan:
    """What runs. context: of each slot, slots being its sequences. need: in words. device: name."""

    file: GgufFile
    digest: str
    placement: Placement
    context: ContextSettings
    threads: Threads
    prompt_cache_bytes: int
    need: str
    device: str

    @property
    def is_chat(self) -> bool:
        """Whether the model brings a chat template."""
        return "tokenizer.chat_template" in self.file.metadata


def make_plan(wanted: Wanted) -> ServerPlan:
    """`plan_server`, in a process of its own where that matters.

    Raises:
        LLMError: See `plan_server`.
    """
    gpus = [file for name in GPU_FILES for file in Path("/dev").glob(name)]
    return plan_apart(wanted) if gpus or wanted.rpc else plan_server(wanted)


def plan_apart(wanted: Wanted) -> ServerPlan:
    """`plan_server` in a process of its own, which takes what it holds of GPUs with it.

    Raises:
        LLMError: See `plan_server`, or that process died.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        # The process inherits the mask: Ctrl-C is for us alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            planned = pool.submit(plan_server, wanted)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            return planned.result()
        except BrokenProcessPool:
            # ggml's RPC client ends the process when a worker is not there.
            why = "llama.cpp ended the process that looked at model and devices"
            hosts = f"; is a worker gone: {', '.join(wanted.rpc)}?" if wanted.rpc else ""
            fix = "LLM_LLAMA_LOG=1 shows llama.cpp's log"
            raise LLMError("the server can't be planned", why + hosts, fix) from None


def plan_server(wanted: Wanted) -> ServerPlan:
    """Read the model's header, choose context and placement, and see that it all fits.

    Raises:
        LLMError: If the model can't be read or served, or does not fit.
    """
    file = read_gguf(wanted.model)
    check_servable(file)
    wanted = replace(wanted, hosts=connected(wanted))
    threads = threads_for(file, wanted.threads, wanted.prompt_threads)
    context, chosen = choose_context(file, wanted)
    context = replace(context, threads=threads.generate, prompt_threads=threads.prompt)
    need = placement.memory_need(file, context)
    on_gpus = need.of(range(len(need.layers) - chosen.gpu_layers, len(need.layers)))
    left = free_host_bytes() - (need.total - on_gpus)
    cache = max(0, min(MOST_PROMPT_CACHE, left // PROMPT_CACHE_SHARE))
    return ServerPlan(
        file,
        gguf_digest(file),
        chosen,
        context,
        threads,
        cache,
        placement.need_in_words(need),
        device_names(chosen),
    )


def connected(wanted: Wanted) -> tuple[RemoteHost, ...]:
    """Other hosts with their devices as this process's; a server takes one client at a time."""
    devices = {endpoint: tuple(engine.connect_rpc(endpoint)) for endpoint in wanted.rpc}
    return tuple(replace(host, devices=devices[host.endpoint]) for host in wanted.hosts)


def device_names(chosen: Placement) -> str:
    """What computes: the GPUs and hosts that get layers, else the CPU."""
    found = engine.gpu_devices() if chosen.gpu_layers else []
    return ", ".join(device.description for device in found or engine.devices())


def check_servable(file: GgufFile) -> None:
    """See that the file is a model that generates text.

    Raises:
        LLMError: If it makes embeddings, or is a part of a model.
    """
    causal = file.value("attention.causal", True)
    if not causal or file.architecture == "clip" or file.layers == 0:
        why = f"its architecture is {file.architecture}"
        raise LLMError(
            f"{file.path} is no model that generates text", why, "choose another --model"
        )


def choose_context(file: GgufFile, wanted: Wanted) -> tuple[ContextSettings, Placement]:
    """Tokens of a slot and the layers' places; a context of auto takes no layer off a GPU.

    Raises:
        LLMError: If it does not fit, or the model was not trained for so many tokens.
    """
    trained = file.context_length
    if wanted.context != "auto":
        if trained is not None and wanted.context > trained:
            what = f"--context {wanted.context} is more than the model was trained for"
            raise LLMError(what, f"{file.path} has {trained} tokens", f"--context {trained}")
        return placed(file, wanted, wanted.context)
    sizes = context_sizes(trained)
    least = placed(file, wanted, sizes[-1])
    for size in sizes[:-1]:
        try:
            found = placed(file, wanted, size)
        except LLMError:
            continue
        if found[1].gpu_layers == least[1].gpu_layers:
            return found
    return least


def context_sizes(trained: int | None) -> Sequence[int]:
    """Tokens of a slot to try, the largest first."""
    most = min(trained or AUTO_CONTEXT, AUTO_CONTEXT)
    sizes = [most]
    while sizes[-1] // 2 >= LEAST_CONTEXT:
        sizes.append(sizes[-1] // 2 // CELLS * CELLS)
    return sizes


def placed(file: GgufFile, wanted: Wanted, tokens: int) -> tuple[ContextSettings, Placement]:
    """The settings with so many tokens a slot, and where the layers go with them.

    Raises:
        LLMError: If it does not fit.
    """
    context = ContextSettings(
        tokens,
        wanted.slots,
        key_type=wanted.kv_type,
        value_type=wanted.kv_type,
        flash_attention=wanted.flash_attention,
    )
    o = wanted
    if o.hosts:
        return context, place_on_hosts(o.hosts, file, context, o.gpu_layers, o.shares)
    return context, placement.plan_placement(file, o.gpu_layers, o.split, o.shares, context)
