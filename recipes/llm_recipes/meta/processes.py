"""Whether as many processes run as a checkpoint has shards, and what to type if not.

from llm_recipes.meta.processes import device_faults, process_faults
"""

from __future__ import annotations

import shlex

from llm_recipes.errors import LLMError
from llm_recipes.meta.checkpoint import MetaCheckpoint
from llm_recipes.meta.layout import degree_faults
from llm_recipes.ranks import Ranks

SCRIPT = "recipes/inference/sharded.py"
RESHARD = "recipes/inference/reshard.py"


def process_faults(checkpoint: MetaCheckpoint, ranks: Ranks) -> list[LLMError]:
    """A fault with both ways out, if the number of processes is not the number of shards."""
    degree, count = checkpoint.degree, ranks.count
    if degree == count:
        return []
    shards = "1 shard" if degree == 1 else f"{degree} shards"
    started = "1 process was started" if count == 1 else f"{count} processes were started"
    ways = [start_command(checkpoint, ranks.nodes)]
    if not degree_faults(checkpoint.params, count, checkpoint.embeddings):
        folder = shlex.quote(str(checkpoint.folder))
        ways.append(
            f"or split it for {count}, once: llm-run python {RESHARD} --model {folder}"
            f" --output FOLDER"
            f" --to meta --model-parallel {count}"
        )
    return [
        LLMError(
            f"{checkpoint.folder} has {shards}, and {started}",
            "each process holds one shard",
            "\n".join(ways),
        )
    ]


def device_faults(device: str, ranks: Ranks) -> list[LLMError]:
    """A fault if a GPU is named by its number, and each process has one of its own."""
    if ranks.count == 1 or ":" not in device:
        return []
    what = f"--device {device} does not go with several processes"
    why = "each takes the GPU with its number on its node"
    return [LLMError(what, why, "--device cuda; CUDA_VISIBLE_DEVICES=2,3 says which it may take")]


def start_command(checkpoint: MetaCheckpoint, nodes: int = 1) -> str:
    """The command line that starts as many processes as there are shards."""
    degree = checkpoint.degree
    folder = shlex.quote(str(checkpoint.folder))
    recipe = f"python {SCRIPT} --model {folder} ..."
    if degree == 1:
        return f"llm-run {recipe}"
    if nodes > 1 and degree % nodes == 0:
        return f"on {nodes} nodes: llm-run --torchrun --nproc-per-node={degree // nodes} {recipe}"
    return f"llm-run --torchrun --nproc-per-node={degree} {recipe}"
