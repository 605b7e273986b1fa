"""Carry out a fine-tuning that is checked and planned: train, leave in time, write the result.

    from llm_recipes.sft_run import Examples, Job, train

recipes/finetune/sft.py tells the whole story.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llm_recipes.cli import INTERRUPTED
from llm_recipes.consolidation import Dtype
from llm_recipes.device import (
    current_host_bytes,
    device_name,
    known_peak,
    measure_peak,
    memory_errors,
)
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.metrics_log import MetricsLog, read_rows
from llm_recipes.prepared_data import PreparedData
from llm_recipes.ranks import Ranks
from llm_recipes.record import add_input, start_record
from llm_recipes.run_checkpoints import Checkpoint, checkpoint_folder, newest_checkpoint
from llm_recipes.run_folder import RunFolder, resume_faults
from llm_recipes.sft_arguments import StepPlan, trainer_arguments
from llm_recipes.sft_job import Job
from llm_recipes.sft_model import adapter_settings, load_for_training, train_in, weights_dtype
from llm_recipes.sft_records import (
    begin_record,
    describe_data,
    describe_model,
    describe_sharing,
    end_record,
)
from llm_recipes.sft_result import result_hashes, write_result
from llm_recipes.sft_trainer import FineTuner, Habits, RunState
from llm_recipes.stop_signals import UNFINISHED, declare_finished, declare_unfinished
from llm_recipes.stop_together import CTRL_C, REASONS, StopWatch
from llm_recipes.strategy import Choice
from llm_recipes.training_batches import Batches
from llm_recipes.training_numbers import work_of
from llm_recipes.training_order import steps_of
from llm_recipes.training_plots import write_plots

RECIPE = "finetune/sft"
LESS_MEMORY = (
    "a smaller --batch-size, --checkpointing true, a shorter --max-length, --method lora or\n"
    "qlora, or more GPUs with --strategy fsdp; --plan says what each needs"
)


@dataclass(frozen=True)
class Examples:
    """The prepared data; rows: what is trained on, packed or not."""

    tokenizer: Any
    prepared: PreparedData
    rows: Any


def train(
    job: Job,
    ranks: Ranks,
    choice: Choice,
    examples: Examples,
    folder: RunFolder,
    known: dict[str, Any],
) -> int:
    """Train from the newest checkpoint, or from the start; whatever ends it, it is recorded."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries about each other
    o = job.settings
    resume = find_resume(folder, choice, ranks, o["lora_dropout"])
    steps = o["max_steps"] or steps_of(len(examples.rows), o["epochs"], o["global_batch"])
    plan = StepPlan(choice.batch_size, choice.accumulation, steps, round(o["warmup"] * steps))
    # Nobody promises in which order several processes add up.
    repeatable = job.device.type == "cpu" and job.compute_dtype == "fp32" and ranks.count == 1
    record = start_record(RECIPE, o, device_name(job.device), deterministic=repeatable)
    add_input(record, "model", job.folder.path)
    add_input(record, "data", o["data"])
    record["made_with"] = known
    record["data"] = describe_data(job, examples.prepared, len(examples.rows))
    record["sharing"] = describe_sharing(choice, ranks, plan)
    status = "failed"
    watch = StopWatch(o["stop_before"])
    try:
        with contextlib.ExitStack() as stack:
            log = None
            if ranks.is_first:
                begin_record(folder, record)
                step = resume.step if resume else 0
                log = stack.enter_context(MetricsLog(folder.path, steps, step, board=True))
            record["sharing"]["host_bytes_before"] = current_host_bytes()
            tuner = make_tuner(job, ranks, choice, plan, examples, watch, log)
            record["model"] = describe_model(job, tuner)
            if resume is not None:
                tuner.run.resume(resume.facts)
            stack.enter_context(watch)
            # Or patience was at its end when it was killed, and only the result is missing.
            if not 0 < o["patience"] <= tuner.run.waited:
                with memory_errors("it was training", LESS_MEMORY):
                    tuner.train(resume_from_checkpoint=str(resume.folder) if resume else None)
                if tuner.stopped is None:
                    last_look(tuner, log)
        if tuner.stopped is not None and tuner.state.global_step < steps:
            status = "interrupted"
            return leave(tuner, ranks, folder, steps)
        leave_deepspeed()
        if tuner.stopped is not None:  # in the last step: the time may not be enough for the result
            declare_unfinished()
        ranks.first_does(lambda: finish(job, tuner, folder, record))
        declare_finished()
        status = "complete"
        return 0
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        if ranks.is_first and status != "complete":
            end_record(folder, record, status)


