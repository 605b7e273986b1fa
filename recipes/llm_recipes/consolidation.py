"""Make a Hugging Face folder out of a checkpoint that is spread over the processes of a run.

from llm_recipes.consolidation import consolidate
facts = consolidate(Path("runs/a"), staging, "bf16", 5_000_000_000, None, print)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from llm_recipes.adapters import (
    ADAPTER_CONFIG,
    adapter_name,
    base_of_adapter,
    recorded_base,
)
from llm_recipes.architecture import (
    Expected,
    Shape,
    expected_adapter,
    expected_model,
    name_faults,
    read_json,
)
from llm_recipes.checkpoints import COMPLETE, Checkpoint, find_checkpoint
from llm_recipes.device import DTYPES, dtype_name
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.fsdp_checkpoint import fsdp_tensors
from llm_recipes.made_folder import check_space
from llm_recipes.model_folder import WEIGHT_INDEXES
from llm_recipes.model_settings import copy_generation_settings, copy_tokenizer, write_config
from llm_recipes.safetensors_writer import write_safetensors, written_bytes
from llm_recipes.stored_weights import (
    OpenFiles,
    StoredTensor,
    cut_off,
    stored_tensors,
)
from llm_recipes.zero_checkpoint import zero_tensors

CONFIG = "config.json"
Dtype = Literal["keep", "fp32", "bf16", "fp16"]
Tensors = Mapping[str, StoredTensor]
WRAPPERS = frozenset({"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"})


@dataclass(frozen=True)
class Source:
    """A checkpoint that has been looked through. adapter: its settings' folder; None: a model."""

    checkpoint: Checkpoint
    tensors: Tensors
    processes: int
    adapter: Path | None
    config: Path | None
    renamed_on_disk: bool = False


