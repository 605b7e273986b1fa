"""Generate text with a transformers model: one prompt, a file of prompts, or a conversation.

    llm-run python recipes/inference/generate.py --model FOLDER --prompt "My favourite condiment is"
    llm-run python recipes/inference/generate.py --model FOLDER --prompts questions.jsonl \\
        --output answers.jsonl
    llm-run python recipes/inference/generate.py --model FOLDER --chat

Prompts: a text file (one a line), JSON Lines ({"id", "prompt"} or {"id", "messages"}), or `-` for
standard input. Answers: JSON Lines with id, sample, prompt, completion, prompt_tokens,
completion_tokens (the stop token counts), finish_reason (stop or length). The same command again
continues a run that was interrupted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.answering import Job, Session, answer_prompts, make_requests
from llm_recipes.cli import run_recipe
from llm_recipes.errors import raise_all
from llm_recipes.generation_options import option_faults
from llm_recipes.prompts import read_prompts, style_faults
from llm_recipes.say import say

if TYPE_CHECKING:
    import torch

    from llm_recipes.answers import Key
    from llm_recipes.decoding import Decoder, Request
    from llm_recipes.device import Peak
    from llm_recipes.model_folder import ModelFolder
    from llm_recipes.models import LoadedModel, ModelSize
    from llm_recipes.prompts import Prompt

LARGER = "use a device with more memory, or a smaller or quantized model"
# Settings that change no answer beyond rounding: a run may be continued with others.
FREE_TO_CHANGE = frozenset(
    {"model", "adapter", "prompt", "prompts", "chat", "output", "overwrite", "stream", "dtype"}
    | {"device", "batch_size", "compile", "measure_peak", "trust_remote_code"}
)


@dataclass(frozen=True)
class Plan:
    """A checked command line: what runs where. settings: the options by name."""

    settings: dict[str, Any]
    folder: ModelFolder
    adapter: Path | None
    device: torch.device
    precision: torch.dtype


def generate(
    model: str,
    adapter: str | None = None,
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
    batch_size: int | Literal["auto"] = "auto",
    stream: bool | None = None,
    device: str = "auto",
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    measure_peak: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """Generate text with a transformers model: a prompt, a file of prompts, or a conversation.

    Args:
        model: Model folder, or a hub's name (OWNER/NAME).
        adapter: PEFT adapter (folder or hub's name), merged into the model; null: none.
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
        batch_size: Prompts at once; auto: what fits into memory.
        stream: Show text while it is generated; null: for a single prompt on a terminal.
        device: auto, cpu, cuda or cuda:N.
        dtype: Precision; auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on CPUs.
        compile: CUDA graphs; auto: on a GPU when the run is long enough.
        measure_peak: Measure bandwidth and FLOP/s first, for MBU and MFU (seconds).
        trust_remote_code: Run Python code that the model brings along, with your rights.
    """
    settings = dict(locals())
    raise_all(option_faults(settings) + style_faults(prompt_style, chat, system))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from llm_recipes import device as devices
    from llm_recipes.model_folder import find_adapter, find_model

    asked = [] if chat else read_prompts(prompt, prompts)
    folder = find_model(model)
    adapter_folder = find_adapter(adapter) if adapter else None
    where = devices.choose_device(device)
    precision = devices.choose_dtype(dtype, where)
    devices.use_granted_cpus()
    plan = Plan(settings, folder, adapter_folder, where, precision)
    if chat:
        return hold_chat(plan)
    name = devices.device_name(where)
    job = Job("inference/generate", settings, made_with(plan), name, partial(session, plan))
    return answer_prompts(job, asked)


def hold_chat(plan: Plan) -> int:
    """A conversation at the terminal."""
    from llm_recipes.chat import converse

    loaded = load(plan)
    decoder = make_decoder(plan, loaded, [])
    style, system = plan.settings["prompt_style"], plan.settings["system"]
    return converse(decoder, loaded.tokenizer, style, system)


@contextlib.contextmanager
def session(plan: Plan, asked: Sequence[Prompt], missing: Sequence[Key]) -> Iterator[Session]:
    """The loaded model with the requests for the missing answers."""
    from llm_recipes.batching import complete_all
    from llm_recipes.device import memory_errors, peak_memory_bytes
    from llm_recipes.models import context_length, measure_size
    from llm_recipes.summary import Loading, describe, generation_metrics

    o = plan.settings
    peak = peak_of(plan)
    loaded = load(plan)
    context = context_length(loaded.model)
    style, system = o["prompt_style"], o["system"]
    requests = make_requests(asked, missing, loaded.tokenizer, style, system, context)
    decoder = make_decoder(plan, loaded, requests)
    with memory_errors("a first token was computed", LARGER):
        size = measure_size(loaded.model)
    loading = Loading(loaded.load_s, loaded.folder.bytes)
    limit = None if o["batch_size"] == "auto" else int(o["batch_size"])
    yield Session(
        requests,
        decoder,
        lambda: complete_all(decoder, requests, size, limit),
        lambda: generation_metrics(
            loading, size, decoder.work, peak, peak_memory_bytes(plan.device)
        ),
        lambda: describe_model(plan, loaded, size),
        describe,
    )


def made_with(plan: Plan) -> dict[str, Any]:
    """All that an answer depends on: a file of answers is continued only under the same."""
    from llm_recipes.device import dtype_name
    from llm_recipes.model_folder import folder_digest

    chosen = {k: v for k, v in plan.settings.items() if k not in FREE_TO_CHANGE}
    return {
        **chosen,
        "model": folder_digest(plan.folder.path),
        "adapter": None if plan.adapter is None else folder_digest(plan.adapter),
        "dtype": dtype_name(plan.precision),
    }


def peak_of(plan: Plan) -> Peak:
    """The device's limits, measured if asked for (before the model takes its memory)."""
    from llm_recipes.device import known_peak, measure_peak

    if plan.settings["measure_peak"]:
        return measure_peak(plan.device, plan.precision)
    return known_peak(plan.device)


def load(plan: Plan) -> LoadedModel:
    """The model and tokenizer on the device."""
    from llm_recipes.device import memory_errors
    from llm_recipes.models import load_model

    say(f"loading {plan.folder.path} ({plan.folder.bytes / 1e9:.3g} GB) on {plan.device}")
    trust = plan.settings["trust_remote_code"]
    with memory_errors("the model was loaded", LARGER):
        return load_model(plan.folder, plan.adapter, plan.device, plan.precision, trust)


def make_decoder(plan: Plan, loaded: LoadedModel, requests: Sequence[Request]) -> Decoder:
    """What completes batches, with the command line's limits and sampling; requests: if known."""
    from llm_recipes.batching import worth_compiling
    from llm_recipes.decoding import Decoder, DecodeSettings
    from llm_recipes.models import context_length, stop_token_ids
    from llm_recipes.running_batch import takes_ready_mask
    from llm_recipes.sampling import Sampling

    o = plan.settings
    rows = None if o["batch_size"] == "auto" else o["batch_size"]
    lengths = [len(request.token_ids) for request in requests]
    compiled = o["compile"] == "on" or (
        o["compile"] == "auto"
        and plan.device.type == "cuda"
        and worth_compiling(lengths, o["max_new_tokens"], rows)
    )
    if compiled and not takes_ready_mask(loaded.model.config, longest=1):
        say(f"--compile has no effect on {loaded.model.config.model_type} models")
    ends = stop_token_ids(loaded.model, loaded.tokenizer)
    settings = DecodeSettings(
        max_new_tokens=o["max_new_tokens"],
        sampling=Sampling(
            o["temperature"], o["top_p"], o["top_k"], o["repetition_penalty"], o["seed"]
        ),
        stop=tuple(o["stop"] or ()),
        stop_token_ids=frozenset() if o["ignore_eos"] else ends,
        context=context_length(loaded.model),
        compiled=compiled,
    )
    return Decoder(loaded.model, loaded.tokenizer, settings)


def describe_model(plan: Plan, loaded: LoadedModel, size: ModelSize) -> dict[str, Any]:
    """The run record's part about the model."""
    from llm_recipes.device import dtype_name
    from llm_recipes.model_folder import folder_digest

    return {
        "path": str(plan.folder.path),
        "adapter": None if plan.adapter is None else str(plan.adapter),
        "architecture": type(loaded.model).__name__,
        "parameters": size.parameters,
        "dtype": dtype_name(loaded.model.dtype),
        "digest": folder_digest(plan.folder.path),
    }


if __name__ == "__main__":
    run_recipe(generate)
