"""A Llama checkpoint in Meta's format: its folder, checked, without loading a weight.

    from llm_recipes.meta.checkpoint import find_checkpoint, read_shard
    checkpoint = find_checkpoint(Path("Llama-2-13B"))
    tensors = read_shard(checkpoint, index=0)

What the files themselves say is believed, and what two of them say has to agree: the number of
shards follows from the shapes in the first one, as does what params.json leaves open.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_recipes.architecture import name_faults, read_json
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.meta.layout import OUTPUT, EmbeddingSplit, degree_faults, layout, shard_shape
from llm_recipes.meta.params import LLAMA_3_FROM, Params, params_of, params_of_config, read_params
from llm_recipes.meta.releases import context_of
from llm_recipes.meta.shard import is_tied, shard_contents, shard_digest, shard_identity, weights_of
from llm_recipes.meta.shard_names import (
    AGAIN,
    ORIGINAL,
    PARAMS,
    checkpoint_folder,
    has_shards,
    names_in,
    shard_faults,
    shard_name,
    shard_names,
)
from llm_recipes.meta.shard_sizes import ShardSizes, shard_sizes
from llm_recipes.meta.tokenizer_files import tokenizer_kind, vocabulary_size
from llm_recipes.model_folder import readable
from llm_recipes.stored_weights import StoredTensor

__all__ = [
    "ORIGINAL",
    "PARAMS",
    "SIDECAR",
    "MetaCheckpoint",
    "check_same_model",
    "find_checkpoint",
    "is_meta_folder",
    "is_tied",
    "read_shard",
    "shard_digest",
    "shard_identity",
]
SIDECAR = "huggingface"  # folder in a checkpoint's: what Hugging Face has and Meta's files lack
TOKENIZER = "tokenizer.model"
Value = TypeVar("Value")


@dataclass(frozen=True)
class MetaCheckpoint:
    """A checkpoint on disk.

    folder: where params.json and the shards are. raw: what params.json says. embeddings: how the
    shards divide them. tokenizer: tokenizer.model, if there is one. sidecar: a folder with
    Hugging Face's files for this model, which may hold more than those, weights too. context:
    tokens the model was trained for, None if nothing says so.
    """

    folder: Path
    raw: Mapping[str, Any]
    params: Params
    shards: tuple[Path, ...]
    embeddings: EmbeddingSplit
    tokenizer: Path | None
    sidecar: Path | None
    context: int | None

    @property
    def degree(self) -> int:
        """Shards, and processes that run the model together."""
        return len(self.shards)


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in Meta's format, be it incomplete.

    A Hugging Face folder with Meta's files in its `original` is one only if it has no weights of
    its own kind.

    Raises:
        LLMError: If there is no such folder, or it cannot be read.
    """
    with readable(folder):
        names = names_in(folder.expanduser())
        if PARAMS in names or shard_names(names):
            return True
        return "config.json" not in names and has_shards(folder.expanduser() / ORIGINAL)


def find_checkpoint(
    folder: Path, tokenizer: Path | None = None, rope_factor: float | None = None
) -> MetaCheckpoint:
    """A checkpoint's parts, checked as far as its first shard's table of contents tells.

    Args:
        folder: With params.json and consolidated.NN.pth; or one whose `original` has them.
        tokenizer: tokenizer.model; None: in the folder or the one above it, if there.
        rope_factor: Of scaled rotary frequencies, which params.json lacks; None: the sidecar's.

    Raises:
        LLMError, ExceptionGroup: Everything that is missing or does not fit together.
    """
    with readable(folder):
        return _found(checkpoint_folder(folder.expanduser()), tokenizer, rope_factor)


def read_shard(checkpoint: MetaCheckpoint, index: int) -> dict[str, StoredTensor]:
    """One shard's tensors by name, without rope.freqs; output.weight may be absent (tied).

    Raises:
        LLMError: If it is damaged, refused, or does not hold what params.json describes.
    """
    path = checkpoint.shards[index]
    tensors = weights_of(shard_contents(path))
    _check_tensors(checkpoint, path, tensors)
    return tensors


