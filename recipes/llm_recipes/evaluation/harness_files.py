"""Files around an evaluation by lm-eval: what its tasks have read, and its results.

from llm_recipes.evaluation.harness_files import task_files, write_results
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lm_eval
from lm_eval.utils import handle_non_serializable

from llm_recipes.files import write_fault, write_text
from llm_recipes.harness_data import data_files

RESULTS, SAMPLES = "results.json", "samples"
DATA_SUFFIXES = ("*.json", "*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.arrow", "*.txt")


def task_files(tasks: Sequence[Any]) -> list[Path]:
    """The local files that tasks are made of: YAML, Python beside it, and data.

    Those of lm-eval itself are left out: its version stands for them.
    """
    return sorted({path for task in tasks for path in _files(task)})


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write lm-eval's results, and its samples, one file a task.

    Raises:
        LLMError: If the folder can't be written or is full.
    """
    samples = results.get("samples") or {}
    others = {name: value for name, value in results.items() if name != "samples"}
    write_text(folder / RESULTS, _json(others, 2) + "\n")
    try:
        (folder / SAMPLES).mkdir(exist_ok=True)
    except OSError as error:
        raise write_fault(folder / SAMPLES, error) from error
    for task, rows in samples.items():
        ordered = sorted(rows, key=lambda row: int(row["doc_id"]))
        text = "".join(f"{_json(row)}\n" for row in ordered)
        write_text(folder / SAMPLES / f"{quote(task, safe=' ')}.jsonl", text)


def plain(value: Any) -> Any:
    """The same in types that JSON knows: numpy's numbers and torch's types are not among them."""
    return json.loads(_json(value))


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _files(task: Any) -> Iterator[Path]:
    config = task.config
    metadata = config.metadata if isinstance(config.metadata, dict) else {}
    source = Path(str(metadata.get("config_source") or ""))
    own = Path(lm_eval.__file__).parent
    if source.is_file() and own not in source.resolve().parents:
        yield from _included(source)
        yield from source.parent.glob("*.py")
    for name in data_files({"dataset_kwargs": config.dataset_kwargs}):
        if Path(name).is_file():
            yield Path(name)
    folder = Path(str(config.dataset_path or ""))
    if folder.is_absolute() and folder.is_dir():
        for pattern in DATA_SUFFIXES:
            yield from folder.rglob(pattern)


def _included(source: Path) -> Iterator[Path]:
    """A task's file, and those that it includes."""
    yield source
    for line in source.read_text("utf-8", errors="replace").splitlines():
        name, colon, value = line.partition(":")
        included = source.parent / value.strip().strip("'\"")
        if name == "include" and colon and included.is_file() and included != source:
            yield from _included(included)