def find_resume(
    folder: RunFolder, choice: Choice, ranks: Ranks, dropout: float
) -> Checkpoint | None:
    """The checkpoint to go on from; says what was found.

    Raises:
        LLMError, SystemExit: If it can't be read with this strategy or number of processes.
    """

    def look() -> bool:
        found, partial = folder.resume_point()
        for path in partial:
            ranks.say(f"{path.name} was cut short while it was written: removed")
        if found is not None:
            ranks.say(f"going on after step {found.step}, from {found.folder}")
            raise_all(resume_faults(found, choice.strategy, ranks.count))
            if found.facts.get("processes") != ranks.count and dropout:
                ranks.say("note: another number of processes draws other dropout")
        return found is not None

    if not ranks.first_decides(look):
        return None
    return newest_checkpoint(folder.checkpoints)


def make_tuner(
    job: Job,
    ranks: Ranks,
    choice: Choice,
    plan: StepPlan,
    examples: Examples,
    watch: StopWatch,
    log: MetricsLog | None,
) -> FineTuner:
    """The model with its adapter, inside TRL's trainer."""
    o = job.settings
    held_out = examples.prepared.held_out if len(examples.prepared.held_out) else None
    dtype = weights_dtype(o["method"], job.compute_dtype, o["pure_bf16"], choice.strategy)
    measured = o["measure_peak"]
    peak = measure_peak(job.device, dtype) if measured else known_peak(job.device)
    arguments = trainer_arguments(
        o,
        choice.strategy,
        plan,
        job.device,
        job.compute_dtype,
        choice.checkpointing,
        job.layers,
        held_out is not None,
    )
    if choice.strategy.startswith("zero"):
        join_deepspeed(job.device)
    if choice.strategy == "fsdp":
        # Or each process of a node reads all weights into its own memory: the Trainer says this
        # only when the model is there.
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    ranks.say(f"loading {job.folder.path} ({job.folder.bytes / 1e9:.3g} GB)")
    with memory_errors("the model was loaded", LESS_MEMORY):
        model = load_for_training(
            job.folder,
            dtype,
            job.attention.name,
            o["method"] == "qlora",
            job.device,
            o["trust_remote_code"],
        )
        adapter = None
        if o["method"] != "full":
            adapter = adapter_settings(
                o["lora_rank"], o["lora_alpha"], o["lora_dropout"], job.targets
            )
        tuner = FineTuner(
            model=model,
            args=arguments,
            train_dataset=examples.rows.with_format("numpy"),
            eval_dataset=None if held_out is None else held_out.with_format("numpy"),
            processing_class=examples.tokenizer,
            peft_config=adapter,
            batches=Batches(job.attention.packs, examples.tokenizer.pad_token_id),
            ranks=ranks,
            watch=watch,
            habits=Habits(
                save=not o["measure_only"],
                keep=o["keep"],
                patience=o["patience"],
                peak_flops=peak.flops_per_s,
                write=log.write if log else lambda row: None,
                say=ranks.say,
            ),
            run=RunState(
                facts={
                    "strategy": choice.strategy,
                    "processes": ranks.count,
                    "method": o["method"],
                    "epochs": plan.steps * o["global_batch"] / len(examples.rows),
                }
            ),
            order_seed=o["seed"],
        )
    if not choice.strategy.startswith("zero"):
        train_in(tuner.model, torch.bfloat16 if o["pure_bf16"] else torch.float32)
    tuner.work = work_of(tuner.model)
    return tuner


