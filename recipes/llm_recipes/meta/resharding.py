"""Convert a Llama between Meta's format and Hugging Face's, and between numbers of shards.

from llm_recipes.meta.resharding import convert, describe, prepare
conversion = prepare(settings)
facts = convert(conversion, staging, print)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_recipes.device import DTYPES, dtype_name
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.meta.layout import EmbeddingSplit
from llm_recipes.meta.releases import context_of, releases_like
from llm_recipes.meta.reshard_files import params_to_write, write_hf_files, write_meta_files
from llm_recipes.meta.reshard_plan import (
    MetaShards,
    embedding_split,
    hf_tensors,
    meta_shards,
    option_faults,
    target_faults,
)
from llm_recipes.meta.reshard_source import FORMATS, Source, check_unchanged, read_source
from llm_recipes.meta.reshard_write import check_safetensors, check_shards, write_shards
from llm_recipes.meta.whole_tensors import WholeTensor
from llm_recipes.model_settings import has_tokenizer
from llm_recipes.safetensors_writer import (
    planned_files,
    size_in_bytes,
    target_dtype,
    write_safetensors,
    written_bytes,
)

PYTHON_BYTES = 0.35e9  # with torch
BLOCKS_BYTES = 0.35e9  # of 8 MB in three threads, whose allocators keep what they freed
UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3))


@dataclass(frozen=True)
class Conversion:
    """What is to be done. dtype: of the weights; None: as they are. chat: with a chat template.

    shards: of Meta's format, with `split` of their embeddings; tensors: of Hugging Face's, in
    files of shard_bytes, with `tied` and `context` for config.json. notes: what was assumed.
    """

    source: Source
    dtype: torch.dtype | None
    chat: bool
    split: EmbeddingSplit
    shards: MetaShards | None
    tensors: Mapping[str, WholeTensor]
    shard_bytes: int
    tied: bool
    context: int
    notes: tuple[str, ...]

    @property
    def precision(self) -> torch.dtype:
        """The type that most numbers will have."""
        return self.dtype or self.source.dtypes[0]

    @property
    def hf_files(self) -> dict[str, dict[str, WholeTensor]]:
        """Files of weights in Hugging Face's format, with their tensors."""
        return planned_files(self.tensors, self.dtype, self.shard_bytes)

    @property
    def files(self) -> dict[str, int]:
        """Bytes of weights by the names of the files to write."""
        if self.shards is not None:
            return self.shards.files
        return {n: written_bytes(tensors, self.dtype) for n, tensors in self.hf_files.items()}

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that will be read."""
        return sum(tensor.bytes_read for tensor in self.tensors.values())

    @property
    def bytes_written(self) -> int:
        """Bytes of weights that will be written."""
        return sum(self.files.values())


def prepare(settings: Mapping[str, Any]) -> Conversion:
    """Look through the model and plan its conversion; reads no weights but the norms.

    Args:
        settings: The options of reshard.py by name.

    Raises:
        LLMError, ExceptionGroup: Everything that is missing, damaged or does not fit.
    """
    faults, found = option_faults(settings), []
    faults += faults_of(lambda: size_in_bytes(settings["shard_size"]))
    tokenizer = settings["tokenizer"]
    faults += faults_of(
        lambda: found.append(
            read_source(
                settings["model"].expanduser(),
                None if tokenizer is None else tokenizer.expanduser(),
                settings["rope_factor"],
            )
        )
    )
    raise_all(faults)
    source, to, dtype = found[0], settings["to"], DTYPES.get(settings["dtype"])
    split = embedding_split(source, settings["embeddings"])
    degree = settings["model_parallel"] or 1
    faults = target_faults(source, to, degree, split, dtype)
    context, notes = _context(source, settings["context_length"])
    if to == "hf" and source.kind == "meta":
        faults += _hf_faults(source, context)
    else:
        faults += faults_of(lambda: params_to_write(source, lambda _: None))
    raise_all(faults)
    config = source.config
    # A model may hold one matrix twice: its own config.json says whether that is meant.
    tied = source.tied and (config is None or bool(config.get("tie_word_embeddings")))
    shards = meta_shards(source, degree, split, dtype) if to == "meta" else None
    return Conversion(
        source=source,
        dtype=dtype,
        chat=settings["chat"],
        split=split,
        shards=shards,
        tensors=hf_tensors(source, tied) if shards is None else shards.tensors,
        shard_bytes=size_in_bytes(settings["shard_size"]),
        tied=tied,
        context=context or 0,
        notes=(notes,) if notes and shards is None else (),
    )


def describe(conversion: Conversion, output: Path, free: int) -> str:
    """The plan as a few lines for people.

    Args:
        conversion: What is to be done.
        output: The folder to make.
        free: Bytes left on its disk.
    """
    source = conversion.source
    names = ", ".join(r.name for r in releases_like(source.params)) or "no release of Meta's"
    types = ", ".join(dtype_name(dtype) for dtype in source.dtypes)
    lines = [
        f"model     {source.folder}: {FORMATS[source.kind]}{_parts(source)}, {types};"
        f" the sizes of {names}",
        f"output    {output}: {_target(conversion)}",
        *(f"          {name}  {in_units(size)}" for name, size in conversion.files.items()),
        f"read      {in_units(conversion.bytes_read)}",
        f"write     {in_units(conversion.bytes_written)}; {in_units(free)} are free there",
        f"memory    about {in_units(PYTHON_BYTES + BLOCKS_BYTES)}, of which"
        f" {in_units(BLOCKS_BYTES)} are for blocks of the weights",
        *(f"note      {note}" for note in conversion.notes),
    ]
    return "\n".join(lines)


def convert(conversion: Conversion, output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the model into a folder that is there and empty, and see that it is all there.

    Args:
        conversion: What is to be done.
        output: Where to.
        say: Tells the user something.

    Returns:
        Facts for the run record: formats, shards, tensors, parameters, bytes, dtype.

    Raises:
        LLMError: If a file cannot be read or is replaced meanwhile, the weights do not fit into the
            type, or what was written is not found again.
        OSError: If the folder cannot be written or is full.
    """
    source, shards, dtype = conversion.source, conversion.shards, conversion.dtype
    for note in conversion.notes:
        say(note)
    say(
        f"{source.folder}: {FORMATS[source.kind]}{_parts(source)}, {len(source.tensors)} tensors;"
        f" to write: {_target(conversion)}, {in_units(conversion.bytes_written)}"
    )
    if shards is None:
        write_hf_files(
            source,
            output,
            tied=conversion.tied,
            context=conversion.context,
            dtype=conversion.precision,
            chat=conversion.chat,
            say=say,
        )
        written = write_safetensors(output, conversion.tensors, dtype, conversion.shard_bytes)
        not_finite = written.not_finite
        check_unchanged(source)
        check_safetensors(output, conversion.hf_files, dtype)
    else:
        write_meta_files(source, output, dtype=conversion.precision, say=say)
        not_finite = write_shards(output, shards, dtype)
        check_unchanged(source)
        check_shards(output, shards, source.params, conversion.split)
    if not_finite:
        shown = ", ".join(not_finite[:5])
        say(f"{len(not_finite)} tensors hold NaN or infinity ({shown}): a diverged run?")
    types = {target_dtype(tensor, dtype) for tensor in conversion.tensors.values()}
    return {
        "from": source.kind,
        "from_shards": source.degree if source.kind == "meta" else None,
        "to": "hf" if shards is None else "meta",
        "shards": None if shards is None else len(shards.headers),
        "embeddings": None if shards is None else conversion.split,
        "tensors": len(conversion.tensors),
        "parameters": sum(tensor.count for tensor in conversion.tensors.values()),
        "bytes": conversion.bytes_written,
        "dtype": ", ".join(sorted(map(dtype_name, types))),
        "not_finite": len(not_finite),
    }


