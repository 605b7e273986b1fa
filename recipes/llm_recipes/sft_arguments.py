"""Arguments of TRL's trainer for a strategy: DDP, FSDP2 through accelerate, DeepSpeed ZeRO.

    from llm_recipes.sft_arguments import trainer_arguments
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class StepPlan:
    """How a run is cut into steps. batch_size: sequences a process and micro step. accumulation:
    micro steps a step. steps: all of them. warmup: of these.
    """

    batch_size: int
    accumulation: int
    steps: int
    warmup: int


def trainer_arguments(
    settings: Mapping[str, Any],
    strategy: str,
    plan: StepPlan,
    device: torch.device,
    compute_dtype: str,
    checkpointing: bool,
    layer_classes: Sequence[str],
    has_held_out: bool,
) -> Any:
    """TRL's SFTConfig.

    Args:
        settings: The recipe's options by name.
        strategy: How the processes share the model: single, ddp, fsdp, zero2 or zero3.
        plan: Steps.
        device: Where it runs.
        compute_dtype: bf16, fp16 or fp32.
        checkpointing: Compute activations again in the backward pass.
        layer_classes: Class names of the model's layers, which FSDP2 gathers one at a time.
        has_held_out: Whether there is something to evaluate on.
    """
    from trl import SFTConfig

    mixed = not settings["pure_bf16"]
    evaluate_every = settings["evaluate_every"] if has_held_out else 0
    sharding: dict[str, Any] = {}
    if strategy == "fsdp":
        sharding = {"fsdp": True, "fsdp_config": fsdp_config(layer_classes, checkpointing)}
    elif strategy in ("zero2", "zero3"):
        sharding = {"deepspeed": deepspeed_config(int(strategy[-1]))}
    arguments = SFTConfig(
        output_dir=str(Path(settings["output"]) / "checkpoints"),
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        max_steps=plan.steps,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=SCHEDULES[settings["schedule"]],
        warmup_steps=plan.warmup,
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        optim="adamw_torch_fused",
        bf16=mixed and compute_dtype == "bf16",
        fp16=mixed and compute_dtype == "fp16",
        use_cpu=device.type == "cpu",
        seed=settings["seed"],
        # FSDP2 has its own way, without gathering a layer once more.
        gradient_checkpointing=checkpointing and strategy != "fsdp",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        eval_strategy="steps" if evaluate_every else "no",
        eval_steps=evaluate_every or None,
        save_strategy="steps",
        save_steps=settings["save_every"] or plan.steps,
        save_total_limit=None,  # checkpoints.py prunes, when a newer one is whole
        max_length=None,
        packing=False,
        padding_free=False,  # training_batches.py does both
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        accelerator_config={
            "even_batches": False,
            "use_seedable_sampler": False,
            # Without it FSDP2 keeps whole gradients on each process between micro steps.
            "gradient_accumulation_kwargs": {"sync_each_batch": strategy == "fsdp"},
        },
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device.type == "cuda",
        use_liger_kernel=bool(settings["liger"] == "on"),
        **sharding,
    )
    # One process uses one GPU: with more in sight the Trainer would split batches by threads.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def fsdp_config(layer_classes: Sequence[str], checkpointing: bool) -> dict[str, Any]:
    """FSDP2: everything is sharded, a layer at a time is gathered, shards are what is saved."""
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": list(layer_classes),
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": True,
        "activation_checkpointing": checkpointing,
    }


def deepspeed_config(stage: int) -> dict[str, Any]:
    """ZeRO-2 or ZeRO-3 with torch's optimizer; `auto` is filled in by transformers."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "steps_per_print": 10**9,
    }