def check_same_model(checkpoint: MetaCheckpoint, identities: Sequence[str]) -> None:
    """See that all shards belong to one model.

    Args:
        checkpoint: The checkpoint.
        identities: `shard_identity` of each shard, in their order.

    Raises:
        LLMError: With the shards that belong to another.
    """
    counts = Counter(identities).most_common()
    if len(counts) < 2:
        return
    names = [path.name for path in checkpoint.shards]
    groups = {
        digest: [n for n, d in zip(names, identities, strict=True) if d == digest]
        for digest, _ in counts
    }
    if counts[0][1] > counts[1][1]:
        odd = [name for digest, _ in counts[1:] for name in groups[digest]]
        why = f"{', '.join(odd)}: other norms or types than the other {counts[0][1]}"
    else:
        why = "\n".join(f"one model: {', '.join(group)}" for group in groups.values())
    what = f"{checkpoint.folder} mixes shards of different models"
    raise LLMError(what, why, AGAIN)


def _found(folder: Path, tokenizer: Path | None, rope_factor: float | None) -> MetaCheckpoint:
    faults: list[LLMError] = []
    raw = _attempt(faults, lambda: read_params(folder / PARAMS))
    found = _attempt(faults, lambda: _tokenizer(folder, tokenizer))
    names = names_in(folder)
    shards = shard_names(names)
    sizes, first = None, _attempt(faults, lambda: _first(folder, shards))
    if first is not None:
        sizes, tensors = first
    sidecar = _sidecar(folder)
    faults += shard_faults(folder, names, shards, raw, sizes)
    raise_all(faults)
    assert raw is not None and sizes is not None and found is not None
    checkpoint = _checkpoint(folder, raw, sizes, found[0], sidecar, rope_factor)
    _check_tensors(checkpoint, checkpoint.shards[0], tensors)
    return checkpoint


def _attempt(faults: list[LLMError], work: Callable[[], Value]) -> Value | None:
    """What `work` returns; None if it raises faults, which are kept."""
    found: list[Value] = []
    faults += faults_of(lambda: found.append(work()))
    return found[0] if found else None


def _tokenizer(folder: Path, given: Path | None) -> tuple[Path | None]:
    """tokenizer.model in a tuple of one, so that none is told from a fault."""
    if given is not None:
        given = given.expanduser()
        path = given / TOKENIZER if given.is_dir() else given
        if not path.is_file():
            raise LLMError(f"there is no tokenizer {path}", "", "--tokenizer takes tokenizer.model")
        tokenizer_kind(path)
        return (path,)
    for place in (folder, *(path.parent for path in _whole_paths(folder))):
        if (place / TOKENIZER).is_file():
            tokenizer_kind(place / TOKENIZER)
            return (place / TOKENIZER,)
    return (None,)


def _first(
    folder: Path, shards: Sequence[str]
) -> tuple[ShardSizes, dict[str, StoredTensor]] | None:
    """What follows from the first shard that is there, and its weights."""
    if not shards:
        return None
    path = folder / shards[0]
    tensors = shard_contents(path)
    sizes = shard_sizes(tensors)
    if isinstance(sizes, ShardSizes):
        return sizes, weights_of(tensors)
    if any(name.startswith("model.layers.") for name in tensors):
        sizes.append("its names are Hugging Face's: a file renamed is not converted")
    raise LLMError(f"{path} is no shard of a Llama", "\n".join(sizes), AGAIN)


def _sidecar(folder: Path) -> Path | None:
    if (folder / SIDECAR).is_dir():
        return folder / SIDECAR
    for path in _whole_paths(folder):
        if path.name == ORIGINAL and (path.parent / "config.json").is_file():
            return path.parent
    return None


