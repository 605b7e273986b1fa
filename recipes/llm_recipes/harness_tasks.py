"""Tasks of lm-evaluation-harness by name or YAML file, looked at before a model is loaded.

    from llm_recipes.harness_tasks import load_tasks
    manager, tasks = load_tasks(["arc_easy", "my_task.yaml"])

lm-eval leaves out a YAML file that it can't read, and stops at the first task that it can't load;
here everything is said at once. Data that are not here and can't be fetched are named, with the
command that fetches them and the place where they belong (harness_data.py).
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from llm_recipes.errors import LLMError, leaves, raise_all
from llm_recipes.harness_data import is_missing, leaf_names, local_copy, missing_data
from llm_recipes.model_folder import first_line

YAML_SUFFIXES = (".yaml", ".yml")
WILDCARDS = "*?["
# Names of lm-eval's that manuals of 2023 have, and what they are called now.
RENAMED = {
    "truthfulqa_mc": "truthfulqa_mc1 or truthfulqa_mc2: it was both in one task",
    "hendrycksTest-*": "mmlu",
}


def load_tasks(
    specs: Sequence[str],
    include: Sequence[Path] = (),
    data: Mapping[str, Path] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> tuple[TaskManager, list[Any]]:
    """Load tasks with their data.

    Args:
        specs: Names of tasks, groups or tags, with wildcards (mmlu_*), or paths of YAML files.
        include: Folders with tasks of one's own; they go before lm-eval's, the last one first.
        data: By a task's name, a folder that is a copy of its dataset's repository; or a file,
            which a task with Python code of its own finds as NAME_file among its metadata.
        metadata: More for tasks with Python code of their own.

    Returns:
        The manager that knows all names, and what was asked for: tasks and groups.

    Raises:
        LLMError, ExceptionGroup: Every name that isn't known and file that can't be read; then all
            data that aren't here and tasks that don't fit their first example.
    """
    data = data or {}
    raise_all([LLMError(f"--include {path} is no folder") for path in include if not path.is_dir()])
    files = {f"{name}_file": str(path.absolute()) for name, path in data.items()}
    manager = _manager(specs, include, {**(metadata or {}), **files})
    names, faults = _resolve(specs, manager, include)
    raise_all(faults)
    loaded: list[Any] = []
    for name in names:
        try:
            found = manager.load(_with_data(manager, name, data))
        except Exception as error:  # YAML, jinja, datasets, metrics, a task's own Python
            faults += _load_faults(manager, name, error)
            continue
        # A group is the first of its groups; a tag has only tasks.
        loaded += list(found["groups"].values())[:1] or list(found["tasks"].values())
    raise_all(faults)
    try:
        manager._check_duplicates(loaded)
    except ValueError as error:
        raise LLMError("a task is asked for twice", str(error), "name it once") from None
    raise_all([_not_taken(name, names, loaded) for name in data if not _takes(name, names, loaded)])
    return manager, loaded


def task_names(loaded: Sequence[Any]) -> list[str]:
    """The names of what `load_tasks` has loaded."""
    return [item.name if isinstance(item, Group) else item.task_name for item in loaded]


def leaf_tasks(loaded: Sequence[Any]) -> list[Any]:
    """The tasks themselves, those of groups too."""
    leaves: list[Any] = []
    for item in loaded:
        leaves += item.get_all_tasks() if isinstance(item, Group) else [item]
    return leaves


def _takes(name: str, names: Sequence[str], loaded: Sequence[Any]) -> bool:
    """Whether data that are given are those of something that is evaluated."""
    if name in names:
        return True
    for task in leaf_tasks(loaded):
        makes = getattr(task.config, "custom_dataset", None)
        if callable(makes):
            taken = inspect.signature(makes).parameters
            files = [parameter for parameter in taken if parameter.endswith("_file")]
            if f"{name}_file" in files or not files:  # a user's own may look into its metadata
                return True
    return False


def _not_taken(name: str, names: Sequence[str], loaded: Sequence[Any]) -> LLMError:
    near = difflib.get_close_matches(name, [*names, *task_names(loaded)], n=1)
    fix = f"did you mean {near[0]}?" if near else f"evaluated are {', '.join(names[:5])}"
    return LLMError(f"--task-data {name}: no task that is evaluated takes it", fix=fix)


def _manager(
    specs: Sequence[str], include: Sequence[Path], metadata: Mapping[str, Any]
) -> TaskManager:
    """A manager; lm-eval's own 14,000 files are only read where a name can be one of them."""
    folders, meta = [*include], dict(metadata)
    own = TaskManager(include_path=folders, include_defaults=False, metadata=meta)
    index = own.task_index
    if all(
        _is_whole(index, spec) or (_is_path(spec) and _is_task_file(Path(spec))) for spec in specs
    ):
        return own
    return TaskManager(include_path=folders, metadata=meta)


def _is_whole(index: Mapping[str, Any], name: str) -> bool:
    """Whether an index has all of a task or group; lm-eval may have more tasks of a tag."""
    entry = index.get(name)
    if entry is None or entry.kind == Kind.TAG:
        return False
    if entry.kind != Kind.GROUP:
        return True
    members = (entry.cfg or {}).get("task") or []
    return all(isinstance(member, str) and _is_whole(index, member) for member in members)


