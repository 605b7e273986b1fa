"""Fine-tune a causal language model: LoRA, QLoRA or all weights, on one CPU or on many GPUs.

    llm-run python recipes/finetune/sft.py --model FOLDER --data dolly.jsonl --output out/lora
    llm-run --torchrun recipes/finetune/sft.py --model FOLDER --data FILE --output out/full \\
        --method full
    llm-run --submit --requeue --gpus=1 --time=8:00:00 -- python recipes/finetune/sft.py ...

The same command goes on where a run was interrupted: by Ctrl-C, a time limit, a preemption, a dead
node. OUTPUT gets the adapter or the model, run.json, metrics.jsonl (a line a step), pictures,
checkpoints/ and tensorboard/. With --plan it says what it would do and how much memory that takes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.errors import faults_of, raise_all

if TYPE_CHECKING:
    from llm_recipes.examples import DataOptions
    from llm_recipes.prepared_data import PreparedData
    from llm_recipes.ranks import Ranks
    from llm_recipes.sft_job import Job
    from llm_recipes.strategy import Choice, Request


def finetune(
    model: str,
    data: str,
    output: Path,
    method: Literal["lora", "qlora", "full"] = "lora",
    strategy: Literal["auto", "single", "ddp", "fsdp", "zero2", "zero3"] = "auto",
    lora_rank: int = 16,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    target_modules: list[str] | None = None,
    format: Literal["auto", "dolly", "alpaca", "tatqa", "text", "messages", "columns"] = "auto",
    prompt_column: str | None = None,
    response_column: str | None = None,
    input_column: str | None = None,
    context_column: str | None = None,
    prompt_style: Literal["auto", "raw", "chat", "alpaca"] = "auto",
    system: str | None = None,
    max_length: int = 1024,
    held_out: float = 0.05,
    skip_bad: bool = False,
    learn_prompt: bool = False,
    epochs: float = 1.0,
    max_steps: int | None = None,
    global_batch: int = 32,
    batch_size: int | Literal["auto"] = "auto",
    learning_rate: float | None = None,
    schedule: Literal["cosine", "linear", "constant"] = "cosine",
    warmup: float = 0.03,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    packing: bool = False,
    checkpointing: bool | Literal["auto"] = "auto",
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    pure_bf16: bool = False,
    attention: Literal["auto", "varlen", "sdpa", "eager"] = "auto",
    liger: Literal["auto", "on", "off"] = "auto",
    device: str = "auto",
    evaluate_every: int = 0,
    patience: int = 0,
    save_every: int = 100,
    keep: int = 2,
    stop_before: int = 120,
    save_dtype: Literal["base", "bf16", "fp16", "fp32"] = "base",
    plan: bool = False,
    measure_peak: bool = False,
    measure_only: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """Fine-tune a causal language model: LoRA, QLoRA or all weights, on one CPU or on many GPUs.

    Args:
        model: Model folder, or a hub's name (OWNER/NAME).
        data: File of examples (JSON, JSON Lines, CSV, Parquet, text), or a hub's name.
        output: Folder for the adapter or model, its record, numbers and checkpoints.
        method: lora trains small matrices beside the model's, qlora does so with the model in 4
            bits, full trains all weights (16 bytes a parameter; fsdp and zero share them out).
        strategy: How several GPUs share the work: ddp (each holds all), fsdp or zero3 (each holds a
            part of everything), zero2 (a part of gradients and optimizer); auto says why.
        lora_rank: Width of the small matrices.
        lora_alpha: Their scale is alpha / rank; null: 2 x rank.
        lora_dropout: Share of their inputs left out while training; 0 is off.
        target_modules: Modules that get them; repeat the option; null: all linear but the head.
        format: Of the data; auto looks at it.
        prompt_column: Column with the prompt, for --format columns.
        response_column: Column with what is learned.
        input_column: Column with an input that belongs to the prompt; null: none.
        context_column: Examples alike in this column stay on one side of the split; null: any.
        prompt_style: raw text, the model's chat template, or alpaca's instruction form; auto: chat
            template if there is one, else alpaca for instructions and raw for text.
        system: System message for chats that have none.
        max_length: Tokens of an example at most; the rest is cut off.
        held_out: Share of the examples that is only evaluated on; 0: none.
        skip_bad: Leave out rows that can't be used, instead of stopping with their numbers.
        learn_prompt: Learn the prompt's tokens too, not only the response's.
        epochs: Times that each example is seen.
        max_steps: Optimizer steps; null: as the epochs say.
        global_batch: Sequences a step (packed rows with --packing) over all processes together.
        batch_size: Sequences at once on a process; auto: what fits into memory.
        learning_rate: At its highest; null: 2e-4 for lora and qlora, 2e-5 for full.
        schedule: How it falls after the warmup.
        warmup: Share of the steps in which it rises; 0 is off.
        weight_decay: Of AdamW; 0 is off.
        max_grad_norm: Longer gradients are shortened to this; 0 is off.
        seed: Of the order, of the split, and of new matrices.
        packing: Fill rows of --max-length tokens with several sequences.
        checkpointing: Compute activations again instead of keeping them; auto: if needed.
        dtype: Computing precision; auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on
            CPUs. Trained weights are fp32 in any case.
        pure_bf16: Keep trained weights and optimizer in bf16 too: half the memory, less exact.
        attention: auto: without padding and leaks where the model allows it, by device.
        liger: Fused kernels on GPUs; auto: if the image has them and the model is known to them.
        device: auto, cpu or cuda.
        evaluate_every: Steps between two looks at the held-out loss; 0: only at the end.
        patience: Evaluations without a better held-out loss until it stops, and the best checkpoint
            becomes the result; 0 is off.
        save_every: Steps between two checkpoints; 0: only at the end and when stopped.
        keep: Checkpoints that stay; 0: all.
        stop_before: Seconds before the job's time limit to save and leave; 0 is off.
        save_dtype: Precision of a fully tuned model's files; base: that of the base model's.
        plan: Print choices and predicted memory, and start nothing.
        measure_peak: Measure the device's FLOP/s first, for MFU (seconds).
        measure_only: Train and write numbers, but no checkpoint and no result.
        overwrite: Start anew although the output is there.
        trust_remote_code: Run Python code that the model brings along, with your rights.
    """
    settings = dict(locals())
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from llm_recipes.ranks import end_ranks, only_the_failed_speaks, start_ranks

    ranks = start_ranks(use_gpus=device != "cpu")
    try:
        with only_the_failed_speaks(ranks):
            job = ranks.together(lambda: check(settings, ranks))
            return run(job, ranks)
    finally:
        end_ranks()


def check(settings: dict[str, Any], ranks: Ranks) -> Job:
    """Everything that can be said before data and weights are read."""
    from llm_recipes import device as devices
    from llm_recipes.attention import choose_attention, register_varlen
    from llm_recipes.lora_targets import all_linear, check_targets
    from llm_recipes.model_folder import find_model
    from llm_recipes.run_folder import RunFolder
    from llm_recipes.sft_job import Job
    from llm_recipes.sft_model import meta_model
    from llm_recipes.sft_settings import DEFAULT_RATES, model_faults, setting_faults
    from llm_recipes.strategy import batch_faults, compatibility_faults

    settings = {**settings, "output": Path(settings["output"]).expanduser().resolve()}
    if settings["learning_rate"] is None:
        settings["learning_rate"] = DEFAULT_RATES[settings["method"]]
    faults = setting_faults(settings)
    faults += faults_of(lambda: find_model(settings["model"]))
    faults += faults_of(RunFolder(settings["output"]).own_record)
    faults += faults_of(lambda: devices.choose_device(settings["device"]))
    raise_all(faults)  # the others need to know model and device
    folder = find_model(settings["model"])
    where = devices.choose_device(settings["device"])
    if where.type == "cuda" and ranks.count > 1:
        where = devices.choose_device(f"cuda:{ranks.local}")
    if where.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no other
    earlier = {} if settings["overwrite"] else RunFolder(settings["output"]).chosen_before()
    dtype = settings["dtype"] if settings["dtype"] != "auto" else earlier.get("dtype", "auto")
    precision = devices.choose_dtype(dtype, where)
    config = json.loads((folder.path / "config.json").read_bytes())
    settings["liger"] = liger_choice(settings, config, where)
    devices.use_granted_cpus()
    register_varlen()
    faults = model_faults(settings, config, where.type)
    raise_all(faults + faults_of(lambda: data_options(settings)))
    chosen = choose_attention(str(config.get("model_type")), settings["attention"], where)
    empty = meta_model(folder.path, settings["trust_remote_code"])
    targets: list[str] = []
    if settings["method"] != "full":
        targets = settings["target_modules"] or all_linear(empty)
    layers = tuple(sorted(empty._no_split_modules or ()))
    name = devices.dtype_name(precision)
    job = Job(settings, folder, config, where, name, chosen, tuple(targets), layers)
    asked = request(job, ranks, settings["max_length"], device_bytes=0)
    faults = compatibility_faults(asked) + batch_faults(asked)
    if targets:
        faults += faults_of(lambda: check_targets(empty, targets))
    raise_all(faults)
    return job


def liger_choice(settings: Mapping[str, Any], config: Mapping[str, Any], where: Any) -> str:
    """on or off: `auto` takes the fused kernels where they are and know the model."""
    if settings["liger"] != "auto":
        return str(settings["liger"])
    if where.type != "cuda":
        return "off"
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN
    except ImportError:
        return "off"
    return "on" if config.get("model_type") in KNOWN else "off"


def run(job: Job, ranks: Ranks) -> int:
    """Prepare the data, choose how to share the work, train, and write the result."""
    import torch

    from llm_recipes.run_folder import RunFolder
    from llm_recipes.sft_model import load_tokenizer
    from llm_recipes.sft_records import made_with

    tokenizer = ranks.together(
        lambda: load_tokenizer(job.folder.path, job.settings["trust_remote_code"])
    )
    prepared = prepare_data(job, tokenizer, ranks)
    rows = prepared.train
    if job.settings["packing"]:
        from llm_recipes.training_batches import pack_rows

        rows = pack_rows(rows, job.settings["max_length"])
        ranks.say(f"packing: {len(prepared.train)} examples in {len(rows)} rows")
    if job.device.type == "cuda" and ranks.count == 1 and torch.cuda.device_count() > 1:
        ranks.say(f"one of {torch.cuda.device_count()} GPUs is used; llm-run --torchrun uses all")
    # The ranks see different numbers, and must choose the same.
    memory = int(ranks.least(memory_bytes(job, ranks)))
    if job.settings["strategy"] == "auto" and not job.settings["overwrite"]:
        # A requeue may land on other GPUs; what auto chose there must not lose what was done here.
        before = RunFolder(job.output).chosen_before().get("strategy", "auto")
        job = replace(job, settings={**job.settings, "strategy": kind_of_before(before, ranks)})
    choice = ranks.together(lambda: choose_plan(job, ranks, prepared, memory))
    for reason in choice.reasons:
        ranks.say(reason)
    if job.settings["plan"]:
        return 0
    folder = RunFolder(job.output)
    known = made_with(job, prepared)
    with contextlib.ExitStack() as stack:
        ranks.first_does(lambda: stack.enter_context(folder.locked()))
        ranks.check_shared(job.output)
        if ranks.first_decides(lambda: folder.is_complete(known, job.settings["overwrite"])):
            ranks.say(f"nothing to do: {job.output} is this run, finished")
            return 0
        from llm_recipes.sft_run import Examples, train

        return train(job, ranks, choice, Examples(tokenizer, prepared, rows), folder, known)


def kind_of_before(before: str, ranks: Ranks) -> str:
    """The strategy that goes on with a run's checkpoints; single and ddp are of one kind."""
    if before in ("single", "ddp"):
        return "single" if ranks.count == 1 else "ddp"
    return before


