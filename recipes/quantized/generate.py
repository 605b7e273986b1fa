"""Generate text with a GGUF model by llama.cpp: one prompt, a file of prompts, or a conversation.

    llm-run python recipes/quantized/generate.py --model model-Q4_K_M.gguf --prompt "Hello"
    llm-run python recipes/quantized/generate.py --model model-Q4_K_M.gguf \\
        --prompts questions.jsonl --output answers.jsonl
    salloc --nodes=3 llm-run python recipes/quantized/generate.py --hosts --model large.gguf \\
        --prompts questions.jsonl --output answers.jsonl

Prompts, answers, sampling, resuming and the summary are those of recipes/inference/generate.py.
Several sequences run at once; one that ends makes room for the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.answering import Job, Session, answer_prompts, make_requests
from llm_recipes.cli import run_recipe
from llm_recipes.errors import raise_all
from llm_recipes.generation_options import option_faults
from llm_recipes.prompts import read_prompts, style_faults

if TYPE_CHECKING:
    from llm_recipes.answers import Key
    from llm_recipes.decoding import DecodeSettings, Request
    from llm_recipes.gguf.engine import Device
    from llm_recipes.gguf.file import GgufFile
    from llm_recipes.gguf.model import ContextSettings, GgufModel
    from llm_recipes.gguf.opening import OpenOptions
    from llm_recipes.gguf.tokenizer import GgufTokenizer
    from llm_recipes.prompts import Prompt

CHAT_TOKENS = 8192  # room for a conversation, where the model has been trained for more
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


def generate(
    model: Path,
    prompt: list[str] | None = None,
    prompts: str | None = None,
    chat: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    samples: int = 1,
    stop: list[str] | None = None,
    ignore_eos: bool = False,
    prompt_style: Literal["auto", "raw", "chat", "alpaca"] = "auto",
    system: str | None = None,
    parallel: int | Literal["auto"] = "auto",
    stream: bool | None = None,
    gpu_layers: int | Literal["auto", "all"] = "auto",
    split: Literal["layer", "row", "tensor", "none"] = "layer",
    shares: str | None = None,
    kv_type: Literal["f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = "f16",
    flash_attention: Literal["auto", "on", "off"] = "auto",
    context: int | Literal["auto"] = "auto",
    threads: int | Literal["auto"] = "auto",
    prompt_threads: int | Literal["auto"] = "auto",
    load_mode: Literal["auto", "mmap", "read", "lock", "direct"] = "auto",
    hosts: bool = False,
    measure_peak: bool = False,
) -> int:
    """Generate text with a GGUF model by llama.cpp: a prompt, a file of prompts, or a conversation.

    Args:
        model: GGUF file; of several shards the first.
        prompt: A prompt; repeat the option for several.
        prompts: File of prompts: text (one a line), .jsonl, or - for standard input.
        chat: Hold a conversation at the terminal.
        output: File for the answers (JSON Lines), resumable; null: standard output.
        overwrite: Start anew although the output is there.
        max_new_tokens: Tokens a completion at most.
        temperature: 0 takes the likeliest token each time; 1 samples as the model says.
        top_p: Sample from the likeliest tokens that hold this share of the probability; 1 is off.
        top_k: Sample from so many likeliest tokens; 0 is off.
        repetition_penalty: Above 1 makes tokens that were there already less likely; 1 is off.
        seed: Of the sampling noise.
        samples: Completions a prompt.
        stop: Text that ends a completion and is cut off; repeat the option for several.
        ignore_eos: Go on after the model's end token, up to the limit (for measurements).
        prompt_style: raw text, the model's chat template, or alpaca's instruction form; auto: the
            chat template if the model has one.
        system: System message for chats that have none.
        parallel: Sequences at once; auto: up to 16 on CPUs, 64 on GPUs, as memory allows.
        stream: Show text while it is generated; null: for a single prompt on a terminal.
        gpu_layers: Layers on GPUs; auto: as many as fit.
        split: How several GPUs share: whole layers, or each layer's rows or tensors.
        shares: Proportion of each GPU, such as 3,1; null: by free memory.
        kv_type: Type of the cached keys and values; q8_0 halves their memory.
        flash_attention: Attention that keeps no scores; quantized caches need it.
        context: Tokens a sequence, prompt and answer; auto: what the prompts need.
        threads: CPU threads for generation; auto: as tuned (tune.py), else what was granted.
        prompt_threads: CPU threads for prompts and several sequences at once; auto: the same.
        load_mode: How weights are read; lock keeps them from being swapped out.
        hosts: Use the memory of all nodes of the job, by RPC; not encrypted.
        measure_peak: Measure the memory's bandwidth first, for MBU (seconds).
    """
    settings = dict(locals())
    if hosts:  # first: of all tasks only one goes on, and says what is wrong
        from llm_recipes.gguf.hosts import run_on_hosts

        status = run_on_hosts(threads if isinstance(threads, int) else None)
        if status is not None:
            return status
    from llm_recipes.gguf.options import placement_faults

    faults = option_faults({**settings, "batch_size": 1}) + style_faults(prompt_style, chat, system)
    raise_all(faults + placement_faults(settings))
    from llm_recipes.gguf.file import read_gguf

    asked = [] if chat else read_prompts(prompt, prompts)
    file = read_gguf(model)
    plan = Plan(settings, file)
    if chat:
        return hold_chat(plan)
    job = Job(
        "quantized/generate", settings, made_with(plan), device_names(plan), partial(session, plan)
    )
    return answer_prompts(job, asked)


def made_with(plan: Plan) -> dict[str, Any]:
    """All that an answer depends on: a file of answers is continued only under the same."""
    from llm_recipes.gguf.file import gguf_digest

    chosen = {k: v for k, v in plan.settings.items() if k not in FREE_TO_CHANGE}
    return {**chosen, "model": gguf_digest(plan.file)}


def device_names(plan: Plan) -> str:
    """What computes: GPUs and other hosts, else the CPU."""
    from llm_recipes.gguf.engine import devices
    from llm_recipes.gguf.hosts import connected_hosts

    connected_hosts()
    used = gpus_of(plan) or [device for device in devices() if device.kind == "cpu"]
    return ", ".join(device.description for device in used)


def gpus_of(plan: Plan) -> list[Device]:
    """GPUs and other hosts' devices that get layers, as far as that is known beforehand."""
    from llm_recipes.gguf.engine import gpu_devices

    return gpu_devices() if plan.settings["gpu_layers"] != 0 else []


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
            lambda: describe_model(plan, model),
            describe,
        )


