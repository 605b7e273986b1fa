"""A Llama to convert, in Meta's format or in Hugging Face's: checked, described, not loaded.

    from llm_recipes.meta.reshard_source import read_source
    source = read_source(Path("Llama-2-13b"), tokenizer=None, rope_factor=None)
    source.tensors["layers.0.attention.wq.weight"]

Tensors have Meta's names in both cases. Reads tables of contents, the norms, and a few KB of each
tensor for a digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch

from llm_recipes.architecture import name_faults, read_json
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.meta.checkpoint import (
    ORIGINAL,
    PARAMS,
    TOKENIZER,
    MetaCheckpoint,
    check_same_model,
    find_checkpoint,
    is_meta_folder,
    is_tied,
    read_shard,
    usual_split,
)
from llm_recipes.meta.layout import EMBEDDINGS, OUTPUT, EmbeddingSplit, hf_name, layout
from llm_recipes.meta.params import Params, params_of_config
from llm_recipes.meta.shard import DTYPES, shard_digest, shard_identity
from llm_recipes.meta.whole_tensors import Order, WholeTensor, same, sharded, single
from llm_recipes.model_folder import find_model, folder_digest, no_such_folder, readable
from llm_recipes.stored_weights import (
    OpenFiles,
    StoredTensor,
    stored_tensors,
)

CONFIG = "config.json"
# Old folders hold what follows from the sizes.
FREQUENCIES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
Stamp = tuple[int, int]  # bytes and time of change: not every file system keeps a file's number
FORMATS = {"meta": "Meta's format", "hf": "Hugging Face's format"}


@dataclass(frozen=True)
class Source:
    """A model that has been looked through.

    tensors: by Meta's names, in the order of its files; a tied model has no output. order: how
    the rows of queries and keys stand. files: those of its weights, with their stamps. degree:
    shards in Meta's format, 1 in Hugging Face's. embeddings: how its shards divide them; None: it
    has one. generation: how those of its kind do. raw: a params.json for it. tokenizer: a
    tokenizer.model. settings: the folder with config.json and Hugging Face's tokenizer, where
    there is one. context: tokens it was trained for, None if nothing says so.
    """

    kind: Literal["meta", "hf"]
    folder: Path
    params: Params
    tensors: Mapping[str, WholeTensor]
    order: Order
    files: Mapping[Path, Stamp]
    degree: int
    embeddings: EmbeddingSplit | None
    generation: EmbeddingSplit
    tied: bool
    raw: Path | None
    tokenizer: Path | None
    settings: Path | None
    context: int | None
    digest: str

    @property
    def output(self) -> WholeTensor:
        """The output head: of a tied model its embeddings."""
        return self.tensors.get(OUTPUT, self.tensors[EMBEDDINGS])

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Types of its tensors, the one with most numbers first."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.count
        return tuple(sorted(counts, key=lambda dtype: -counts[dtype]))

    @property
    def config(self) -> dict[str, Any] | None:
        """What its config.json says, if there is one."""
        if self.settings is None or not (self.settings / CONFIG).is_file():
            return None
        return read_json(self.settings / CONFIG)


def read_source(model: Path, tokenizer: Path | None, rope_factor: float | None) -> Source:
    """Look through a model: its files, that they fit together, and that it is a plain Llama.

    Args:
        model: Folder in Meta's format or in Hugging Face's, or a hub's name of such a one.
        tokenizer: tokenizer.model; None: in the folder or the one above it.
        rope_factor: Of the scaled rotary frequencies, which params.json lacks.

    Raises:
        LLMError, ExceptionGroup: Everything that is missing, damaged or does not fit.
    """
    with readable(model):
        if model.is_file():
            raise no_such_folder(str(model))
        if model.is_dir() and is_meta_folder(model) and not _has_hf_weights(model):
            return _meta_source(find_checkpoint(model, tokenizer, rope_factor))
        if model.is_dir() and not any(map(_is_model_file, model.iterdir())):
            raise _no_model(model)
        source = _hf_source(model)
    faults = []
    for option, value in (("--tokenizer", tokenizer), ("--rope-factor", rope_factor)):
        if value is not None:
            what = f"{option} is for checkpoints in Meta's format"
            faults.append(LLMError(what, f"{model} is a Hugging Face folder", "leave it out"))
    raise_all(faults)
    return source


def check_apart(source: Source, output: Path) -> None:
    """See that the folder to make, which is replaced as a whole, does not hold the model.

    Raises:
        LLMError: If it does.
    """
    folder = output.resolve()
    if any(path.resolve().is_relative_to(folder) for path in (source.folder, *source.files)):
        what = f"{output} holds the model that is to be read"
        raise LLMError(what, "the output replaces a folder as a whole", "choose another --output")


def check_unchanged(source: Source) -> None:
    """See that the files are still those that were looked through.

    Raises:
        LLMError: If another program has written or replaced one.
    """
    now = _stamps(source.files)
    changed = [str(path) for path in source.files if source.files[path] != now[path]]
    if changed:
        what = f"{source.folder} has changed while it was read"
        fix = "run it again when whatever writes there is done"
        raise LLMError(what, ", ".join(changed[:8]), fix)


def _stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    stamps = {}
    for path in paths:
        with readable(path):
            found = path.stat()
        stamps[path] = (found.st_size, found.st_mtime_ns)
    return stamps


def _is_model_file(path: Path) -> bool:
    """Whether a file says what is in a folder, be it another thing than a model to convert."""
    return path.name in (CONFIG, "adapter_config.json") or path.suffix == ".gguf"


def _no_model(folder: Path) -> LLMError:
    inner = sorted(
        path
        for path in folder.iterdir()
        if any((path / name).is_file() for name in (PARAMS, CONFIG))
    )
    fix = "name the folder that has one of them, and the weights"
    if inner:
        fix = "one of these? " + ", ".join(map(str, inner[:3]))
    return LLMError(f"{folder} holds no model", f"neither {PARAMS} nor {CONFIG} is in it", fix)


def _has_hf_weights(folder: Path) -> bool:
    """Whether a folder is Hugging Face's although a params.json lies in it, as some hub pages'."""
    names = {path.name for path in folder.iterdir()}
    return CONFIG in names and not any(fnmatch(name, "consolidated.*.pth") for name in names)


def _meta_source(checkpoint: MetaCheckpoint) -> Source:
    stamps = _stamps(checkpoint.shards)
    shards: list[dict[str, StoredTensor]] = []
    faults: list[LLMError] = []
    for index in range(checkpoint.degree):
        faults += faults_of(partial(_add_shard, shards, checkpoint, index))
    raise_all(faults)
    check_same_model(checkpoint, [shard_identity(shard) for shard in shards])
    tensors = sharded(shards, checkpoint.params, checkpoint.embeddings)
    tied = all(is_tied(shard) for shard in shards)
    if not tied and OUTPUT in tensors:
        with OpenFiles() as files:
            tied = same(tensors[EMBEDDINGS], replace(tensors[OUTPUT], name=EMBEDDINGS), files)
    if tied:
        tensors.pop(OUTPUT, None)
    found = sha256((checkpoint.folder / PARAMS).read_bytes())
    for shard, path in zip(shards, checkpoint.shards, strict=True):
        found.update(shard_digest(shard, path).encode())
    if checkpoint.tokenizer is not None:
        found.update(checkpoint.tokenizer.read_bytes())
    if checkpoint.sidecar is not None:
        found.update(folder_digest(checkpoint.sidecar).encode())
    return Source(
        kind="meta",
        folder=checkpoint.folder,
        params=checkpoint.params,
        tensors=tensors,
        order="pairs",
        files=stamps,
        degree=checkpoint.degree,
        embeddings=checkpoint.embeddings if checkpoint.degree > 1 else None,
        generation=checkpoint.embeddings,
        tied=tied,
        raw=checkpoint.folder / PARAMS,
        tokenizer=checkpoint.tokenizer,
        settings=checkpoint.sidecar,
        context=checkpoint.context,
        digest=found.hexdigest(),
    )


def _add_shard(
    shards: list[dict[str, StoredTensor]], checkpoint: MetaCheckpoint, index: int
) -> None:
    shards.append(read_shard(checkpoint, index))


def _hf_source(model: Path) -> Source:
    found = find_model(str(model))
    folder, path = found.path, found.path / CONFIG
    config = read_json(path)
    params = params_of_config(config, path)
    stamps = _stamps(found.weights)
    stored: dict[str, StoredTensor] = {}
    for file in found.weights:
        stored |= stored_tensors(file)
    stored = {name: t for name, t in stored.items() if not FREQUENCIES.fullmatch(name)}
    plan = layout(params, "rows")  # how they are split is no question of a whole tensor
    tied = bool(config.get("tie_word_embeddings"))
    head = hf_name(OUTPUT)
    if tied and head not in stored:
        del plan[OUTPUT]
    expected = {hf_name(name): tensor.shape for name, tensor in plan.items()}
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    what = f"the weights in {folder} are not those of the model in {path}"
    fix = "is it the model's own config.json? copy the folder again as a whole"
    faults = name_faults(shapes, expected, what, fix)
    quantized = {str(t.dtype) for t in stored.values() if t.dtype not in DTYPES}
    if quantized:
        what = f"{folder} holds quantized weights"
        kinds = ", ".join(sorted(quantized)).replace("torch.", "")
        faults.append(LLMError(what, f"tensors of type {kinds}", "take the model in 16 bits"))
    raise_all(faults)
    tensors = {name: single(tensor, stored[hf_name(name)]) for name, tensor in plan.items()}
    if tied and OUTPUT in tensors:
        _check_tied(tensors, path)
        del tensors[OUTPUT]
    tokenizer = _hf_tokenizer(folder)
    context = config.get("max_position_embeddings")
    raw = folder / ORIGINAL / PARAMS
    return Source(
        kind="hf",
        folder=folder,
        params=params,
        tensors=tensors,
        order="halves",
        files=stamps,
        degree=1,
        embeddings=None,
        generation=_generation(folder, tokenizer, params),
        tied=tied,
        raw=raw if raw.is_file() else None,
        tokenizer=tokenizer,
        settings=folder,
        context=context if type(context) is int else None,
        digest=folder_digest(folder),
    )


def _check_tied(tensors: Mapping[str, WholeTensor], config: Path) -> None:
    output = replace(tensors[OUTPUT], name=EMBEDDINGS)
    with OpenFiles() as files:
        if same(tensors[EMBEDDINGS], output, files):
            return
    names = f"{hf_name(OUTPUT)} and {hf_name(EMBEDDINGS)}"
    what = f"{names} differ, and the configuration says that they are one"
    fix = f'"tie_word_embeddings": false in {config} keeps both'
    raise LLMError(what, "they were not trained as one", fix)


def _hf_tokenizer(folder: Path) -> Path | None:
    places = (folder / TOKENIZER, folder / ORIGINAL / TOKENIZER)
    return next((path for path in places if path.is_file()), None)


def _generation(folder: Path, tokenizer: Path | None, params: Params) -> EmbeddingSplit:
    """How Meta splits the embeddings of such a model: by columns with SentencePiece."""
    if tokenizer is None and (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model")
        if isinstance(model, Mapping):
            # A SentencePiece model has pieces for bytes; a byte-level one needs none.
            return "columns" if model.get("byte_fallback") else "rows"
    return usual_split(params, tokenizer)