def data_options(settings: Mapping[str, Any]) -> DataOptions:
    """What decides the token ids of the data.

    Raises:
        LLMError, ExceptionGroup: Options that exclude each other.
    """
    from llm_recipes.examples import Columns, DataOptions, option_faults

    o = settings
    options = DataOptions(
        path=o["data"],
        format=o["format"],
        columns=Columns(
            o["prompt_column"], o["response_column"], o["input_column"], o["context_column"]
        ),
        prompt_style=o["prompt_style"],
        system=o["system"],
        max_length=o["max_length"],
        held_out=o["held_out"],
        split_seed=o["seed"],
        skip_bad=o["skip_bad"],
        learn_prompt=o["learn_prompt"],
    )
    raise_all(option_faults(options))
    return options


def prepare_data(job: Job, tokenizer: Any, ranks: Ranks) -> PreparedData:
    """Token ids of all examples: made by the first rank, found in the cache by the others."""
    from llm_recipes.prepared_data import cache_folder, prepare

    options = data_options(job.settings)

    def work(say: Callable[[str], None]) -> PreparedData:
        return prepare(options, tokenizer, job.folder.path, cache_folder(), say)

    ranks.first_does(lambda: work(ranks.say))
    return ranks.together(lambda: work(lambda text: None))


def memory_bytes(job: Job, ranks: Ranks) -> int:
    """What this process may take; on a GPU without what other programs have there."""
    import torch

    from llm_recipes.device import free_memory_bytes
    from llm_recipes.training_memory import CUDA_CONTEXT

    free = free_memory_bytes(job.device)
    if job.device.type == "cuda":  # the prediction counts the context, which is there by now
        total: int = torch.cuda.get_device_properties(job.device).total_memory
        return min(total, free + CUDA_CONTEXT)
    return free // (ranks.count // ranks.nodes)


