"""What was examples/finetuning.py in llama-recipes, for those who have no clone of it:

    llm-run --image llama-recipes --torchrun /opt/llama-recipes/finetuning.py --use_peft ...

On a machine with a GPU it is `python -m llama_recipes.finetuning` and nothing else. On one without,
where llama-recipes trains but can neither validate, save, quantize nor shard, what it sends to GPUs
goes to the CPU: enough to try a command on a small model before it waits in a queue.
"""

from __future__ import annotations

import atexit
import os
import sys
from functools import wraps
from typing import Any

import fire
import torch
from llama_recipes import finetuning


def use_the_cpu() -> None:
    """Replace the calls of llama-recipes 0.0.4 that name a GPU."""
    from llama_recipes.model_checkpointing import checkpoint_handler
    from torch.distributed import init_process_group
    from torch.distributed.fsdp import FullStateDictConfig
    from transformers.integrations import bitsandbytes

    to = torch.Tensor.to

    @wraps(to)
    def to_cpu(tensor: torch.Tensor, *where: Any, **options: Any) -> torch.Tensor:
        # Batches are sent to "cuda:0", with FSDP to the local rank, a number.
        if where and (type(where[0]) is int or str(where[0]).startswith("cuda")):
            where = ("cpu", *where[1:])
        return to(tensor, *where, **options)

    shard, options_of = finetuning.FSDP, checkpoint_handler.StateDictOptions
    torch.Tensor.to = to_cpu
    finetuning.setup = lambda: init_process_group("gloo")
    finetuning.FSDP = lambda model, **options: shard(
        model, **{**options, "device_id": torch.device("cpu")})
    # FSDP frees what it has moved to the CPU, which is there already.
    checkpoint_handler.StateDictOptions = lambda **options: options_of(
        **{**options, "cpu_offload": False})
    checkpoint_handler.fullstate_save_policy = FullStateDictConfig(rank0_only=True)
    # It admits no CPU; bitsandbytes has learned that since.
    bitsandbytes.validate_bnb_backend_availability = lambda raise_exception=False: True


def end_if_done() -> None:
    """End the process before Python tidies up, if the training has come to its end.

    A thread of gloo that lets go of a tensor meanwhile would abort it:
    https://github.com/pytorch/pytorch/pull/179291
    """
    if is_done:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    is_done = False
    if not torch.cuda.is_available():
        print("finetuning.py: no GPU here; what llama-recipes sends to GPUs goes to the CPU",
              file=sys.stderr)
        use_the_cpu()
        atexit.register(end_if_done)  # runs after those that come later
    fire.Fire(finetuning.main)
    is_done = True
