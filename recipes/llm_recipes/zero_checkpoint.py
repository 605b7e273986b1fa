"""Find the fp32 weights in a checkpoint that DeepSpeed's ZeRO wrote, without DeepSpeed.

    from llm_recipes.zero_checkpoint import zero_tensors
    tensors, processes = zero_tensors(Path("checkpoint-100/global_step100"))

What DeepSpeed's zero_to_fp32.py does, with bounded memory and without running the pickles' code.
Layout, from that script: ZeRO 1 and 2 lay the parameters of an optimizer group end to end and cut
that into one piece a process; ZeRO 3 cuts every parameter into one piece a process (the last is
padded), and lays those of a process end to end. Frozen parameters are in the model states.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.stored_weights import Extent, StoredTensor, cut_off, part, stored, torch_file

MODEL_STATES, OPTIMIZER_STATES = "*_model_states.pt", "*_optim_states.pt"
# Classes in DeepSpeed's pickles, and those of numpy's numbers in a scheduler's state: none is used.
INERT = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.utils.tensor_fragment.tensor_fragment",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType",
    "numpy.dtypes.UInt32DType",
)


# ZeroStageEnum's members, where a pickle names one instead of giving its number.
STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3, "max_stage": 3}


@dataclass(frozen=True)
class _Part:
    """What a process saved of the optimizer. groups: its pieces of the fp32 weights."""

    file: Path
    stage: int
    processes: int
    groups: tuple[StoredTensor, ...]
    paddings: Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class _States:
    """What a file of model states says. shapes: of each optimizer group's parameters, in order."""

    file: Path
    step: int | None
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    frozen_shapes: Mapping[str, tuple[int, ...]]
    frozen: Mapping[str, StoredTensor]
    buffers: Mapping[str, StoredTensor]
    shared: Mapping[str, str]


def zero_tensors(folder: Path) -> tuple[dict[str, StoredTensor], int]:
    """Every parameter (fp32 where it was trained) and buffer by name, and how many processes ran.

    Raises:
        LLMError, ExceptionGroup: All shards that are missing, damaged or of another run.
    """
    parts = [_read_part(path) for path in _ranked(folder, OPTIMIZER_STATES)]
    raise_all(_part_faults(folder, parts))
    stage, processes = parts[0].stage, parts[0].processes
    files = _ranked(folder, MODEL_STATES)
    wanted = processes if stage == 3 else 1
    if len(files) != wanted:
        raise LLMError(
            f"{folder} has {len(files)} of {wanted} files {MODEL_STATES}",
            f"ZeRO {stage} on {processes} processes writes {wanted}",
            "copy the folder again as a whole, or take an earlier checkpoint",
        )
    states = [_read_states(path) for path in files]
    raise_all(_state_faults(states))
    first = states[0]
    tensors = dict(first.buffers)
    try:
        if stage == 3:
            tensors |= _frozen_of_stage_3(states, processes)
            tensors |= _trained_of_stage_3(parts, first)
        else:
            tensors |= first.frozen
            tensors |= _trained_of_stage_2(parts, first)
    except (IndexError, KeyError) as error:
        why = f"the parameters' shapes and the shards' sizes do not fit: {error}"
        raise cut_off(parts[0].file, why) from error
    tensors |= {name: tensors[of] for name, of in first.shared.items() if of in tensors}
    return tensors, processes


def _ranked(folder: Path, pattern: str) -> list[Path]:
    """The files of a kind by the rank in their names; those of other model-parallel ranks too."""
    files = sorted(folder.glob(pattern), key=_rank)
    if not files:
        fix = "name a folder of DeepSpeed's such as global_step100, or the one that holds it"
        raise LLMError(f"{folder} has no files {pattern}", "a checkpoint cut short?", fix)
    parallel = [path.name for path in files if not re.search(r"mp_rank_0+_", path.name)]
    if parallel:
        why = f"it has {parallel[0]}: the model was split by tensors or stages too"
        raise LLMError(f"{folder} is no checkpoint of ZeRO alone", why)
    return files


def _rank(path: Path) -> int:
    found = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def _read_part(path: Path) -> _Part:
    contents = torch_file(path, INERT)
    try:
        state = contents["optimizer_state_dict"]
        stage, processes = _number(state["zero_stage"]), state["partition_count"]
        names = ("fp32_flat_groups",) if stage == 3 else ("single_partition_of_fp32_groups",)
        groups = next(state[name] for name in names)
        groups = [groups] if isinstance(groups, torch.Tensor) else groups
        processes = max(processes) if isinstance(processes, (list, tuple)) else processes
        paddings = state.get("param_alignment_paddings") if stage < 3 else None
        found = tuple(stored(group.flatten(), path) for group in groups)
        return _Part(path, stage, int(processes), found, paddings)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        what = f"{path} holds no optimizer state of ZeRO"
        raise LLMError(what, f"{type(error).__name__}: {error}") from error


def _number(value: Any) -> int:
    given = value.contents[-1] if hasattr(value, "contents") else value
    return STAGES[given] if isinstance(given, str) else int(given)