def request(job: Job, ranks: Ranks, row_tokens: int, device_bytes: int) -> Request:
    """What strategy.py chooses from. row_tokens: tokens of a row at most."""
    from llm_recipes.strategy import Request

    o = job.settings
    return Request(
        device_bytes=device_bytes,
        method=o["method"],
        strategy=o["strategy"],
        processes=ranks.count,
        nodes=ranks.nodes,
        device=job.device.type,
        dtype=job.compute_dtype,
        pure_16bit=o["pure_bf16"],
        row_tokens=row_tokens,
        global_batch=o["global_batch"],
        batch_size=o["batch_size"],
        checkpointing=o["checkpointing"],
        packing=o["packing"],
        attention="varlen" if job.attention.packs else job.attention.name,
        head="fused" if job.device.type == "cuda" else "selected",
        liger=o["liger"] == "on",
        lora_rank=o["lora_rank"],
        lora_targets=job.targets or "all-linear",
    )


def choose_plan(job: Job, ranks: Ranks, prepared: PreparedData, device_bytes: int) -> Choice:
    """Strategy, batch size and checkpointing from predicted memory, with the reasons."""
    from llm_recipes.memory import ModelShape
    from llm_recipes.strategy import choose

    longest = job.settings["max_length"]
    if not job.settings["packing"]:
        longest = min(longest, prepared.facts["longest"])
    try:
        shape = ModelShape.from_config(job.config)
    except ValueError:  # a family that the memory model doesn't know
        shape = None
    return choose(shape, request(job, ranks, longest, device_bytes))


if __name__ == "__main__":
    run_recipe(finetune)
