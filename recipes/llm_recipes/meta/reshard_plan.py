"""What a conversion will write: which part of which tensor goes into which file.

from llm_recipes.meta.reshard_plan import hf_tensors, meta_shards, option_faults
shards = meta_shards(source, degree=4, embeddings="rows", dtype=None)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from llm_recipes.errors import LLMError
from llm_recipes.meta.layout import (
    EMBEDDINGS,
    OUTPUT,
    EmbeddingSplit,
    Layout,
    degree_faults,
    hf_name,
    layout,
    shard_shape,
)
from llm_recipes.meta.params import Params
from llm_recipes.meta.reshard_source import Source
from llm_recipes.meta.shard_names import shard_name
from llm_recipes.meta.whole_tensors import Order, WholeTensor
from llm_recipes.safetensors_writer import target_dtype
from llm_recipes.torch_writer import Header


@dataclass(frozen=True)
class Window:
    """The part of a tensor in a shard: its first row, the row after its last, the columns alike."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    def cut(self, block: torch.Tensor, first: int) -> torch.Tensor | None:
        """What of a block [rows, columns], which begins at row `first`, belongs to the part."""
        begin = max(self.rows[0] - first, 0)
        end = min(self.rows[1] - first, block.shape[0])
        return block[begin:end, slice(*self.columns)] if begin < end else None


@dataclass(frozen=True)
class MetaShards:
    """Files consolidated.NN.pth.

    tensors: what is read, in the order of the files. windows: by name, for each file its part.
    headers: the tensors of each file. shared: names that are another's tensor in each.
    """

    tensors: Mapping[str, WholeTensor]
    windows: Mapping[str, tuple[Window, ...]]
    headers: tuple[Mapping[str, Header], ...]
    shared: Mapping[str, str]

    @property
    def files(self) -> dict[str, int]:
        """Bytes of weights by the files' names."""
        return {
            shard_name(rank): sum(header.bytes for header in headers.values())
            for rank, headers in enumerate(self.headers)
        }


def option_faults(settings: Mapping[str, Any]) -> list[LLMError]:
    """What is wrong with the options among themselves."""
    faults = []
    if settings["to"] == "meta":
        if settings["model_parallel"] is None:
            what = "--to meta needs the number of shards"
            why = "one for each process that will run the model"
            faults.append(LLMError(what, why, "--model-parallel 2, for example"))
        if settings["chat"]:
            what = "--chat is for --to hf"
            faults.append(LLMError(what, "Meta's format has no chat templates", "leave it out"))
        if settings["context_length"] is not None:
            what = "--context-length is for --to hf"
            why = "Meta's format doesn't state it: sharded.py has --max-seq-len"
            faults.append(LLMError(what, why, "leave it out"))
    else:
        if settings["model_parallel"] is not None:
            what = "--model-parallel is for --to meta"
            why = "a Hugging Face folder has whole tensors, in files of --shard-size"
            faults.append(LLMError(what, why, "leave it out"))
        if settings["embeddings"] != "auto":
            what = "--embeddings is for --to meta"
            why = "a Hugging Face folder has whole tensors"
            faults.append(LLMError(what, why, "leave it out"))
    for name in ("model_parallel", "context_length"):
        if settings[name] is not None and settings[name] < 1:
            option = name.replace("_", "-")
            faults.append(LLMError(f"--{option} {settings[name]} is below 1", fix="1 or more"))
    return faults


def target_faults(
    source: Source,
    to: Literal["hf", "meta"],
    degree: int,
    split: EmbeddingSplit,
    dtype: torch.dtype | None,
) -> list[LLMError]:
    """Why this model cannot be converted so, or need not be.

    Args:
        source: The model.
        to: The format to write.
        degree: Number of shards in Meta's format.
        split: How they divide the embeddings.
        dtype: Of the weights; None: as they are.
    """
    if to == "hf" and source.kind == "hf":
        why = "consolidate.py --dtype changes the type of its weights"
        fix = "--to meta --model-parallel N makes a checkpoint in Meta's format of it"
        return [LLMError(f"{source.folder} is in Hugging Face's format already", why, fix)]
    if to == "hf":
        return []
    faults = degree_faults(source.params, degree, split)
    as_it_is = dtype is None or source.dtypes == (dtype,)
    same_shards = degree == source.degree and split == (source.embeddings or split)
    if source.kind == "meta" and same_shards and as_it_is:
        what = f"{source.folder} has this number of shards already: {degree}"
        fix = "choose another --model-parallel or --dtype"
        faults.append(LLMError(what, "nothing would change", fix))
    return faults


def embedding_split(source: Source, wanted: Literal["auto", "rows", "columns"]) -> EmbeddingSplit:
    """How shards in Meta's format will divide the embeddings."""
    return (source.embeddings or source.generation) if wanted == "auto" else wanted


def hf_tensors(source: Source, tied: bool) -> dict[str, WholeTensor]:
    """The tensors of a Hugging Face folder by its names.

    Args:
        source: The model.
        tied: Its output head is left out, being the embeddings.
    """
    tensors = {name: _in_order(source, tensor, "halves") for name, tensor in source.tensors.items()}
    tensors.pop(OUTPUT, None)
    if not tied:
        tensors[OUTPUT] = source.output
    return {hf_name(name): tensor for name, tensor in tensors.items()}


def meta_shards(
    source: Source, degree: int, embeddings: EmbeddingSplit, dtype: torch.dtype | None
) -> MetaShards:
    """The shards of a checkpoint in Meta's format; the degree must be a possible one.

    Args:
        source: The model.
        degree: Number of shards.
        embeddings: How they are divided.
        dtype: Of the weights; None: as they are.
    """
    params, wanted = source.params, layout(source.params, embeddings)
    tensors = {name: _in_order(source, tensor, "pairs") for name, tensor in source.tensors.items()}
    shared = {}
    if OUTPUT not in tensors:
        if embeddings == "rows" or degree == 1:
            shared[OUTPUT] = EMBEDDINGS
        else:
            tensors[OUTPUT] = source.output
    tensors = {name: tensors[name] for name in wanted if name in tensors}
    headers = {
        name: Header(shard_shape(wanted[name], params, degree), target_dtype(tensor, dtype))
        for name, tensor in tensors.items()
    }
    windows = {
        name: tuple(_window(wanted[name], params, degree, rank) for rank in range(degree))
        for name in tensors
    }
    return MetaShards(tensors, windows, (headers,) * degree, shared)


def _in_order(source: Source, tensor: WholeTensor, order: Order) -> WholeTensor:
    rotated = tensor.heads is not None and source.order != order
    return replace(tensor, order=order) if rotated else tensor


def _window(tensor: Layout, params: Params, degree: int, rank: int) -> Window:
    rows, columns = tensor.shape[0], tensor.shape[1] if len(tensor.shape) > 1 else 1
    if tensor.split == "whole":
        return Window((0, rows), (0, columns))
    if tensor.split == "columns":
        share = columns // degree
        return Window((0, rows), (rank * share, rank * share + share))
    parts = min(degree, params.kv_heads) if tensor.shared_by_kv else degree
    share, place = rows // parts, rank * parts // degree
    return Window((place * share, place * share + share), (0, columns))
