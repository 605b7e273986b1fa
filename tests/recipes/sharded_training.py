"""Train a few steps on two processes and leave sharded checkpoints of each kind, for the tests.

    torchrun --standalone --nproc-per-node 2 sharded_training.py BASE TIED OUTPUT

OUTPUT/NAME/checkpoints/checkpoint-2 is written by the libraries' own functions, those that
transformers' Trainer calls; OUTPUT/NAME/gathered.pt holds what the very same run has in memory.
One start makes all of them: starting takes longer than the training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

STEPS = 2
# A large eps: with a small one, gradients next to nothing make whole steps by their last digits.
ADAM = {"lr": 1e-2, "weight_decay": 0.0, "eps": 1e-5}
LORA = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}


def make_model(base: str, lora: bool) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(**LORA, modules_to_save=["lm_head"]))
    return model


def batches() -> list[torch.Tensor]:
    rows = torch.randint(3, 500, (STEPS, 2, 16), generator=torch.Generator().manual_seed(1))
    return [step[dist.get_rank()][None] for step in rows]


def settings(model: Any, checkpoint: Path) -> None:
    """What Trainer leaves beside the weights."""
    if dist.get_rank() == 0:
        checkpoint.mkdir(parents=True, exist_ok=True)
        if hasattr(model, "peft_config"):
            model.peft_config["default"].save_pretrained(checkpoint)
        else:
            model.config.save_pretrained(checkpoint)
        (checkpoint / "complete.json").write_text("{}")
    dist.barrier()


def keep_gathered(state: dict[str, torch.Tensor], output: Path) -> None:
    if dist.get_rank() == 0:
        torch.save({name: value.detach().clone() for name, value in state.items()}, output)
    dist.barrier()


def fsdp(base: str, output: Path, lora: bool) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin, save_fsdp_model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = make_model(base, lora)
    mesh = init_device_mesh("cpu", (2,))
    decoder = model.get_base_model().model if lora else model.model
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, **ADAM)
    for batch in batches():
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    process = SimpleNamespace(process_index=dist.get_rank(), num_processes=2)
    checkpoint = output / "checkpoints" / "checkpoint-2"
    settings(model, checkpoint)
    save_fsdp_model(plugin, process, model, str(checkpoint), adapter_only=True)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    keep_gathered(whole, output / "gathered.pt")


def zero(base: str, output: Path, lora: bool, stage: int, bf16: bool, frozen: bool) -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    model = make_model(base, lora)
    engine = deepspeed.initialize(
        model=model,
        model_parameters=[weight for weight in model.parameters() if weight.requires_grad],
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 1e9,  # without it, DeepSpeed clips at 1
            "bf16": {"enabled": bf16},
            "optimizer": {"type": "AdamW", "params": {**ADAM, "torch_adam": True}},
        },
    )[0]
    for batch in batches():
        engine.backward(engine(input_ids=batch, labels=batch).loss)
        engine.step()
    checkpoint = output / "checkpoints" / "checkpoint-2"
    settings(model, checkpoint)
    engine.save_checkpoint(str(checkpoint), exclude_frozen_parameters=lora and not frozen)
    gathered = {
        name: safe_get_full_fp32_param(weight)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    keep_gathered(gathered, output / "gathered.pt")


def main(base: str, tied: str, output: Path) -> None:
    from accelerate import PartialState

    dist.init_process_group("gloo")
    PartialState(cpu=True)  # accelerate's logger wants it
    fsdp(base, output / "fsdp", lora=False)
    fsdp(tied, output / "fsdp-tied", lora=False)
    fsdp(base, output / "fsdp-lora", lora=True)
    for stage in (2, 3):
        zero(base, output / f"zero{stage}", False, stage, bf16=False, frozen=True)
        zero(tied, output / f"zero{stage}-tied", False, stage, bf16=True, frozen=True)
        zero(base, output / f"zero{stage}-lora", True, stage, bf16=False, frozen=stage == 3)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    # As `_end_torchruns` of llm_recipes.cli does, and for its reason.
    os._exit(0)
