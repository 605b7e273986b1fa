"""Quantize a model with llama-quantize: several types, each a file that is whole or not there.

    from llm_recipes.gguf.quantizing import quantize_all

A file is written under a temporary name, read back, and named last; its record says what made it.
The same again makes only what is missing, damaged or cut off.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.files import write_fault
from llm_recipes.gguf.file import SHARD, GgufFile, read_gguf
from llm_recipes.gguf.quality_table import size_text
from llm_recipes.gguf.quant_prediction import Prediction, QuantSettings
from llm_recipes.gguf.quant_types import ALIASES, TYPES
from llm_recipes.gguf.watched_programs import Command, run_several
from llm_recipes.made_folder import existing_parent
from llm_recipes.record import read_record, record_path, write_record

RECIPE = "quantized/quantize"
# Rows of a tensor that are in memory at once; a slab's bytes do not depend on the others'.
BUFFER_MIB = 1024
MARGIN_BYTES = 16 * 2**20  # for records, tables and the file system's own
FEWER = "fewer --types, or another --output"
THERE, MISSING, DAMAGED = "there", "missing", "damaged"
TENSOR_DONE = re.compile(r"^\[ *\d+/ *\d+\] ", re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """A file to make. made_with: all that its content depends on, for its record."""

    path: Path
    prediction: Prediction
    made_with: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The type."""
        return self.prediction.kind.name

    @property
    def temporary(self) -> Path:
        """Where it is while it is written: the next run writes over what a kill left."""
        return self.path.with_name(f".{self.path.name}.partial")


def base_name(source: GgufFile) -> str:
    """A source's name without shards and type: `model-F16-00001-of-00002.gguf` is `model`."""
    named = SHARD.match(source.path.name)
    stem = named["stem"] if named else source.path.name.removesuffix(".gguf")
    types = "|".join(sorted([*TYPES, *ALIASES], key=len, reverse=True))
    return re.sub(rf"(.)[-._]({types})$", r"\1", stem, flags=re.IGNORECASE | re.DOTALL)


def settings_record(settings: QuantSettings) -> dict[str, Any]:
    """The part of a file's record that the settings are."""
    return {
        "embeddings": settings.embeddings,
        "output": settings.output,
        "pure": settings.pure,
    }


def state_of(target: Target, overwrite: bool) -> str:
    """Whether a file is there, missing, or cut off and to be made again.

    Raises:
        LLMError: If something else is there and is not to be overwritten.
    """
    if target.path.is_dir():
        raise LLMError(f"{target.path} is a folder", "a model's file would get its name")
    if not os.path.lexists(target.path):
        return MISSING
    record = read_record(record_path(target.path)) or {}
    made_with = record.get("made_with")
    if record.get("recipe") != RECIPE or not isinstance(made_with, dict):
        if overwrite:
            return MISSING
        why = "no record beside it says that this recipe made it"
        raise LLMError(f"{target.path} is there already", why, _other_place())
    if made_with != target.made_with:
        if overwrite:
            return MISSING
        differs = [
            f"{key} was {made_with.get(key)!r}, now {value!r}"
            for key, value in target.made_with.items()
            if made_with.get(key) != value
        ]
        what = f"{target.path} was made of another model or with other settings"
        raise LLMError(what, "; ".join(differs), _other_place())
    if _is_unchanged(target.path, record):
        return THERE
    if _is_cut_off(target.path):
        return DAMAGED
    if overwrite:
        return MISSING
    why = "it is whole, but has not the bytes that its record names: it may be somebody's work"
    raise LLMError(f"{target.path} was changed since it was made", why, _other_place())


def check_space(folder: Path, sizes: Mapping[str, int], fix: str = FEWER) -> None:
    """See that everything that is to be written finds its bytes, with all sizes.

    Args:
        folder: Where it is written; it need not exist.
        sizes: Bytes by what they are for.
        fix: What helps, besides space there.

    Raises:
        LLMError: If the file system has less left; quotas show only while writing.
    """
    needed = sum(sizes.values()) + MARGIN_BYTES
    there = existing_parent(folder)
    free = shutil.disk_usage(there).free
    if sizes and free < needed:
        parts = ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())
        why = f"{size_text(needed)} are needed ({parts}) and {size_text(free)} are free"
        raise LLMError(
            f"no space left to write into {folder}", why, f"free space in {there}, {fix}"
        )


def quantize_all(
    source: GgufFile,
    targets: Sequence[Target],
    settings: QuantSettings,
    matrix: Path | None,
    threads: int,
    jobs: int,
    start_record: Callable[[Target], dict[str, Any]],
    on_tensor: Callable[[Target], None],
    on_done: Callable[[Target, GgufFile], None],
) -> None:
    """Make the files, `jobs` at a time; those that are finished stay, whatever happens then.

    Args:
        source: The model.
        targets: What to make of it, all in one folder.
        settings: As they were predicted with.
        matrix: The importance matrix, in the same folder; for those of the types that use one.
        threads: Of each job.
        jobs: How many types at once.
        start_record: Makes the run record of a file.
        on_tensor: A tensor of a file is about to be written.
        on_done: A file is there.

    Raises:
        LLMError: If one cannot be written.
    """

    def text_of(number: int, text: str) -> None:
        for _ in TENSOR_DONE.findall(text):
            on_tensor(targets[number])

    def finish(number: int, _text: str) -> None:
        target = targets[number]
        on_done(target, _finish(target, start_record(target)))

    commands = [_command(source, target, settings, matrix, threads) for target in targets]
    try:
        run_several(commands, jobs, text_of, finish)
    except LLMError as fault:
        raise _with_cause(fault, targets) from fault
    finally:
        for target in targets:
            with contextlib.suppress(OSError):
                target.temporary.unlink(missing_ok=True)


