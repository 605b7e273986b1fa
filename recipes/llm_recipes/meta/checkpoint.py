"""A Llama checkpoint in Meta's format: its folder, checked, without loading a weight.

    from llm_recipes.meta.checkpoint import find_checkpoint, read_shard
    checkpoint = find_checkpoint(Path("Llama-2-13B"))
    tensors = read_shard(checkpoint, index=0)

What the files themselves say is believed, and what two of them say has to agree: the number of
shards follows from the shapes in the first one, as does what params.json leaves open.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from llm_recipes.architecture import name_faults, read_json
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.meta.layout import OUTPUT, EmbeddingSplit, degree_faults, layout, shard_shape
from llm_recipes.meta.params import Params, params_of, params_of_config, read_params
from llm_recipes.meta.releases import context_of, releases_like
from llm_recipes.meta.shard import is_tied, shard_contents, shard_digest, shard_identity, weights_of
from llm_recipes.meta.shard_sizes import ShardSizes, contradictions, shard_sizes
from llm_recipes.meta.tokenizer_files import tokenizer_kind, vocabulary_size
from llm_recipes.model_folder import no_such_folder
from llm_recipes.stored_weights import StoredTensor, unreadable

__all__ = [
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
ORIGINAL = "original"  # folder in a Hugging Face folder: what Meta has
PARAMS, TOKENIZER = "params.json", "tokenizer.model"
SHARD = re.compile(r"consolidated\.(\d\d|[1-9]\d\d+)\.pth")
ROWS_FROM = 100_000  # tokens; Llama 1 and 2 have 32,000, Llama 3 has 128,256
AGAIN = "params.json and all shards must come from the same download: copy them again"
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
        LLMError: If the folder cannot be read.
    """
    names = _names(folder)
    if PARAMS in names or any(SHARD.fullmatch(name) for name in names):
        return True
    return "config.json" not in names and _has_shards(folder / ORIGINAL)


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
    folder = _checkpoint_folder(folder.expanduser())
    faults: list[LLMError] = []
    raw = _attempt(faults, lambda: read_params(folder / PARAMS))
    found = _attempt(faults, lambda: _tokenizer(folder, tokenizer))
    names = _names(folder)
    shards = sorted((name for name in names if SHARD.fullmatch(name)), key=_index)
    sizes, first = None, _attempt(faults, lambda: _first(folder, shards))
    if first is not None:
        sizes, tensors = first
    sidecar = _sidecar(folder)
    faults += _shard_faults(folder, names, shards, raw, sizes)
    raise_all(faults)
    assert raw is not None and sizes is not None and found is not None
    checkpoint = _checkpoint(folder, raw, sizes, found[0], sidecar, rope_factor)
    _check_tensors(checkpoint, checkpoint.shards[0], tensors)
    return checkpoint


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


def _checkpoint_folder(folder: Path) -> Path:
    """The folder that has the files: this one, or its `original`, as on Meta's hub pages."""
    if not folder.is_dir():
        raise no_such_folder(str(folder), "give a folder with params.json and consolidated.00.pth")
    names = _names(folder)
    if any(SHARD.fullmatch(name) for name in names):
        return folder
    if _has_shards(folder / ORIGINAL):
        return folder / ORIGINAL
    if "config.json" in names:
        what = f"{folder} is no checkpoint in Meta's format: it has no consolidated.00.pth"
        why = "it is a Hugging Face folder"
        model = quote(str(folder))
        fix = f"recipes/inference/generate.py --model {model} runs it;\n"
        fix += f"recipes/inference/reshard.py --model {model} --to meta converts it"
        raise LLMError(what, why, fix)
    if PARAMS in names:
        return folder
    what = f"{folder} is no checkpoint in Meta's format: it has no consolidated.00.pth"
    names |= {f"{ORIGINAL}/{name}" for name in ("mp8", "mp16")}  # of 3.1 405B
    inner = sorted(name for name in names if _has_shards(folder / name))[:3]
    fix = "name the folder that holds params.json and consolidated.00.pth"
    if inner:
        fix = "one of these? " + ", ".join(str(folder / name) for name in inner)
    raise LLMError(what, "nor has it params.json", fix)


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise unreadable(folder, error) from error


