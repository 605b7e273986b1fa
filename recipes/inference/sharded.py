"""Generate text with a Llama in Meta's own format, one process for each of its shards.

    llm-run --torchrun --nproc-per-node=2 python recipes/inference/sharded.py --model FOLDER \\
        --prompt "I believe the meaning of life is"
    llm-run --torchrun --nproc-per-node=2 python recipes/inference/sharded.py --model FOLDER \\
        --prompts questions.jsonl --output answers.jsonl
    llm-run python recipes/inference/sharded.py --model FOLDER --plan

FOLDER holds params.json, consolidated.NN.pth and tokenizer.model, as Meta's download makes it.
Prompts: a text file (one a line), JSON Lines ({"id", "prompt"} or {"id", "messages"}), or `-` for
standard input. Answers: JSON Lines with id, sample, prompt, completion, prompt_tokens,
completion_tokens (the stop token counts), finish_reason (stop, length, or prompt_too_long with an
empty completion). The same command again continues a run that was interrupted.

The first process decides everything (prompts, sampling, stopping); the others do what it does, so
one seed is all there is, and their number changes no answer beyond rounding.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.answering import Job, answer_prompts
from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.generation_options import option_faults
from llm_recipes.prompts import read_prompts, style_faults

if TYPE_CHECKING:
    from llm_recipes.prompts import Prompt
    from llm_recipes.ranks import Ranks


def sharded(
    model: str,
    tokenizer: str | None = None,
    prompt: list[str] | None = None,
    prompts: str | None = None,
    chat: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    max_new_tokens: int = 256,
    max_seq_len: int | None = None,
    max_batch_size: int | Literal["auto"] = "auto",
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
    rope_factor: float | None = None,
    stream: bool | None = None,
    device: str = "auto",
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    plan: bool = False,
) -> int:
    """Generate text with a Llama in Meta's own format, one process for each of its shards.

    Args:
        model: Folder with params.json and consolidated.NN.pth.
        tokenizer: tokenizer.model; null: the one in the folder or its parent.
        prompt: A prompt; repeat the option for several.
        prompts: File of prompts: text (one a line), .jsonl, or - for standard input.
        chat: Hold a conversation at the terminal; under torchrun, Ctrl-C ends it.
        output: File for the answers (JSON Lines), resumable; null: standard output.
        overwrite: Start anew although the output is there.
        max_new_tokens: Tokens a completion at most.
        max_seq_len: Tokens of a prompt and its completion at most; a longer prompt gets an empty
            answer. null: the model's context (a chat: 4096 of it at most).
        max_batch_size: Prompts at once, for which the KV cache has room; auto: what fits into
            memory, up to 64 on CPUs and 256 on GPUs.
        temperature: 0 takes the likeliest token each time; 1 samples as the model says.
        top_p: Sample from the likeliest tokens that hold this share of the probability; 1 is off.
        top_k: Sample from so many likeliest tokens; 0 is off.
        repetition_penalty: Above 1 makes tokens that were there already less likely; 1 is off.
        seed: Of the sampling noise.
        samples: Completions a prompt.
        stop: Text that ends a completion and is cut off; repeat the option for several.
        ignore_eos: Go on after the model's end token, up to the limit (for measurements).
        prompt_style: raw text, a chat (Llama 2's or 3's template, by the tokenizer), or alpaca's
            instruction form; auto: a chat if the folder brings a template, else raw.
        system: System message for chats that have none.
        rope_factor: Factor of the scaled rotary frequencies, which params.json leaves out (Llama
            3.1: 8, 3.2: 32); null: from the folder's huggingface/config.json, or not needed.
        stream: Show text while it is generated; null: for a single prompt on a terminal.
        device: auto, cpu or cuda (each process takes its own GPU).
        dtype: Precision; auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on CPUs.
        plan: Show processes, memory and the command to type, and load nothing.
    """
    settings = dict(locals())
    if "RANK" not in os.environ:  # without torchrun, before imports that take seconds
        raise_all(faults(settings))
    from llm_recipes.meta.leaving import among_ranks

    return among_ranks(partial(run, settings), use_gpus=device != "cpu")


def run(settings: dict[str, Any], ranks: Ranks) -> int:
    """All that every process does."""
    from llm_recipes.device import device_name, is_repeatable
    from llm_recipes.meta.leaving import end_on_interrupt
    from llm_recipes.meta.lockstep import follow, leading
    from llm_recipes.meta.part import MetaPart, share_cpus
    from llm_recipes.meta.run_plan import inputs_of, made_with, make_plan
    from llm_recipes.meta.session import hold_chat, session
    from llm_recipes.meta.sharded_plan import describe_plan

    ranks.together(lambda: raise_all(faults(settings)))
    if settings["plan"]:
        ranks.first_does(lambda: print(describe_plan(settings)))
        return 0
    asked = ranks.together(lambda: prompts_of(settings) if ranks.is_first else [])
    plan = make_plan(settings, ranks)
    share_cpus()
    part = MetaPart(plan.shard, ranks)
    # Each command has room for so many tokens: no more than can be asked for.
    rows = ranks.from_first(min(plan.most_rows, max(1, len(asked) * settings["samples"])))
    if not ranks.is_first:
        return follow(ranks, part, rows)
    with leading(ranks, part, rows, shielded=plan.shard.device.type == "cuda") as leader:
        if settings["chat"]:
            end_on_interrupt(ranks)
            return hold_chat(plan, leader)
        start = partial(session, plan, leader)
        name = device_name(plan.shard.device)
        repeatable = is_repeatable(plan.shard.device, plan.shard.precision) and ranks.count == 1
        inputs = inputs_of(plan)
        job = Job("inference/sharded", settings, made_with(plan), name, start, inputs, repeatable)
        return answer_prompts(job, asked)


def faults(settings: Mapping[str, Any]) -> list[LLMError]:
    """Every option whose value cannot be meant, and options that exclude each other."""
    o = settings
    rows, tokens = o["max_batch_size"], o["max_seq_len"]
    known = {**o, "batch_size": "auto"}
    if o["plan"] and not any((o["prompt"], o["prompts"], o["chat"])):
        known["prompt"] = ["-"]  # a plan needs none
    found = option_faults(known) + style_faults(o["prompt_style"], o["chat"], o["system"])
    if rows != "auto" and rows < 1:
        found.append(LLMError(f"--max-batch-size {rows} is too small", fix="auto, or 1 or more"))
    if tokens is not None and tokens < 2:
        why = "a prompt and its answer have a token each at least"
        found.append(LLMError(f"--max-seq-len {tokens} is too small", why, "2 or more"))
    return found


def prompts_of(settings: Mapping[str, Any]) -> list[Prompt]:
    """The prompts; none for a conversation."""
    return [] if settings["chat"] else read_prompts(settings["prompt"], settings["prompts"])


if __name__ == "__main__":
    run_recipe(sharded)