def _with_data(manager: TaskManager, name: str, data: Mapping[str, Path]) -> list[Any]:
    """What is loaded for a name: itself, or what reads a local copy of its data.

    Raises:
        LLMError: If the data are a file, and the task reads a dataset.
    """
    path = data.get(name)
    index = manager.task_index
    if path is None or name not in index:
        return [name]
    # Tasks of a tag may read different datasets; those of a group have one.
    leaves = sorted(index[name].tags) if index[name].kind == Kind.TAG else [name]
    return [_reading(manager, leaf, path.absolute()) for leaf in leaves if leaf in index]


def _reading(manager: TaskManager, name: str, path: Path) -> Any:
    entry = manager.task_index[name]
    config = load_yaml(entry.yaml_path, resolve_func=False)
    if "custom_dataset" in config:
        return name
    if not path.is_dir():
        fix = (
            "name a folder that is a copy of its repository, or write a YAML file that reads yours"
        )
        raise LLMError(f"--task-data {name}: {path} is no folder", "it reads a dataset", fix)
    # The form that manager.load() has for names, which takes no changes.
    return manager._factory.build(
        entry, overrides=local_copy(config, path), registry=manager.task_index
    )


def _resolve(
    specs: Sequence[str], manager: TaskManager, include: Sequence[Path]
) -> tuple[list[str], list[LLMError]]:
    """Names and files that are there, wildcards matched, and a fault for each other."""
    names: list[str] = []
    faults: list[LLMError] = []
    for spec in specs:
        matched = manager.match_tasks([spec]) if any(c in spec for c in WILDCARDS) else []
        if matched:
            names += matched
        elif spec in manager.task_index:
            names.append(spec)
        elif not _is_path(spec):
            faults.append(_unknown(spec, manager, include))
        elif fault := _file_fault(Path(spec)):
            faults.append(fault)
        else:
            names.append(spec)
    return list(dict.fromkeys(names)), faults


def _is_path(spec: str) -> bool:
    return spec.lower().endswith(YAML_SUFFIXES) or Path(spec).expanduser().is_file()


def _is_task_file(path: Path) -> bool:
    """Whether a file is a single task: groups name other tasks, which may be anywhere."""
    try:
        config = load_yaml(path.expanduser(), resolve_func=False)
    except Exception:  # said by _file_fault
        return True
    return "group" not in config


def _file_fault(path: Path) -> LLMError | None:
    """What is wrong with a task's file, before its data are looked at."""
    try:
        config = load_yaml(path.expanduser(), resolve_func=False)
    except OSError as error:
        return LLMError(f"cannot read the task {path}", error.strerror or str(error))
    except Exception as error:  # YAML's, Unicode's, and lm-eval's own
        fix = "correct the file: it is YAML with one key a line"
        return LLMError(f"the task {path} can't be read", _said(error), fix)
    if not isinstance(config.get("task", config.get("group")), (str, list)):
        fix = "give it a name: task: my_task"
        return LLMError(f"{path} is no task", "it has neither a task nor a group", fix)
    return None


def _unknown(name: str, manager: TaskManager, include: Sequence[Path]) -> LLMError:
    near = difflib.get_close_matches(name, manager.all_tasks, n=3)
    why = f"did you mean {', '.join(near)}?" if near else ""
    for old, now in RENAMED.items():
        if fnmatch.fnmatchcase(name, old):
            why = f"lm-eval calls it {now}"
    broken = [line for folder in include for line in _broken_files(folder)]
    if broken:
        why = "\n".join([*([why] if why else []), *broken[:5]])
    fix = "name a task of lm-eval (lm_eval ls tasks), a YAML file, or --include its folder"
    return LLMError(f"unknown task {name!r}", why, fix)


def _broken_files(folder: Path) -> Iterator[str]:
    """Files that lm-eval leaves out without a word."""
    for path in sorted(folder.glob("**/*.yaml")):
        if fault := _file_fault(path):
            yield f"{fault.what} ({fault.why})"


def _load_faults(manager: TaskManager, name: str, error: Exception) -> list[LLMError]:
    if isinstance(error, LLMError):  # what a task of this repository says itself
        return [error]
    if isinstance(error, ExceptionGroup) and not error.split(LLMError)[1]:
        return list(leaves(error))
    if is_missing(error):
        return [missing_data(name, _missing_leaves(manager, name, error), _said(error))]
    return [LLMError(f"the task {name} can't be loaded", _said(error), "correct its YAML file")]


def _missing_leaves(
    manager: TaskManager, name: str, error: Exception
) -> dict[str, Mapping[str, Any]]:
    """The tasks of a name whose data are not here, with their configurations."""
    missing: dict[str, Mapping[str, Any]] = {}
    leaves = leaf_names(manager.task_index, name)
    for leaf in leaves:
        if leaves != [name]:
            try:
                manager.load([leaf])
                continue
            except Exception as other:
                if not is_missing(other):
                    continue
        entry = manager.task_index.get(leaf)
        path = Path(leaf).expanduser() if entry is None else entry.yaml_path
        missing[leaf] = load_yaml(path, resolve_func=False)
    return missing


def evaluation_fault(error: Exception) -> LLMError:
    """What to say of an error that lm-eval, or a task's own code, raised while it ran."""
    if "larger than population" in str(error):  # random.sample's
        what = "a task has fewer solved examples than are asked for"
        return LLMError(what, fix="a smaller --num-fewshot")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    fix = "look at the task's YAML file and its data"
    return LLMError("the evaluation failed in lm-eval", f"{_said(error)}{where}", fix)


def _said(error: Exception) -> str:
    text = first_line(error)
    name = type(error).__name__
    return f"{name}: {text}" if text and text != name else name