def join_deepspeed(device: torch.device) -> None:
    """Tell DeepSpeed of the process group that is there; else it counts one process."""
    import deepspeed

    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def leave_deepspeed() -> None:
    """Let models be made whole again: under ZeRO-3 each new one is shared out among the ranks."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def last_look(tuner: FineTuner, log: MetricsLog | None) -> None:
    """The held-out loss of the end, if it has not been looked at after the last step."""
    if tuner.eval_dataset is None:
        return
    seen = {row["step"] for row in (log.rows if log else []) if "held_out_loss" in row}
    missing = tuner.ranks.add_up([float(log is not None and tuner.state.global_step not in seen)])
    if missing[0]:
        tuner.evaluate()


def finish(job: Job, tuner: FineTuner, folder: RunFolder, record: dict[str, Any]) -> None:
    """Write the result, from the best checkpoint with --patience, else from the last; on rank 0."""
    step = tuner.state.global_step
    if job.settings["patience"] and tuner.run.best_step is not None:
        step = tuner.run.best_step
    say = tuner.habits.say
    source = checkpoint_folder(folder.checkpoints, step)
    dtype: Dtype = "keep"  # an adapter's
    if job.settings["method"] == "full":
        asked = job.settings["save_dtype"]
        dtype = base_dtype(job.config) if asked == "base" else asked
    if not job.settings["measure_only"]:
        write_result(source, folder.path, dtype, job.folder.path, say)
        record["result"] = {"step": step, "dtype": dtype}
        record["results"] = result_hashes(folder.path)
    write_plots(read_rows(folder.path / "metrics.jsonl"), folder.path)
    fault = end_record(folder, record, "complete")
    if fault:
        raise LLMError(fault)
    numbers = record["metrics"]
    say(describe_run(numbers))
    if not job.settings["measure_only"]:
        what = "model" if job.settings["method"] == "full" else "adapter"
        say(f"{what} of step {step} in {folder.path}")


def base_dtype(config: Mapping[str, Any]) -> Dtype:
    """Our name of the precision that a model's config.json names; fp32 if it names none."""
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    names: dict[str, Dtype] = {"bfloat16": "bf16", "float16": "fp16"}
    return names.get(named, "fp32")


def describe_run(numbers: Mapping[str, Any]) -> str:
    """A run in a line."""
    parts = [f"{numbers['steps']} steps in {numbers['train_s']:.0f} s"]
    parts.append(f"loss {numbers['first_loss']:.3f} -> {numbers['last_loss']:.3f}")
    if numbers["held_out_loss"] is not None:
        parts.append(f"held out {numbers['held_out_loss']:.3f}")
    parts.append(f"{numbers['tokens_per_s']:.0f} tokens/s")
    return ", ".join(parts)


def leave(tuner: FineTuner, ranks: Ranks, folder: RunFolder, steps: int) -> int:
    """After a stop: say what is saved, and how it goes on."""
    done = tuner.state.global_step
    if not tuner.habits.save:
        ranks.say(f"{tuner.stopped}: left after step {done} of {steps}")
        return INTERRUPTED
    newest = newest_checkpoint(folder.checkpoints)  # not the last step if its loss was suspicious
    step = newest.step if newest else 0
    ranks.say(f"{tuner.stopped}: saved after step {step} of {steps}; the same command goes on")
    if tuner.stopped == REASONS[CTRL_C]:
        return INTERRUPTED
    declare_unfinished()
    # torchrun takes every other status for a crash of a rank; llm-run reads the file.
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return 0 if under_torchrun and os.environ.get("LLM_UNFINISHED_FILE") else UNFINISHED