def in_units(size: float) -> str:
    """Bytes for people: 13.5 GB."""
    unit, factor = next((u for u in UNITS if size >= u[1]), UNITS[-1])
    return f"{size / factor:.3g} {unit}"


def _context(source: Source, wanted: int | None) -> tuple[int | None, str]:
    """Tokens that the model was trained for, and what to say where they were assumed."""
    if wanted is not None:
        return wanted, ""
    if source.config is not None and source.config.get("max_position_embeddings"):
        return source.context, ""
    found, note = context_of(source.params)
    if found is None:
        return source.context, ""
    names = ", ".join(release.name for release in releases_like(source.params))
    said = note or f"{found} tokens of context, as {names}: --context-length says otherwise"
    return found, said if not note else f"{note}; {found} are taken (--context-length)"


def _hf_faults(source: Source, context: int | None) -> list[LLMError]:
    faults = []
    if context is None:
        what = f"nothing says for how many tokens {source.folder} was trained"
        why = "params.json doesn't, and no release of Meta's has these sizes"
        faults.append(LLMError(what, why, "--context-length 4096, for example"))
    settings = source.settings
    if source.tokenizer is None and (settings is None or not has_tokenizer(settings)):
        why = "there is no tokenizer.model in the folder or the one above it"
        fix = "--tokenizer FILE says where it is"
        faults.append(LLMError("the checkpoint has no tokenizer", why, fix))
    return faults


def _parts(source: Source) -> str:
    if source.kind == "hf":
        return ""
    return ", 1 shard" if source.degree == 1 else f", {source.degree} shards"


def _target(conversion: Conversion) -> str:
    kind = dtype_name(conversion.precision)
    if conversion.shards is None:
        count = len(conversion.hf_files)
        files = "1 file" if count == 1 else f"{count} files"
        return f"{FORMATS['hf']}, {files} of weights, {kind}"
    degree = len(conversion.shards.headers)
    if degree == 1:
        return f"{FORMATS['meta']}, 1 shard, {kind}"
    return f"{FORMATS['meta']}, {degree} shards, {kind}, embeddings by {conversion.split}"