def hold_chat(plan: Plan) -> int:
    """A conversation at the terminal."""
    from llm_recipes.chat import converse
    from llm_recipes.gguf.decoder import GgufDecoder
    from llm_recipes.gguf.opening import open_model

    trained = plan.file.context_length or CHAT_TOKENS
    asked = plan.settings["context"]
    tokens = min(trained, CHAT_TOKENS) if asked == "auto" else min(asked, trained)
    opened = open_model(plan.file, open_options(plan), tokens, most=1)
    with opened as (model, room), model.context(room) as context:
        settings = decode_settings(plan, model.tokenizer, tokens)
        decoder = GgufDecoder(context, model.tokenizer, settings)
        style, system = plan.settings["prompt_style"], plan.settings["system"]
        return converse(decoder, model.tokenizer, style, system)


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

    gpus = gpus_of(plan)
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


def describe_model(plan: Plan, model: GgufModel) -> dict[str, Any]:
    """The run record's part about the model."""
    from llm_recipes.gguf.engine import kernel_library
    from llm_recipes.gguf.file import gguf_digest

    return {
        "path": str(plan.file.path),
        "architecture": plan.file.architecture,
        "parameters": model.parameters,
        "dtype": plan.file.file_type,
        "bits_per_weight": plan.file.bits_per_weight,
        "digest": gguf_digest(plan.file),
        "cpu_kernels": kernel_library(),
    }


if __name__ == "__main__":
    run_recipe(generate)
