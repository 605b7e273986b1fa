"""What a GGUF model needs to answer prompts by llama.cpp: from options to a session.

    plan = Plan(settings, read_gguf(Path("model-Q4_K_M.gguf")))
    device = device_names(settings["gpu_layers"])
    Job("quantized/generate", settings, made_with(plan), device, partial(session, plan))

settings: the options of quantized/generate.py by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_recipes.answering import Session, make_requests

if TYPE_CHECKING:
    from llm_recipes.answers import Key
    from llm_recipes.decoding import DecodeSettings, Request
    from llm_recipes.gguf.engine import Device
    from llm_recipes.gguf.file import GgufFile
    from llm_recipes.gguf.model import ContextSettings, GgufModel
    from llm_recipes.gguf.opening import OpenOptions
    from llm_recipes.gguf.tokenizer import GgufTokenizer
    from llm_recipes.prompts import Prompt

# Settings that change no answer beyond rounding: a run may be continued with others.
FREE_TO_CHANGE = frozenset(
    {"model", "prompt", "prompts", "chat", "output", "overwrite", "stream", "parallel"}
    | {"gpu_layers", "split", "shares", "flash_attention", "threads", "prompt_threads"}
    | {"load_mode", "hosts", "measure_peak"}
)


@dataclass(frozen=True)
class Plan:
    """A checked command line. settings: the options by name."""

    settings: dict[str, Any]
    file: GgufFile


def made_with(plan: Plan) -> dict[str, Any]:
    """All that an answer depends on: a file of answers is continued only under the same."""
    from llm_recipes.gguf.file import gguf_digest

    chosen = {k: v for k, v in plan.settings.items() if k not in FREE_TO_CHANGE}
    return {**chosen, "model": gguf_digest(plan.file)}


def inputs_of(plan: Plan) -> dict[str, Path | list[Path]]:
    """What is read, by the run record's part."""
    return {"model": plan.file.path if len(plan.file.shards) == 1 else list(plan.file.shards)}


def is_repeatable(plan: Plan) -> bool:
    """Whether the same command gives the same bytes: on CPUs alone, with the same threads."""
    from llm_recipes.gguf.hosts import connected_hosts

    return not connected_hosts() and not gpus_of(plan.settings["gpu_layers"])


def device_names(gpu_layers: int | str) -> str:
    """What computes: GPUs and other hosts, else the CPU."""
    from llm_recipes.gguf.engine import devices
    from llm_recipes.gguf.hosts import connected_hosts

    connected_hosts()
    used = gpus_of(gpu_layers) or [device for device in devices() if device.kind == "cpu"]
    return ", ".join(device.description for device in used)


def gpus_of(gpu_layers: int | str) -> list[Device]:
    """GPUs and other hosts' devices that get layers, as far as that is known beforehand."""
    from llm_recipes.gguf.engine import gpu_devices

    return gpu_devices() if gpu_layers != 0 else []


@contextlib.contextmanager
def session(plan: Plan, asked: Sequence[Prompt], missing: Sequence[Key]) -> Iterator[Session]:
    """The loaded model with the requests for the missing answers."""
    import torch

    from llm_recipes.device import peak_memory_bytes
    from llm_recipes.gguf.decoder import GgufDecoder
    from llm_recipes.gguf.model import GgufModel
    from llm_recipes.gguf.opening import open_model
    from llm_recipes.gguf.size import model_size
    from llm_recipes.summary import Loading, describe, generation_metrics

    o = plan.settings
    peak = peak_of(plan)
    with GgufModel.load(plan.file, vocabulary_only=True) as words:
        limit = sequence_limit(plan)
        style, system = o["prompt_style"], o["system"]
        requests = make_requests(asked, missing, words.tokenizer, style, system, limit)
    tokens = longest(plan, requests)
    opened = open_model(plan.file, open_options(plan), tokens, most=len(requests))
    with opened as (model, room), model.context(room) as context:
        decoder = GgufDecoder(
            context, model.tokenizer, decode_settings(plan, model.tokenizer, context.tokens)
        )
        # The longest first: what is left at the end is short.
        ordered = sorted(requests, key=lambda request: -len(request.token_ids))
        size = model_size(model, room)
        loading = Loading(model.load_s, plan.file.bytes)

        def metrics() -> dict[str, Any]:
            memory = peak_memory_bytes(torch.device("cpu"))
            made = generation_metrics(loading, size, decoder.work, peak, memory)
            return {**made, **placement_metrics(model, context.buffers, room)}

        yield Session(
            requests,
            decoder,
            lambda: decoder.complete(ordered),
            metrics,
            lambda: describe_model(model),
            describe,
        )


