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

import os
from functools import partial
from pathlib import Path
from typing import Literal

from llm_recipes.answering import Job, answer_prompts
from llm_recipes.cli import run_recipe
from llm_recipes.errors import raise_all
from llm_recipes.generation_options import option_faults
from llm_recipes.prompts import read_prompts, style_faults
from llm_recipes.transformers_session import (
    Plan,
    inputs_of,
    is_repeatable,
    load,
    made_with,
    make_decoder,
    session,
)


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
    job = Job(
        "inference/generate",
        settings,
        made_with(plan),
        name,
        partial(session, plan),
        inputs_of(plan),
        is_repeatable(plan),
    )
    return answer_prompts(job, asked)


def hold_chat(plan: Plan) -> int:
    """A conversation at the terminal."""
    from llm_recipes.chat import converse

    loaded = load(plan)
    decoder = make_decoder(plan, loaded, [])
    style, system = plan.settings["prompt_style"], plan.settings["system"]
    return converse(decoder, loaded.tokenizer, style, system)


if __name__ == "__main__":
    run_recipe(generate)
