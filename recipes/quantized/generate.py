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

from functools import partial
from pathlib import Path
from typing import Literal

from llm_recipes.answering import Job, answer_prompts
from llm_recipes.cli import run_recipe
from llm_recipes.errors import raise_all
from llm_recipes.generation_options import option_faults
from llm_recipes.gguf.session import (
    Plan,
    decode_settings,
    device_names,
    inputs_of,
    is_repeatable,
    made_with,
    open_options,
    session,
)
from llm_recipes.prompts import read_prompts, style_faults

CHAT_TOKENS = 8192  # room for a conversation, where the model has been trained for more


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
    device = device_names(gpu_layers)
    job = Job(
        "quantized/generate",
        settings,
        made_with(plan),
        device,
        partial(session, plan),
        inputs_of(plan),
        is_repeatable(plan),
    )
    return answer_prompts(job, asked)


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


if __name__ == "__main__":
    run_recipe(generate)