def _whole_paths(folder: Path) -> tuple[Path, Path]:
    """The folder as it is named and as links lead to it: `.` and a link hide what is above."""
    return Path(os.path.abspath(folder)), folder.resolve()


def _config(sidecar: Path | None) -> Mapping[str, Any] | None:
    if sidecar is None or not (sidecar / "config.json").is_file():
        return None
    return read_json(sidecar / "config.json")


def _checkpoint(
    folder: Path,
    raw: Mapping[str, Any],
    sizes: ShardSizes,
    tokenizer: Path | None,
    sidecar: Path | None,
    rope_factor: float | None,
) -> MetaCheckpoint:
    config, theirs, context = _config(sidecar), None, None
    if sidecar is not None and config is not None:
        theirs = params_of_config(config, sidecar / "config.json")
        stated = config.get("max_position_embeddings")
        context = stated if type(stated) is int and stated > 0 else None
    factor = rope_factor
    if factor is None and theirs is not None and raw.get("use_scaled_rope") is True:
        factor = theirs.rope_factor
    params = params_of(raw, sizes.vocabulary, factor, folder / PARAMS)
    faults: list[LLMError] = []
    if sidecar is not None and theirs is not None and theirs != params:
        faults.append(_other_sidecar(folder, sidecar, params, theirs))
    embeddings = sizes.embeddings or usual_split(params, tokenizer)
    faults += degree_faults(params, sizes.degree, embeddings)
    if tokenizer is not None:
        faults += _tokenizer_faults(tokenizer, params)
    raise_all(faults)
    shards = tuple(folder / shard_name(index) for index in range(sizes.degree))
    context = context or context_of(params)[0]
    return MetaCheckpoint(folder, raw, params, shards, embeddings, tokenizer, sidecar, context)


def usual_split(params: Params, tokenizer: Path | None) -> EmbeddingSplit:
    """How Meta splits the embeddings of a model of this generation."""
    if tokenizer is not None:
        return "rows" if tokenizer_kind(tokenizer) == "tiktoken" else "columns"
    return "rows" if params.vocabulary > LLAMA_3_FROM else "columns"


def _other_sidecar(folder: Path, sidecar: Path, params: Params, theirs: Params) -> LLMError:
    ours, other = asdict(params), asdict(theirs)
    lines = [f"{key}: {ours[key]} and {other[key]}" for key in ours if ours[key] != other[key]]
    what = f"{folder / PARAMS} and {sidecar / 'config.json'} differ"
    fix = "remove the one that is of another model"
    if lines[0].startswith("rope_factor") and len(lines) == 1:
        fix = f"leave out --rope-factor, or correct {sidecar / 'config.json'}"
    return LLMError(what, "\n".join(lines), fix)


def _tokenizer_faults(tokenizer: Path, params: Params) -> list[LLMError]:
    size = vocabulary_size(tokenizer)
    # Embeddings are sometimes padded by a few rows; twice as many are another model's.
    if size <= params.vocabulary <= 2 * size:
        return []
    what = f"{tokenizer} is of another model"
    why = f"it has {size} tokens, and the embeddings have {params.vocabulary}"
    return [LLMError(what, why, "--tokenizer FILE names the right one")]


def _check_tensors(
    checkpoint: MetaCheckpoint, path: Path, tensors: Mapping[str, StoredTensor]
) -> None:
    expected = {
        name: shard_shape(tensor, checkpoint.params, checkpoint.degree)
        for name, tensor in layout(checkpoint.params, checkpoint.embeddings).items()
    }
    if OUTPUT not in tensors and (checkpoint.degree == 1 or checkpoint.embeddings == "rows"):
        del expected[OUTPUT]  # tied: the embeddings' rows are those of the output head
    found = {name: tensor.shape for name, tensor in tensors.items()}
    raise_all(name_faults(found, expected, f"{path} is not what {PARAMS} describes", AGAIN))