def sequence_limit(plan: Plan) -> int | None:
    """Tokens that a sequence may have at most: as trained, or as --context says."""
    asked, trained = plan.settings["context"], plan.file.context_length
    if asked == "auto":
        return trained
    return int(asked) if trained is None else min(int(asked), trained)


def longest(plan: Plan, requests: Sequence[Request]) -> int:
    """Tokens of the longest sequence, its answer included."""
    tokens = max(len(request.token_ids) for request in requests)
    tokens += int(plan.settings["max_new_tokens"])
    limit = sequence_limit(plan)
    return tokens if limit is None else min(tokens, limit)


def open_options(plan: Plan) -> OpenOptions:
    """The command line's options about memory and threads."""
    from llm_recipes.gguf.opening import OpenOptions

    names = [field.name for field in fields(OpenOptions)]
    return OpenOptions(**{name: plan.settings[name] for name in names})


def decode_settings(plan: Plan, tokenizer: GgufTokenizer, context: int) -> DecodeSettings:
    """What ends a completion and how its tokens are chosen."""
    from llm_recipes.decoding import DecodeSettings
    from llm_recipes.sampling import Sampling

    o = plan.settings
    limit = sequence_limit(plan)
    return DecodeSettings(
        max_new_tokens=o["max_new_tokens"],
        sampling=Sampling(
            o["temperature"], o["top_p"], o["top_k"], o["repetition_penalty"], o["seed"]
        ),
        stop=tuple(o["stop"] or ()),
        stop_token_ids=frozenset() if o["ignore_eos"] else tokenizer.end_ids,
        context=context if limit is None else min(context, limit),
    )


def peak_of(plan: Plan) -> Any:
    """The device's limits: measured if asked for, before the model takes its memory."""
    import torch

    from llm_recipes.device import DTYPES, Peak, choose_device, data_sheet, measure_peak

    gpus = gpus_of(plan.settings["gpu_layers"])
    if plan.settings["measure_peak"] and not gpus:
        return measure_peak(torch.device("cpu"), torch.float32)
    if plan.settings["measure_peak"] and torch.cuda.is_available() and len(gpus) == 1:
        return measure_peak(choose_device("auto"), DTYPES["fp16"])
    names = {gpu.description for gpu in gpus}
    known = data_sheet(names.pop()) if len(names) == 1 else None
    return known or Peak(None, None, "unknown: --measure-peak measures one CPU or GPU")


def placement_metrics(
    model: GgufModel, buffers: dict[str, int], room: ContextSettings
) -> dict[str, Any]:
    """The record's numbers about threads, layers and memory."""
    on_gpus = sum(1 for name in model.layer_devices.values() if not name.startswith("CPU"))
    return {
        "threads": room.threads,
        "prompt_threads": room.prompt_threads,
        "parallel": room.sequences,
        "context_tokens": room.tokens,
        "gpu_layers": on_gpus,
        "weight_buffer_bytes": model.buffers,
        "context_buffer_bytes": buffers,
    }


def describe_model(model: GgufModel) -> dict[str, Any]:
    """The run record's part about the model."""
    from llm_recipes.gguf.engine import kernel_library
    from llm_recipes.gguf.file import gguf_digest

    return {
        "path": str(model.file.path),
        "architecture": model.file.architecture,
        "parameters": model.parameters,
        "dtype": model.file.file_type,
        "bits_per_weight": model.file.bits_per_weight,
        "digest": gguf_digest(model.file),
        "cpu_kernels": kernel_library(),
    }
