"""Find and read run records: files, runs' folders, and folders of such folders.

from llm_recipes.evaluation.report.collect import collect
runs, notes = collect([Path("runs")])
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.evaluation.report.values import moment
from llm_recipes.evaluation.run import Task, read_run
from llm_recipes.evaluation.run_labels import short_names
from llm_recipes.record import SCHEMA

RECIPE = "evaluate/report"
# A folder that has one of these is a run; what is below it belongs to it.
OF_A_FOLDER = ("run.json", "sweep.json")
ENDING = ".run.json"
REPLAY = re.compile(r"\.replay-\d+$")  # a folder of bin/llm-record
MOST_BYTES = 64 << 20  # records have some kilobytes
FIX = "give the run.json that a recipe has left, or its folder"


@dataclass(frozen=True)
class Run:
    """A record. name: short, and different from all others. file: of the record, absolute."""

    name: str
    file: Path
    record: Mapping[str, Any]
    tasks: Mapping[str, Task] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """Its recipe's name."""
        return str(self.record.get("recipe"))

    @property
    def status(self) -> str:
        """complete, running, interrupted or failed."""
        return str(self.record.get("status"))


def collect(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read all records, each once, in the order given; those of a folder by when they started.

    Args:
        paths: Records, folders of runs, or folders of such folders.

    Returns:
        The runs, and what was found in a folder of folders and can't be used, with its reason.

    Raises:
        LLMError, ExceptionGroup: Every path that can't be used, and if there is nothing to show.
    """
    runs: list[Run] = []
    notes: list[str] = []
    faults: list[LLMError] = []
    for given in paths:
        path = Path(os.path.abspath(given.expanduser()))
        file = record_of(path)
        if file is not None:
            faults += faults_of(_add(runs, file))
            continue
        below: list[Run] = []
        found = list(records_below(path))
        unusable = [fault for file in found for fault in faults_of(_add(below, file))]
        if not below:
            faults += unusable or [LLMError(f"{path} holds no run record", fix=FIX)]
            continue
        own = [run for run in below if run.recipe != RECIPE and not is_replay(run)]
        runs += sorted(own, key=_by_start)
        notes += [f"{fault.what}: {fault.why}" for fault in unusable]
    raise_all(faults)
    notes += [f"{run.file}: it is of a report" for run in runs if run.recipe == RECIPE]
    once = list({os.path.realpath(r.file): r for r in runs if r.recipe != RECIPE}.values())
    if not once:
        why = "reports and replays are no part of reports"
        raise LLMError("there is nothing to report", why, FIX)
    return named(once), notes


def _add(runs: list[Run], file: Path) -> Callable[[], None]:
    return lambda: runs.append(read(file))


def is_replay(run: Run) -> bool:
    """Whether llm-record made it: beside its run, or wherever it was told to."""
    return "replay_of" in run.record or bool(REPLAY.search(run.file.parent.name))


def _by_start(run: Run) -> tuple[float, str]:
    started = moment(run.record.get("started"))
    return (started.timestamp() if started else 0.0, str(run.file))


def record_of(path: Path) -> Path | None:
    """The record that a path means by itself; None for a folder of folders.

    An output that has its record beside it, such as answers.jsonl, means that.
    """
    if not path.is_dir():
        beside = path.with_name(f"{path.name.removesuffix('.jsonl')}{ENDING}")
        return beside if path.suffix != ".json" and beside.is_file() else path
    for name in OF_A_FOLDER:
        if (path / name).is_file():
            return path / name
    return None


def records_below(folder: Path) -> Iterator[Path]:
    """Records in a folder and below it, sorted; not of hidden folders, nor what is in a run's."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise LLMError(f"{folder} can't be read", error.strerror or "", FIX) from error
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            own = record_of(path)
            yield from records_below(path) if own is None else (own,)
        elif path.name.endswith(ENDING):
            yield path


def read(file: Path) -> Run:
    """Read a record, with its scores if it is of an evaluation that reached its end.

    Raises:
        LLMError: If it is none, damaged, or of a newer version.
    """
    record = read_object(file)
    schema = record.get("schema")
    if not isinstance(record.get("recipe"), str) or not isinstance(schema, int):
        raise LLMError(f"{file} is no run record", "it names no recipe and no schema", FIX)
    if schema > SCHEMA:
        why = f"its schema is {schema}, and this version reads {SCHEMA}"
        raise LLMError(f"{file} is of a newer version", why, "use the version that wrote it")
    run = Run(file.name, file, record)
    if not isinstance(record.get("evaluation"), dict):
        return run
    return replace(run, tasks=read_run(file).tasks)


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        LLMError: If it has none.
    """
    what = f"{file} can't be used"
    if not file.exists():
        raise LLMError(f"{file} does not exist", fix=FIX)
    if not file.is_file():
        raise LLMError(what, "it is no file", FIX)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise LLMError(what, f"it is larger than {MOST_BYTES >> 20} MiB: no record", FIX)
        record = json.loads(file.read_bytes())
    except OSError as error:
        raise LLMError(what, error.strerror or str(error), FIX) from error
    except (ValueError, RecursionError) as error:
        why = f"it is damaged, or no JSON: {' '.join(str(error).split())}"
        raise LLMError(what, why, FIX) from error
    if not isinstance(record, dict):
        raise LLMError(f"{file} is no run record", "it holds no JSON object", FIX)
    return record


def named(runs: Sequence[Run]) -> list[Run]:
    """The runs with names that are short and different from each other."""
    names = short_names([_parts(run.file) for run in runs])
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _parts(file: Path) -> tuple[str, ...]:
    folder = file.parent.parts[1:] or ("/",)
    if file.name in OF_A_FOLDER:
        return folder
    return (*folder, file.name.removesuffix(ENDING).removesuffix(".json") or file.name)