def consolidate(
    checkpoint: Path,
    output_staging: Path,
    dtype: Dtype,
    shard_bytes: int,
    base: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the model or adapter of a checkpoint into a folder that is there and empty.

    Memory is bounded by blocks of 8 MB whatever the model; nothing but the CPU is used, and the
    packages the checkpoint was made with are not needed.

    Args:
        checkpoint: A run's output folder (its newest whole checkpoint is taken), or a checkpoint.
        output_staging: Where to write.
        dtype: Of floating point weights; keep: as they are, which is fp32 for ZeRO's masters.
        shard_bytes: Most bytes of a file of weights.
        base: Folder with config.json and tokenizer, for those that the checkpoint lacks.
        say: Tells the user something.

    Returns:
        Facts for the run record: kind, step, processes, adapter, tensors, parameters, bytes, dtype.

    Raises:
        LLMError, ExceptionGroup: Everything that is missing, damaged or does not fit.
    """
    source = read_source(checkpoint, base, say)
    return write_source(source, output_staging, dtype, shard_bytes, base, say)


def read_source(given: Path, base: Path | None, say: Callable[[str], None]) -> Source:
    """Find a checkpoint, and check its tensors against the architecture; reads no weights.

    Raises:
        LLMError, ExceptionGroup: Everything that is missing, damaged or does not fit.
    """
    checkpoint = find_checkpoint(given)
    if not (checkpoint.home / COMPLETE).is_file():
        say(f"{checkpoint.home} has no {COMPLETE}: whether it is whole shows by its shards alone")
    processes = 1
    if checkpoint.kind == "fsdp":
        tensors: Tensors = fsdp_tensors(checkpoint.weights)
        processes = len({e.file for t in tensors.values() for e in t.extents})
    elif checkpoint.kind == "zero":
        tensors, processes = zero_tensors(checkpoint.weights)
    else:
        tensors = _whole_tensors(checkpoint.weights)
    tensors = _without_wrappers(tensors)
    settings = checkpoint.find(ADAPTER_CONFIG)
    if settings and settings.parent != checkpoint.home and (checkpoint.home / CONFIG).is_file():
        settings = None  # a model in a folder where an earlier run has left an adapter
    if settings is None and any(".lora_" in name for name in tensors):
        what = f"{checkpoint.home} holds an adapter, but no {ADAPTER_CONFIG} is with it"
        fix = f"copy the run's {ADAPTER_CONFIG} into {checkpoint.home}"
        raise LLMError(what, "looked in " + ", ".join(map(str, checkpoint.settings)), fix)
    if settings is not None:
        return _adapter_source(checkpoint, tensors, processes, settings.parent, base, say)
    return _model_source(checkpoint, tensors, processes, base)


def write_source(
    source: Source,
    output: Path,
    dtype: Dtype,
    shard_bytes: int,
    base: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the checkpoint's weights, configuration and tokenizer; see `consolidate`."""
    target = DTYPES.get(dtype)
    needed = written_bytes(source.tensors, target)
    check_space(output, needed)
    checkpoint = source.checkpoint
    parts = {"whole": "", "fsdp": "FSDP", "zero": "DeepSpeed"}[checkpoint.kind]
    shards = f", from {parts} shards of {source.processes} processes" if parts else ""
    say(
        f"{'adapter' if source.adapter else 'model'} of {checkpoint.home}: {len(source.tensors)} "
        f"tensors, {needed / 1e9:.3g} GB{shards}"
    )
    name = "adapter_model" if source.adapter else "model"
    # PEFT reads one file only.
    limit = needed + 1 if source.adapter else shard_bytes
    written = write_safetensors(output, source.tensors, target, limit, name)
    precision = _dtype_of(source.tensors, target)
    folders = [*checkpoint.settings, *([base] if base else [])]
    if source.adapter:
        copy_adapter_settings(source.adapter, output)
    else:
        assert source.config is not None
        write_config(source.config, output, precision)
    tokenizer = copy_tokenizer(folders, output)
    if not source.adapter:
        copy_generation_settings(folders, output)
    if not tokenizer and not source.adapter:
        say(f"no tokenizer in {', '.join(map(str, folders))}: --base FOLDER brings one")
    if source.renamed_on_disk:
        say("other programs than transformers may want other names of this architecture's weights")
    if written.not_finite:
        shown = ", ".join(written.not_finite[:5])
        say(f"{len(written.not_finite)} tensors hold NaN or infinity ({shown}): a diverged run?")
    trained = recorded_base(found) if (found := checkpoint.find("run.json")) else None
    bases = dict(zip(("base", "base_digest"), trained, strict=True)) if trained else {}
    return {
        **bases,
        "kind": checkpoint.kind,
        "checkpoint": str(checkpoint.home),
        "step": checkpoint.step,
        "processes": source.processes,
        "adapter": source.adapter is not None,
        "tensors": len(source.tensors),
        "parameters": written.parameters,
        "bytes": written.bytes,
        "dtype": dtype_name(precision),
        "not_finite": len(written.not_finite),
    }


def _dtype_of(tensors: Tensors, target: torch.dtype | None) -> torch.dtype:
    if target is not None:
        return target
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.count
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def _whole_tensors(weights: Path) -> Tensors:
    if weights.name not in WEIGHT_INDEXES:
        return stored_tensors(weights)
    index = read_json(weights).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(f, str) for f in index.values()):
        raise cut_off(weights, "it has no weight_map")
    files = {name: weights.parent / name for name in sorted(set(index.values()))}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing or any(Path(name).name != name for name in files):
        what = f"{weights.parent} lacks {len(missing)} of {len(files)} files of weights"
        raise LLMError(what, ", ".join(missing[:8]), "copy the folder again as a whole")
    tensors: dict[str, StoredTensor] = {}
    for path in files.values():
        tensors |= stored_tensors(path)
    return tensors


def _without_wrappers(tensors: Tensors) -> Tensors:
    """Names without what FSDP, torch.compile, checkpointing and DDP put before or between them."""
    plain = {
        ".".join(word for word in name.split(".") if word not in WRAPPERS): tensor
        for name, tensor in tensors.items()
    }
    if plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items()}
    return plain


