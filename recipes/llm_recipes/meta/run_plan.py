"""A command line of sharded.py and its checkpoint, checked by all processes before any loads.

    plan = make_plan(settings, ranks)  # on every rank

settings: the options of sharded.py by name.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from llm_recipes.batch_memory import MOST_ROWS
from llm_recipes.device import choose_device, choose_dtype, dtype_name
from llm_recipes.errors import LLMError, leaves, raise_all
from llm_recipes.meta.checkpoint import (
    check_same_model,
    find_checkpoint,
    is_tied,
    read_shard,
    shard_digest,
    shard_identity,
)
from llm_recipes.meta.part import Shard
from llm_recipes.meta.processes import device_faults, process_faults
from llm_recipes.meta.sizes import Shape
from llm_recipes.model_folder import folder_digest
from llm_recipes.ranks import Ranks

# Settings that change no answer beyond rounding, or whose files are in the digest: a run may be
# continued with others.
FREE_TO_CHANGE = frozenset(
    {"model", "tokenizer", "prompt", "prompts", "chat", "output", "overwrite", "stream", "dtype"}
    | {"device", "max_batch_size", "rope_factor", "plan"}
)


@dataclass(frozen=True)
class Plan:
    """A checked command line: what runs where. settings: the options by name."""

    settings: Mapping[str, Any]
    shard: Shard
    ranks: Ranks
    digest: str

    @property
    def most_rows(self) -> int:
        """The most rows of a batch, however many are asked for."""
        wanted = self.settings["max_batch_size"]
        return MOST_ROWS[self.shard.device.type] if wanted == "auto" else int(wanted)


def make_plan(settings: Mapping[str, Any], ranks: Ranks) -> Plan:
    """Look at the checkpoint, each rank at its shard; no weights are loaded.

    Raises:
        LLMError, ExceptionGroup, SystemExit: On all ranks, if something is wrong on one of them.
    """
    shard = ranks.together(lambda: find_shard(settings, ranks))
    checkpoint = shard.checkpoint
    identities = ranks.of_all(shard_identity(shard.tensors))
    ranks.together(lambda: check_same_model(checkpoint, identities))
    path = checkpoint.shards[ranks.index]
    digests = ranks.of_all(shard_digest(shard.tensors, path))
    return Plan(settings, shard, ranks, _digest(shard, digests))


def find_shard(settings: Mapping[str, Any], ranks: Ranks) -> Shard:
    """This rank's shard and device.

    Raises:
        LLMError, ExceptionGroup: If the checkpoint is damaged, or the processes don't fit it.
    """
    with _on_its_node(ranks):
        tokenizer = settings["tokenizer"]
        checkpoint = find_checkpoint(
            Path(settings["model"]).expanduser(),
            None if tokenizer is None else Path(tokenizer).expanduser(),
            settings["rope_factor"],
        )
        raise_all(process_faults(checkpoint, ranks) + device_faults(settings["device"], ranks))
        device = choose_device(settings["device"])
        if device.type == "cuda" and ranks.count > 1:
            device = torch.device("cuda", ranks.local)
        precision = choose_dtype(settings["dtype"], device)
        tensors = read_shard(checkpoint, ranks.index)
    shape = Shape(
        checkpoint.params,
        checkpoint.embeddings,
        checkpoint.degree,
        is_tied(tensors),
        precision.itemsize,
    )
    return Shard(checkpoint, tensors, shape, device, precision)


def made_with(plan: Plan) -> dict[str, Any]:
    """All that an answer depends on: a file of answers is continued only under the same."""
    chosen = {k: v for k, v in plan.settings.items() if k not in FREE_TO_CHANGE}
    return {**chosen, "model": plan.digest, "dtype": dtype_name(plan.shard.precision)}


def inputs_of(plan: Plan) -> dict[str, list[Path]]:
    """What is read, by the run record's part: the shards with their settings, and the tokenizer."""
    checkpoint = plan.shard.checkpoint
    above = {path.parent for path in checkpoint.shards}
    tokenizer = checkpoint.tokenizer
    apart = [] if tokenizer is None or tokenizer.parent in above else [tokenizer]
    return {"model": [*sorted(above), *apart]}


def _digest(shard: Shard, shards: Sequence[str]) -> str:
    """SHA-256 over the weights' digests, the model's numbers and the tokenizer's files."""
    checkpoint = shard.checkpoint
    tokenizer = checkpoint.tokenizer
    parts = {
        "shards": list(shards),
        "params": asdict(checkpoint.params),
        "tokenizer": None if tokenizer is None else sha256(tokenizer.read_bytes()).hexdigest(),
        "sidecar": None if checkpoint.sidecar is None else folder_digest(checkpoint.sidecar),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _on_its_node(ranks: Ranks) -> Iterator[None]:
    """Say on which node something is wrong, where there are several."""
    try:
        yield
    except (LLMError, ExceptionGroup) as error:
        place = f"seen by process {ranks.index}, on node {os.uname().nodename}"
        faults = leaves(error) if isinstance(error, ExceptionGroup) else [error]
        for fault in faults if ranks.nodes > 1 else ():
            fault.why = f"{fault.why}; {place}" if fault.why else place
        raise