def fallback_lines(predictions: Iterable[Prediction]) -> list[str]:
    """What there is to say of tensors that get another type, one line a quantization type."""
    lines = []
    for prediction in predictions:
        found = prediction.fallbacks
        kind = prediction.kind
        if kind.tensor_type not in prediction.tensors.values() and not found:
            got = ", ".join(sorted(set(prediction.tensors.values())))
            lines.append(f"{kind.name}: no tensor of this model gets {kind.tensor_type}, but {got}")
        if not found:
            continue
        groups: dict[tuple[str, str, int], list[str]] = {}
        for one in found:
            groups.setdefault((one.wanted, one.used, one.row), []).append(one.name)
        extra = sum(one.extra_bytes for one in found)
        parts = [
            f"{len(names)} with rows of {row} get {used} for {wanted} ({_some(names)})"
            for (wanted, used, row), names in groups.items()
        ]
        lines.append(
            f"{kind.name}: {len(found)} of {len(prediction.tensors)} tensors fall back"
            f" to another type, {_signed_size(extra)}: {'; '.join(parts)}"
        )
    return lines


def other_types(target: Target, made: GgufFile) -> list[str]:
    """Tensors whose type is not the predicted one, as sentences."""
    return [
        f"{tensor.name} is {tensor.type} and not {target.prediction.tensors.get(tensor.name)}"
        for tensor in made.tensors
        if target.prediction.tensors.get(tensor.name) != tensor.type
    ]


def _command(
    source: GgufFile, target: Target, settings: QuantSettings, matrix: Path | None, threads: int
) -> Command:
    arguments = ["llama-quantize", "--max-buffer-size", str(BUFFER_MIB)]
    if settings.requantize:
        arguments.append("--allow-requantize")
    if settings.pure:
        arguments.append("--pure")
    if settings.output is not None:
        arguments += ["--output-tensor-type", settings.output]
    if settings.embeddings is not None:
        arguments += ["--token-embedding-type", settings.embeddings]
    if matrix is not None and target.prediction.kind.uses_importance:
        # Its name gets into the file: without folders, the same command makes the same bytes.
        arguments += ["--imatrix", matrix.name]
    arguments += [str(source.path.absolute()), str(target.temporary.absolute())]
    return Command([*arguments, target.name, str(threads)], cwd=target.path.parent)


def _finish(target: Target, record: dict[str, Any]) -> GgufFile:
    """Read the file back, write its record, give it its name."""
    made = read_gguf(target.temporary)
    try:
        with open(target.temporary, "rb+") as file:
            os.fsync(file.fileno())
            digest = file_digest(file, "sha256").hexdigest()
        status = target.temporary.stat()
        record["made_with"] = dict(target.made_with)
        record["output_digest"] = digest
        record["results"] = {target.path.name: digest}
        record["model"] = {
            "path": str(target.path),
            "architecture": made.architecture,
            "parameters": made.parameters,
            "dtype": target.name,
            "digest": digest,
        }
        record["metrics"] |= {
            "bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "predicted_bytes": target.prediction.bytes,
            "bits_per_weight": made.bits_per_weight,
            "fallbacks": [one.name for one in target.prediction.fallbacks],
        }
        write_record(record_path(target.path), record, "complete")
        os.replace(target.temporary, target.path)
    except OSError as error:
        raise write_fault(target.path, error) from error
    return read_gguf(target.path)


def _is_unchanged(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a file is as it was made; its bytes are read only if it was touched since."""
    metrics = record.get("metrics") or {}
    try:
        status = path.stat()
        if status.st_size != metrics.get("bytes"):
            return False
        if status.st_mtime_ns == metrics.get("modified_ns"):
            return True
        with open(path, "rb") as file:
            return file_digest(file, "sha256").hexdigest() == record.get("output_digest")
    except OSError:
        return False


def _is_cut_off(path: Path) -> bool:
    """Whether a file is no whole GGUF any more."""
    try:
        read_gguf(path)
    except (LLMError, ExceptionGroup):
        return True
    return False


def _with_cause(fault: LLMError, targets: Sequence[Target]) -> LLMError:
    """A full disk is told as that: llama-quantize only says that writing failed."""
    if "iostream error" not in fault.why:
        return fault
    folder = targets[0].path.parent
    what = f"writing into {folder} failed"
    free = shutil.disk_usage(folder).free
    if free < max(target.prediction.bytes for target in targets):
        what = f"no space left to write into {folder}"
    why = f"{size_text(free)} are free; llama-quantize said: {fault.why}"
    fix = "free space there (df -h, quota) and give the same command again: what is done is kept"
    return LLMError(what, why, fix)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _signed_size(count: int) -> str:
    return f"{size_text(abs(count))} {'more' if count >= 0 else 'less'}"


def _other_place() -> str:
    return "--overwrite replaces it, or choose another --output"
