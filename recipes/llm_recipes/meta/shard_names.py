"""The files of a checkpoint in Meta's format by their names: which are there, missing, too many.

from llm_recipes.meta.shard_names import checkpoint_folder, shard_faults
folder = checkpoint_folder(Path("Meta-Llama-3-8B"))  # or its folder `original`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.meta.params import params_of
from llm_recipes.meta.releases import releases_like
from llm_recipes.meta.shard_sizes import ShardSizes, contradictions
from llm_recipes.model_folder import no_such_folder
from llm_recipes.stored_weights import unreadable

ORIGINAL = "original"  # folder in a Hugging Face folder: what Meta has
PARAMS = "params.json"
SHARD = re.compile(r"consolidated\.(\d\d|[1-9]\d\d)\.pth")
AGAIN = "params.json and all shards must come from the same download: copy them again"


def shard_name(index: int) -> str:
    """What the shard of a process is called."""
    return f"consolidated.{index:02d}.pth"


def shard_names(names: set[str]) -> list[str]:
    """Those of a folder's names that are a shard's, in their order."""
    return sorted((name for name in names if SHARD.fullmatch(name)), key=_index)


def checkpoint_folder(folder: Path) -> Path:
    """The folder that has the files: this one, or its `original`, as on Meta's hub pages.

    Raises:
        LLMError: If there is none.
    """
    names = names_in(folder)
    if shard_names(names):
        return folder
    if has_shards(folder / ORIGINAL):
        return folder / ORIGINAL
    if "config.json" in names:
        what = f"{folder} is no checkpoint in Meta's format: it has no consolidated.00.pth"
        why = "it is a Hugging Face folder"
        model = quote(str(folder))
        fix = f"recipes/inference/generate.py --model {model} runs it;\n"
        fix += f"recipes/inference/reshard.py --model {model} --to meta --model-parallel N "
        fix += "--output FOLDER converts it"
        raise LLMError(what, why, fix)
    if PARAMS in names:
        return folder
    what = f"{folder} is no checkpoint in Meta's format: it has no consolidated.00.pth"
    names |= {f"{ORIGINAL}/{name}" for name in ("mp8", "mp16")}  # of 3.1 405B
    inner = sorted(name for name in names if has_shards(folder / name))[:3]
    fix = "name the folder that holds params.json and consolidated.00.pth"
    if inner:
        fix = "one of these? " + ", ".join(str(folder / name) for name in inner)
    raise LLMError(what, "nor has it params.json", fix)


def names_in(folder: Path) -> set[str]:
    """Names of all that is in a folder.

    Raises:
        LLMError: If there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise no_such_folder(str(folder), "give a folder with params.json and consolidated.00.pth")
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise unreadable(folder, error) from error


def has_shards(folder: Path) -> bool:
    """Whether there is a folder with a shard in it."""
    try:
        return any(SHARD.fullmatch(path.name) for path in folder.iterdir())
    except OSError:
        return False


def _index(name: str) -> int:
    return int(name.split(".")[1])


def shard_faults(
    folder: Path,
    names: set[str],
    shards: Sequence[str],
    raw: Mapping[str, Any] | None,
    sizes: ShardSizes | None,
) -> list[LLMError]:
    """Shards that are missing or too many, and what params.json says otherwise than the tensors.

    Args:
        folder: The checkpoint's.
        names: Of all that is in it.
        shards: Those of them that are a shard's.
        raw: What params.json says; None: it could not be read.
        sizes: What follows from the first shard; None: it could not be read.
    """
    if not shards:
        what, why = f"{folder} holds no shards", "there is no file consolidated.00.pth"
        return [LLMError(what, why, "copy it again as a whole")]
    faults = []
    degree = sizes.degree if sizes is not None else _index(shards[-1]) + 1
    expected = [shard_name(index) for index in range(degree)]
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
