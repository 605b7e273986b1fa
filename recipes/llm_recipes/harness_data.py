"""Data of lm-eval's tasks that are not here: which, how they are fetched, where they belong.

    from llm_recipes.harness_data import is_missing, missing_data

Compute nodes have no network: a dataset is fetched on a login node, into the same HF_HOME, or its
repository is copied into a folder that `--task-data NAME=FOLDER` names.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks._index import Kind

from llm_recipes.errors import LLMError

# Names of errors of datasets and huggingface_hub about what isn't here and can't be fetched.
MISSING_DATA = frozenset(
    {
        "ConnectionError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "DatasetNotFoundError",
        "FileNotFoundError",
        "GatedRepoError",
    }
)
# Packages of datasets that read files, and are no dataset themselves.
READERS = frozenset({"json", "csv", "parquet", "text", "arrow"})
HUB_FILES = "hf://datasets/"
SHOWN = 3  # datasets of a group in a message


def is_missing(error: Exception) -> bool:
    """Whether a task's data are not here."""
    return bool({kind.__name__ for kind in type(error).__mro__} & MISSING_DATA)


def leaf_names(index: Mapping[str, Any], name: str) -> list[str]:
    """The tasks that a name stands for: of a group or tag all below it."""
    entry = index.get(name)
    if entry is None or entry.kind not in (Kind.GROUP, Kind.TAG):
        return [name]
    members: Sequence[Any] = (
        sorted(entry.tags) if entry.kind == Kind.TAG else (entry.cfg or {}).get("task") or []
    )
    members = [members] if isinstance(members, str) else members
    names: list[str] = []
    for member in members:
        below = member if isinstance(member, str) else member.get("task", member.get("group"))
        if isinstance(below, str) and below in index and below != name:
            names += leaf_names(index, below)
    return list(dict.fromkeys(names))


def local_copy(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What to change in a task's configuration so that it reads a copy of its dataset.

    Args:
        config: The task's.
        folder: A copy of the dataset's repository on the hub.
    """
    files = data_files(config)
    if not any(file.startswith(HUB_FILES) for file in files):
        return {"dataset_path": str(folder)}
    kwargs = dict(config.get("dataset_kwargs") or {})
    kwargs["data_files"] = _replaced(kwargs["data_files"], folder)
    return {"dataset_kwargs": kwargs}


def data_files(config: Mapping[str, Any]) -> list[str]:
    """The files that a task's configuration names."""
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    values = list(named.values()) if isinstance(named, Mapping) else [named]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [str(item) for item in flat if item is not None]


def missing_data(name: str, tasks: Mapping[str, Mapping[str, Any]], why: str) -> LLMError:
    """What to say of data that are not here.

    Args:
        name: What was asked for.
        tasks: Configurations of the tasks that lack theirs, by name.
        why: What was raised.
    """
    local = [
        file
        for config in tasks.values()
        for file in data_files(config)
        if "://" not in file and not Path(file).exists()
    ]
    if local:
        fix = f"put it there, or change data_files in the task: {local[0]} is not here"
        return LLMError(f"the data of task {name} are not here", why, fix)
    wanted = list(dict.fromkeys(_dataset(config) for config in tasks.values()))
    wanted = [data for data in wanted if data.repository]
    if not wanted:
        fix = "look at dataset_path and data_files of the task"
        return LLMError(f"the data of task {name} are not here", why, fix)
    more = f" and {len(wanted) - SHOWN} more" if len(wanted) > SHOWN else ""
    said = f"it needs the dataset {', '.join(data.told() for data in wanted[:SHOWN])}{more}"
    fix = "\n".join([*_fetch_into_cache(wanted), *_fetch_into_folder(name, wanted)])
    return LLMError(f"the data of task {name} are not here", f"{said}\n{why}", fix)


@dataclass(frozen=True)
class Dataset:
    """What a task reads. repository: on the hub. subset: of it. file: a single one of it."""

    repository: str
    subset: str = ""
    file: str = ""

    def told(self) -> str:
        """For messages."""
        if self.file:
            return f"{self.repository}, of it {self.file}"
        return f"{self.repository} ({self.subset})" if self.subset else self.repository


def _fetch_into_cache(wanted: Sequence[Dataset]) -> list[str]:
    """Commands for a login node, if they are few; single files are not found in the cache."""
    if len(wanted) > SHOWN or any(data.file for data in wanted):
        return []
    where = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    lines = [f"on a machine with network, with the same HF_HOME (here {where}):"]
    for data in wanted:
        parts = ", ".join(json.dumps(part) for part in (data.repository, data.subset) if part)
        code = f"import datasets; datasets.load_dataset({parts})"
        lines.append(f"  HF_HUB_OFFLINE=0 llm-run python -c {shlex.quote(code)}")
    return [*lines, "or a copy in any folder:"]


def _fetch_into_folder(name: str, wanted: Sequence[Dataset]) -> list[str]:
    repository = wanted[0].repository
    folder = f"data/{repository.rpartition('/')[2]}"
    fetch = f"llm-run hf download --repo-type dataset {repository} --local-dir {folder}"
    return [
        f"on a machine with network: HF_HUB_OFFLINE=0 {fetch}",
        f"and then, anywhere: --task-data {name}={folder}",
    ]


def _dataset(config: Mapping[str, Any]) -> Dataset:
    for file in data_files(config):
        if file.startswith(HUB_FILES):
            owner, name, *parts = file.removeprefix(HUB_FILES).split("/")
            return Dataset(f"{owner}/{name.partition('@')[0]}", file="/".join(parts))
    path = str(config.get("dataset_path") or "")
    if path in READERS:
        return Dataset("")
    return Dataset(path, str(config.get("dataset_name") or ""))


def _replaced(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(HUB_FILES):
        return str(folder.joinpath(*value.removeprefix(HUB_FILES).split("/")[2:]))
    return value
