"""Find a training run's checkpoint: what kind it is, and where its settings are.

from llm_recipes.checkpoints import find_checkpoint
checkpoint = find_checkpoint(Path("runs/mistral"))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_recipes.errors import LLMError
from llm_recipes.model_folder import ADAPTER_WEIGHTS, WEIGHT_FILES, WEIGHT_INDEXES

Kind = Literal["fsdp", "zero", "whole"]
COMPLETE = "complete.json"  # written last by our recipes: the checkpoint is whole
FSDP_FOLDER, FSDP_FILE = "pytorch_model_fsdp_0", "pytorch_model_fsdp.bin"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint. home: its folder; weights: where its tensors are, a folder or a file.

    settings: folders in which its configuration and tokenizer may be, nearest first.
    """

    home: Path
    weights: Path
    kind: Kind
    settings: tuple[Path, ...]

    def find(self, name: str) -> Path | None:
        """The nearest file of a name among the settings' folders."""
        return next((f / name for f in self.settings if (f / name).is_file()), None)

    @property
    def step(self) -> int | None:
        """The training step in its name."""
        found = re.search(r"(\d+)$", self.home.name)
        return int(found[1]) if found else None


def find_checkpoint(given: Path) -> Checkpoint:
    """The checkpoint that a folder is or holds.

    Args:
        given: A run's output folder (its newest whole checkpoint is taken), a checkpoint, or the
            folder of shards in one.

    Raises:
        LLMError: If there is none, or none that was written to its end.
    """
    try:
        if not given.is_dir():
            fix = "name a run's output folder or a checkpoint in it"
            raise LLMError(f"there is no folder {given}", fix=fix)
        if (given / "checkpoints").is_dir():
            return _checkpoint(_newest(given / "checkpoints"))
        return _checkpoint(given)
    except OSError as error:
        raise LLMError(f"cannot read {given}", error.strerror or str(error)) from error


def _newest(folder: Path) -> Path:
    steps = {
        int(found[1]): path
        for path in folder.iterdir()
        if (found := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }
    whole = [step for step, path in steps.items() if (path / COMPLETE).is_file()]
    if whole:
        return steps[max(whole)]
    if not steps:
        raise LLMError(f"{folder} holds no checkpoint", "a run writes checkpoint-N there")
    newest = steps[max(steps)]
    raise LLMError(
        f"{folder} holds no whole checkpoint",
        f"none has {COMPLETE}, which is written last: saving was cut short",
        f"to try one all the same, name it: {newest}",
    )


def _checkpoint(given: Path) -> Checkpoint:
    found = _weights(given)
    if found is None:
        inner = sorted(path.name for path in given.glob("checkpoint-*") if path.is_dir())
        if inner:
            what, why = f"{given} holds checkpoints", ", ".join(inner[-5:])
            raise LLMError(what, why, f"name one: {given / inner[-1]}")
        why = f"neither {FSDP_FOLDER} nor DeepSpeed's global_stepN nor a file of weights is in it"
        raise LLMError(f"{given} is no checkpoint", why)
    kind, weights = found
    inside = weights == given and (kind == "fsdp" or weights.name.startswith("global_step"))
    home = given.parent if inside else given
    folders = [weights if weights.is_dir() else home, home, home.parent]
    if home.parent.name == "checkpoints":
        folders.append(home.parent.parent)
    return Checkpoint(home, weights, kind, tuple(dict.fromkeys(folders)))


def _weights(folder: Path) -> tuple[Kind, Path] | None:
    if (folder / ".metadata").is_file() or any(folder.glob("*.distcp")):
        return "fsdp", folder
    if any(folder.glob("*_optim_states.pt")):
        return "zero", folder
    if (folder / FSDP_FOLDER).is_dir():
        return "fsdp", folder / FSDP_FOLDER
    # Before a file of weights: beside one that ZeRO 2 saved in 16 bits, its shards have 32.
    zero = _zero_folder(folder)
    if zero is not None:
        return "zero", zero
    names = (*WEIGHT_INDEXES, *WEIGHT_FILES, *ADAPTER_WEIGHTS, FSDP_FILE)
    return next((("whole", folder / name) for name in names if (folder / name).is_file()), None)


def _zero_folder(folder: Path) -> Path | None:
    latest = folder / "latest"
    if latest.is_file():
        name = latest.read_bytes()[:256].decode(errors="replace").strip()
        if name and Path(name).name == name and (folder / name).is_dir():
            return folder / name
        what = f"{folder} is no whole checkpoint"
        why = f"{latest} names {name!r}, which is not there"
        raise LLMError(what, why, "copy the folder again as a whole, or take an earlier checkpoint")
    found = sorted(folder.glob("global_step*"))
    if len(found) > 1:
        why = ", ".join(path.name for path in found)
        raise LLMError(f"{folder} holds several steps and no file latest", why, "name one of them")
    return found[0] if found and found[0].is_dir() else None