def _has_shards(folder: Path) -> bool:
    try:
        return any(SHARD.fullmatch(path.name) for path in folder.iterdir())
    except OSError:
        return False


def _index(name: str) -> int:
    return int(name.split(".")[1])


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
    for place in (folder, folder.parent):
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


def _shard_faults(
    folder: Path,
    names: set[str],
    shards: Sequence[str],
    raw: Mapping[str, Any] | None,
    sizes: ShardSizes | None,
) -> list[LLMError]:
    """Shards that are missing or too many, and what params.json says otherwise than the tensors."""
    if not shards:
        what, why = f"{folder} holds no shards", "there is no file consolidated.00.pth"
        return [LLMError(what, why, "copy it again as a whole")]
    faults = []
    degree = sizes.degree if sizes is not None else _index(shards[-1]) + 1
    expected = [f"consolidated.{index:02d}.pth" for index in range(degree)]
    missing = [name for name in expected if name not in names]
    odd = {n for n in names if n.startswith("consolidated.") and n.endswith(".pth")}
    extra = sorted(odd - set(expected))
    release = _release(raw, sizes)
    if extra:
        what = f"{folder} has {len(shards)} shards, and its tensors are split over {degree}"
        if len(shards) <= degree:
            what = f"{folder} has shards that do not belong to it"
        why = f"too many: {_some(extra)}" + (f"\nmissing: {_some(missing)}" if missing else "")
        fix = "move away what does not belong to it, or copy all shards again"
        faults.append(LLMError(what, why + release, fix))
    elif missing:
        what = f"{folder} has {len(shards)} of {degree} shards"
        verb = "is" if len(missing) == 1 else "are"
        why = f"{_some(missing)} {verb} missing{release}"
        faults.append(LLMError(what, why, "copy or download it again as a whole"))
    if raw is not None and sizes is not None:
        lines = contradictions(raw, sizes)
        if lines:
            what = f"{folder / PARAMS} contradicts {shards[0]}"
            faults.append(LLMError(what, "\n".join(lines), AGAIN))
    return faults


def _some(names: Sequence[str]) -> str:
    left = len(names) - 8
    return ", ".join(names[:8]) + (f" and {left} more" if left > 0 else "")


def _release(raw: Mapping[str, Any] | None, sizes: ShardSizes | None) -> str:
    """A line that says how many shards the release of these sizes has."""
    if raw is None or sizes is None or contradictions(raw, sizes):
        return ""
    unscaled = {**raw, "use_scaled_rope": False}
    like = releases_like(params_of(unscaled, sizes.vocabulary, None, Path(PARAMS)))
    if not like:
        return ""
    names = " and ".join(f"{release.name} ({release.degree} shards)" for release in like)
    return f"\nits sizes are those of {names}"


def _sidecar(folder: Path) -> Path | None:
    if (folder / SIDECAR).is_dir():
        return folder / SIDECAR
    is_original = folder.name == ORIGINAL and (folder.parent / "config.json").is_file()
    return folder.parent if is_original else None


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
    embeddings = sizes.embeddings or _whole_embeddings(params, tokenizer)
    faults += degree_faults(params, sizes.degree, embeddings)
    if tokenizer is not None:
        faults += _tokenizer_faults(tokenizer, params)
    raise_all(faults)
    shards = tuple(folder / f"consolidated.{index:02d}.pth" for index in range(sizes.degree))
    context = context or context_of(params)[0]
    return MetaCheckpoint(folder, raw, params, shards, embeddings, tokenizer, sidecar, context)


def _whole_embeddings(params: Params, tokenizer: Path | None) -> EmbeddingSplit:
    """How the embeddings of a checkpoint with a single shard would be split, by its generation."""
    if tokenizer is not None:
        return "rows" if tokenizer_kind(tokenizer) == "tiktoken" else "columns"
    return "rows" if params.vocabulary > ROWS_FROM else "columns"


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
