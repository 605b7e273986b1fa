"""Options of harness.py: which of them mean something for the model, which values can be meant.

from llm_recipes.evaluation.harness_options import option_faults
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError

# Options that only one kind of model has, with the value that is none.
TRANSFORMERS_ONLY: Mapping[str, Any] = {
    "adapter": None,
    "dtype": "auto",
    "device": "auto",
    "shard": False,
    "trust_remote_code": False,
}
GGUF_ONLY: Mapping[str, Any] = {
    "gpu_layers": "auto",
    "split": "layer",
    "shares": None,
    "kv_type": "f16",
    "flash_attention": "auto",
    "threads": "auto",
    "prompt_threads": "auto",
    "load_mode": "auto",
    "hosts": False,
}
GGUF_SUFFIX = ".gguf"


def is_gguf(model: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return model.lower().endswith(GGUF_SUFFIX)


def option_faults(settings: Mapping[str, Any]) -> list[LLMError]:
    """Every option whose value can't be meant, or that this kind of model doesn't have."""
    gguf = is_gguf(settings["model"])
    faults = list(foreign_options(settings, TRANSFORMERS_ONLY if gguf else GGUF_ONLY, gguf))
    for name in ("limit", "max_gen_toks", "context", "batch_size"):
        value = settings[name]
        if isinstance(value, int) and value < 1:
            option = name.replace("_", "-")
            faults.append(LLMError(f"--{option} {value} is too small", fix="1 or more"))
    if settings["seed"] is not None and not 0 <= settings["seed"] < 2**32:
        what = f"--seed {settings['seed']} is out of range"
        faults.append(LLMError(what, "NumPy takes 32 bits", "0 to 4294967295"))
    if settings["num_fewshot"] is not None and settings["num_fewshot"] < 0:
        what = f"--num-fewshot {settings['num_fewshot']} is negative"
        faults.append(LLMError(what, fix="0 or more"))
    if settings["fewshot_as_multiturn"] and not settings["apply_chat_template"]:
        what = "--fewshot-as-multiturn needs --apply-chat-template"
        faults.append(LLMError(what, "without a chat there are no turns", "add it, or leave both"))
    if settings["shard"] and settings["device"] not in ("auto", "cuda"):
        what = f"--shard does not go with --device {settings['device']}"
        faults.append(LLMError(what, "it takes all GPUs of the process", "leave one of them out"))
    if not split_names(settings["tasks"]):
        fix = "--tasks arc_easy,hellaswag, or a YAML file"
        faults.append(LLMError("--tasks names no task", fix=fix))
    return faults + list(_data_faults(settings["task_data"] or ()))


def split_names(tasks: Sequence[str]) -> list[str]:
    """Names with commas between them, and files, whose paths may have commas."""
    names: list[str] = []
    for text in tasks:
        names += [text] if os.path.isfile(os.path.expanduser(text)) else text.split(",")
    return [name.strip() for name in names if name.strip()]


def whole_path(task: str) -> str:
    """A task's name; of a file the path that means the same in every folder."""
    path = os.path.expanduser(task)
    return os.path.abspath(path) if os.path.isfile(path) else task


def data_paths(task_data: Sequence[str]) -> dict[str, Path]:
    """The paths of NAME=PATH, by name."""
    pairs = (text.partition("=") for text in task_data)
    return {name.strip(): Path(path).expanduser() for name, _, path in pairs}


def foreign_options(
    settings: Mapping[str, Any], others: Mapping[str, Any], gguf: bool
) -> Iterator[LLMError]:
    """Options that the other kind of model has, and not this one.

    Args:
        settings: All options by name.
        others: Those of the other kind, with the value that is none.
        gguf: Whether this model is a GGUF file.
    """
    for name, unset in others.items():
        if settings[name] != unset:
            kind = "a GGUF file" if gguf else "a model that transformers loads"
            what = f"--{name.replace('_', '-')} has no meaning for {settings['model']}"
            yield LLMError(what, f"it is {kind}", "leave it out")


def _data_faults(task_data: Sequence[str]) -> Iterator[LLMError]:
    for text in task_data:
        name, equals, path = text.partition("=")
        if not (name.strip() and equals and path.strip()):
            yield LLMError(f"--task-data {text!r} is not NAME=PATH", fix="tatqa=tatqa_dev.json")
        elif not Path(path).expanduser().exists():
            yield LLMError(f"--task-data {name}: {path} does not exist", fix="look at the path")