def _model_source(
    checkpoint: Checkpoint, tensors: Tensors, processes: int, base: Path | None
) -> Source:
    config = checkpoint.find("config.json")
    if config is None and base is not None:
        config = base / "config.json"
    if config is None or not config.is_file():
        why = "looked in " + ", ".join(map(str, [*checkpoint.settings, *([base] if base else [])]))
        fix = "--base MODEL: the folder of the model that was trained"
        raise LLMError(f"{checkpoint.home} has no config.json", why, fix)
    if tensors and all(name.startswith("base_model.model.") for name in tensors):
        tensors = {n.removeprefix("base_model.model."): t for n, t in tensors.items()}
    expected = expected_model(config.parent)
    in_memory = {disk: name for name, disk in expected.names_on_disk.items()}
    found = _one_of_tied({in_memory.get(n, n): t for n, t in tensors.items()}, expected)
    found = {n: t for n, t in found.items() if n not in expected.computed}
    what = f"the weights in {checkpoint.weights} are not those of the model in {config}"
    fix = "is it the checkpoint's own config.json? if the run has another base: --base MODEL"
    raise_all(name_faults(_shapes(found), expected.shapes, what, fix))
    ordered = {expected.names_on_disk.get(name, name): found[name] for name in expected.shapes}
    return Source(checkpoint, ordered, processes, None, config, expected.renamed_on_disk)


def _one_of_tied(tensors: Tensors, expected: Expected) -> Tensors:
    """Weights that the architecture has twice, once: under the name transformers saves."""
    found = dict(tensors)
    for name, of in expected.tied.items():
        if name not in found:
            continue
        if of in found and not _same(found[name], found[of]):
            what = f"{name} and {of} differ, and the configuration says that they are one"
            fix = '"tie_word_embeddings": false in config.json keeps both'
            raise LLMError(what, "the run did not keep them tied", fix)
        found.setdefault(of, found[name])
        del found[name]
    return found


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    if one.extents == other.extents:
        return True
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    with OpenFiles() as files:
        bytes_of_one, bytes_of_other = _bytes(files, one), _bytes(files, other)
        return all(a == b for a, b in zip(bytes_of_one, bytes_of_other, strict=True))


def _bytes(files: OpenFiles, tensor: StoredTensor, size: int = 1 << 20) -> Iterator[bytes]:
    """The tensor in pieces of one size, however it is cut on disk."""
    waiting = b""
    for block in files.blocks(tensor):
        waiting += block.view(torch.uint8).numpy().tobytes()
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    yield waiting


def _shapes(tensors: Tensors) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _adapter_source(
    checkpoint: Checkpoint,
    tensors: Tensors,
    processes: int,
    settings: Path,
    base: Path | None,
    say: Callable[[str], None],
) -> Source:
    found = {}
    for name, tensor in tensors.items():
        saved = adapter_name(name, tensors)
        if saved is not None:
            found[saved] = tensor
    model = base or base_of_adapter(settings)
    if not found:
        raise LLMError(f"{checkpoint.weights} holds no adapter", f"but {settings} has its settings")
    if model is None:
        say("the adapter's base is not here: its names and shapes stay unchecked (--base MODEL)")
        return Source(checkpoint, found, processes, settings, None)
    expected = expected_adapter(settings, model)
    what = f"the weights in {checkpoint.weights} are not those of an adapter of {model}"
    fix = f"is {settings / ADAPTER_CONFIG} the checkpoint's own? --base names another base"
    raise_all(name_faults(_shapes(found), expected, what, fix))
    return Source(checkpoint, {n: found[n] for n in expected}, processes, settings, None)


def copy_adapter_settings(folder: Path, output: Path) -> None:
    """Copy adapter_config.json with its modules in order: PEFT writes them as a set has them.

    Raises:
        OSError: If it can't be read or written.
    """
    text = (folder / ADAPTER_CONFIG).read_text(encoding="utf-8")
    settings = json.loads(text)
    modules = settings.get("target_modules")
    if isinstance(modules, list):
        settings["target_modules"] = sorted(modules, key=str)
        text = json.dumps(settings, indent=2, sort_keys=True)  # as PEFT does
    (output / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
