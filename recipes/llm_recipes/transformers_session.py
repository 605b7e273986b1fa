"""What a transformers model needs to answer prompts: from options to a session.

    plan = Plan(settings, find_model("FOLDER"), None, choose_device("auto"), torch.float32)
    Job("inference/generate", settings, made_with(plan), "CPU", partial(session, plan))

settings: the options of generate.py by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_recipes.answering import Session, make_requests
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


def inputs_of(plan: Plan) -> dict[str, Path | None]:
    """What is read, by the run record's part."""
    return {"model": plan.folder.path, "adapter": plan.adapter}


def is_repeatable(plan: Plan) -> bool:
    """Whether the same command gives the same bytes: on CPUs, in fp32."""
    from llm_recipes import device

    return device.is_repeatable(plan.device, plan.precision)


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
    from llm_recipes.models import describe_loaded

    digest = folder_digest(plan.folder.path)
    return describe_loaded(loaded, size, plan.adapter, dtype_name(loaded.model.dtype), digest)