def _part_faults(folder: Path, parts: Sequence[_Part]) -> list[LLMError]:
    again = "copy the folder again as a whole, or take an earlier checkpoint"
    counts = {part.processes for part in parts}
    stages = {part.stage for part in parts}
    if len(counts) > 1 or len(stages) > 1:
        why = "; ".join(f"{p.file.name}: ZeRO {p.stage} on {p.processes}" for p in parts[:8])
        return [LLMError(f"{folder} mixes shards of several runs", why, again)]
    if stages - {1, 2, 3}:
        return [LLMError(f"{folder}: ZeRO {stages.pop()} is not known")]
    wanted, ranks = counts.pop(), [_rank(part.file) for part in parts]
    missing = sorted(set(range(wanted)) - set(ranks))
    extra = [part.file.name for part in parts if _rank(part.file) >= wanted]
    if missing:
        why = f"no *_optim_states.pt of rank {', '.join(map(str, missing[:16]))}"
        return [LLMError(f"{folder} lacks {len(missing)} of {wanted} shards", why, again)]
    if extra or len(ranks) != wanted:
        why = f"{wanted} processes wrote it, and {len(ranks)} shards are there"
        why += f": {', '.join(extra[:8])}" if extra else ""
        return [LLMError(f"{folder} mixes shards of several runs", why, again)]
    if len({len(part.groups) for part in parts}) > 1:
        return [LLMError(f"{folder} mixes shards of several runs", "other parameter groups", again)]
    return []


def _read_states(path: Path) -> _States:
    contents = torch_file(path, INERT)
    try:
        module, shapes = contents["module"], contents["param_shapes"]
        shapes = [shapes] if isinstance(shapes, Mapping) else shapes
        fragments = contents.get("frozen_param_fragments") or {}
        return _States(
            file=path,
            step=contents.get("global_steps"),
            shapes=tuple({n: tuple(map(int, s)) for n, s in group.items()} for group in shapes),
            frozen_shapes={
                n: tuple(map(int, s))
                for n, s in (contents.get("frozen_param_shapes") or {}).items()
            },
            frozen={n: stored(value, path) for n, value in fragments.items()},
            buffers={n: stored(module[n], path) for n in contents["buffer_names"]},
            shared=dict(contents.get("shared_params") or {}),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{path} holds no model state of ZeRO"
        raise LLMError(what, f"{type(error).__name__}: {error}") from error


def _state_faults(states: Sequence[_States]) -> list[LLMError]:
    steps = {state.step for state in states}
    shapes = {tuple(tuple(group.items()) for group in state.shapes) for state in states}
    if len(steps) == 1 and len(shapes) == 1:
        return []
    why = "; ".join(f"{state.file.name}: step {state.step}" for state in states[:8])
    return [LLMError(f"{states[0].file.parent} mixes shards of several runs", why)]


def _trained_of_stage_2(parts: Sequence[_Part], states: _States) -> dict[str, StoredTensor]:
    tensors = {}
    for index, shapes in enumerate(states.shapes):
        pieces = [part.groups[index] for part in parts]
        paddings = parts[0].paddings[index] if parts[0].paddings else [0] * len(shapes)
        at = 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            count = math.prod(shape)
            tensors[name] = StoredTensor(shape, pieces[0].dtype, part(pieces, at, count))
            at += count + padding
        # ZeRO pads a group to a multiple of twice the processes, and saves it without most of that.
        align = 2 * len(parts)
        total = sum(piece.count for piece in pieces)
        if math.ceil(at / align) != math.ceil(total / align):
            raise IndexError(f"{at} elements of parameters, {total} in the shards")
    return tensors


def _trained_of_stage_3(parts: Sequence[_Part], states: _States) -> dict[str, StoredTensor]:
    tensors = {}
    at = 0
    for name, shape in (item for group in states.shapes for item in group.items()):
        count = math.prod(shape)
        share = math.ceil(count / len(parts))
        extents: list[Extent] = []
        for rank, shard in enumerate(parts):
            own = max(0, min(share, count - rank * share))
            extents += part(shard.groups, at, own)
        tensors[name] = StoredTensor(shape, parts[0].groups[0].dtype, tuple(extents))
        at += share
    for shard in parts:
        total = sum(group.count for group in shard.groups)
        if total != at:
            raise IndexError(f"{at} elements a process of parameters, {total} in {shard.file.name}")
    return tensors


def _frozen_of_stage_3(states: Sequence[_States], processes: int) -> dict[str, StoredTensor]:
    tensors = {}
    for name, shape in states[0].frozen_shapes.items():
        count = math.prod(shape)
        share = math.ceil(count / processes)
        extents: list[Extent] = []
        for rank, state in enumerate(states):
            own = max(0, min(share, count - rank * share))
            extents += part([state.frozen[name]], 0, own)
        tensors[name] = StoredTensor(shape, states[0].frozen[name].dtype, tuple(extents))
    return tensors
