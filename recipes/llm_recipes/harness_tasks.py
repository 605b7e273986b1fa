"""Tasks of lm-evaluation-harness by name or YAML file, looked at before a model is loaded.

    from llm_recipes.harness_tasks import load_tasks
    manager, tasks = load_tasks(["arc_easy", "my_task.yaml"], include_path=None)

lm-eval leaves out a YAML file that it can't read, and stops at the first task that it can't load;
here everything is said at once.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.model_folder import first_line

YAML_SUFFIXES = (".yaml", ".yml")
WILDCARDS = "*?["
# Names of errors of datasets and huggingface_hub about what isn't here and can't be fetched.
MISSING_DATA = (
    "ConnectionError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "DatasetNotFoundError",
    "FileNotFoundError",
    "GatedRepoError",
)


def load_tasks(specs: Sequence[str], include_path: Path | None) -> tuple[TaskManager, list[Any]]:
    """Load tasks with their data.

    Args:
        specs: Names of tasks, groups or tags, with wildcards (mmlu_*), or paths of YAML files.
        include_path: Folder with tasks of one's own; they go before lm-eval's.

    Returns:
        The manager that knows all names, and what was asked for: tasks and groups.

    Raises:
        LLMError, ExceptionGroup: Every name that isn't known and file that can't be read; then all
            data that aren't here and tasks that don't fit their first example.
    """
    if include_path is not None and not include_path.is_dir():
        raise LLMError(f"--include-path {include_path} is no folder")
    manager = _manager(specs, include_path)
    names, faults = _resolve(specs, manager, include_path)
    raise_all(faults)
    loaded: list[Any] = []
    for name in names:
        try:
            found = manager.load([name])
        except Exception as error:  # YAML, jinja, datasets, metrics, a task's own Python
            faults.append(_load_fault(name, error))
            continue
        # A group is the first of its groups; a tag has only tasks.
        loaded += list(found["groups"].values())[:1] or list(found["tasks"].values())
    raise_all(faults)
    return manager, loaded


def task_names(loaded: Sequence[Any]) -> list[str]:
    """The names of what `load_tasks` has loaded."""
    return [item.name if isinstance(item, Group) else item.task_name for item in loaded]


def _manager(specs: Sequence[str], include_path: Path | None) -> TaskManager:
    """A manager; lm-eval's own 14,000 files are only read where a name can be one of them."""
    if all(_is_path(spec) and _is_task_file(Path(spec)) for spec in specs):
        return TaskManager(include_path=include_path, include_defaults=False)
    own = TaskManager(include_path=include_path, include_defaults=False)
    known = {name for name, entry in own.task_index.items() if entry.kind == Kind.TASK}
    if all(spec in known or (_is_path(spec) and _is_task_file(Path(spec))) for spec in specs):
        return own
    return TaskManager(include_path=include_path)


def _resolve(
    specs: Sequence[str], manager: TaskManager, include_path: Path | None
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
            faults.append(_unknown(spec, manager, include_path))
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


def _unknown(name: str, manager: TaskManager, include_path: Path | None) -> LLMError:
    near = difflib.get_close_matches(name, manager.all_tasks, n=3)
    why = f"did you mean {', '.join(near)}?" if near else ""
    broken = [] if include_path is None else list(_broken_files(include_path))
    if broken:
        why = "\n".join([*([why] if why else []), *broken[:5]])
    fix = "name a task of lm-eval (lm-eval ls tasks), a YAML file, or --include-path its folder"
    return LLMError(f"unknown task {name!r}", why, fix)


def _broken_files(folder: Path) -> Iterator[str]:
    """Files that lm-eval leaves out without a word."""
    for path in sorted(folder.glob("**/*.yaml")):
        if fault := _file_fault(path):
            yield f"{fault.what} ({fault.why})"


def _load_fault(name: str, error: Exception) -> LLMError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds.intersection(MISSING_DATA):
        fix = (
            "look at dataset_path and data_files of the task; data of a hub are fetched on a\n"
            "machine with network first, into the same HF_HOME"
        )
        return LLMError(f"the data of task {name} are not here", _said(error), fix)
    return LLMError(f"the task {name} can't be loaded", _said(error), "correct its YAML file")


def evaluation_fault(error: Exception) -> LLMError:
    """What to say of an error that lm-eval, or a task's own code, raised while it ran."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    fix = "look at the task's YAML file and its data"
    return LLMError("the evaluation failed in lm-eval", f"{_said(error)}{where}", fix)


def _said(error: Exception) -> str:
    text = first_line(error)
    name = type(error).__name__
    return f"{name}: {text}" if text and text != name else name
