"""The run record: what ran, on what, with which result; `run.json`, schema version 1.

    from llm_recipes.record import add_input, start_record, write_record

    record = start_record("inference/generate", settings, "a CPU", deterministic=True)
    add_input(record, "model", folder)               # read in the background
    write_record(path, record, "complete", results=["answers.jsonl"])

docs/run-records.md has every field.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_recipes import run_environment
from llm_recipes.files import write_text
from llm_recipes.ranks import is_first_process
from llm_recipes.run_secrets import (
    hidden_options,
    plain,
    without_passwords_within,
    without_secrets,
)
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.content_digest import Reading

SCHEMA = 1
# A run that is done waits so long for the content of its inputs to be read; what is not read then
# is read by the next run.
WAIT_S = 30.0
QUIET_S = 2.0  # before it says so
READERS = 4  # files of results that are read at once
SAID_BYTES = 4 * 10**9  # of results whose reading takes so long that it says so


@dataclass(frozen=True)
class Input:
    """What a run reads. given: as the user names it. paths: absolute. reading: of their content.

    several: there may be any number of them, and every field is a list.
    """

    given: tuple[str, ...]
    paths: tuple[Path, ...]
    several: bool
    reading: Reading | None

    def is_read(self, wait_s: float) -> bool:
        """Whether its content was read, after so many seconds at most."""
        return self.reading is None or self.reading.is_done(wait_s)

    def completed(self, part: Mapping[str, Any], wait_s: float) -> dict[str, Any]:
        """The record's part with path, resolved, content, and why a content is missing."""
        contents: list[str | None] = [None] * len(self.paths)
        missing: str | None = "it is no file or folder here"
        if self.reading is not None:
            contents, missing = self.reading.wait(wait_s)
        lists: dict[str, Sequence[Any]] = {
            "path": list(self.given),
            "resolved": [str(path) for path in self.paths],
            "content": contents,
        }
        singles = {name: next(iter(found), None) for name, found in lists.items()}
        found = {**(lists if self.several else singles)}
        # A recipe's own path stays: later runs look it up.
        found |= {"path": part.get("path", found["path"])}
        # What was missing when the run began may be there by now.
        kept = {name: value for name, value in part.items() if name != "content_missing"}
        return {**kept, **found} | ({} if missing is None else {"content_missing": missing})


class Record(dict[str, Any]):
    """A run record, with what is still to be said of its inputs when it is written."""

    inputs: dict[str, Input]


def start_record(
    recipe: str,
    config: Mapping[str, Any],
    device_name: str,
    outputs: Sequence[str] = ("output",),
    deterministic: bool = False,
) -> Record:
    """A record of a run that begins now, with what the environment says about image, site and job.

    Args:
        recipe: The recipe's name, such as `inference/generate`.
        config: All its parameters, and no others, with the values that hold.
        device_name: The GPU's or CPU's name.
        outputs: Those of the parameters that name what it writes.
        deterministic: The same command gives the same bytes in all results, on a CPU.
    """
    record = Record(
        schema=SCHEMA,
        recipe=recipe,
        started=_now(),
        finished=None,
        status="running",
        argv=without_secrets(sys.argv),
        cwd=run_environment.working_directory(),
        launch=run_environment.launch(),
        config=plain(config),
        config_hidden=hidden_options(config),
        code=run_environment.code(recipe),
        image=run_environment.image(),
        environment=run_environment.environment(),
        host=run_environment.host(device_name),
        slurm=run_environment.slurm(),
        model={},
        adapter={},
        data={},
        outputs=list(outputs),
        results={},
        deterministic=deterministic,
        metrics={},
    )
    record.inputs = {}
    return record


def add_input(
    record: dict[str, Any],
    part: str,
    found: Path | str | Sequence[Path] | None,
    given: str | Sequence[str] | None = None,
) -> None:
    """Say what the run reads: `model`, `adapter` or `data` get path, resolved and content.

    The content is read by a thread that nothing waits for until the record is complete. Of several
    processes only the first reads.

    Args:
        record: Of `start_record`.
        part: The part of the record.
        found: A file, a folder, or several; None: nothing is read. A hub's name stays as it is.
        given: What the user gave, if it is another name.
    """
    from llm_recipes.content_digest import Reading

    if found is None or not isinstance(record, Record):
        return
    several = not isinstance(found, (str, Path))
    names = [found] if isinstance(found, (str, Path)) else list(found)
    asked = [Path(one).expanduser() for one in names]
    # "-" is standard input, OWNER/NAME a hub's data set: there is nothing to read.
    there = several or os.path.lexists(asked[0])
    paths = tuple(path.absolute() for path in asked) if there else ()
    reading = Reading(paths) if paths and is_first_process() else None
    shown = names if given is None else [given] if isinstance(given, str) else list(given)
    record.inputs[part] = Input(tuple(map(str, shown)), paths, several, reading)


def write_record(
    path: Path, record: dict[str, Any], status: str, results: Iterable[str] | None = None
) -> None:
    """Write the record with its end: status is complete, interrupted or failed.

    The record has its end only once it is written. A complete one waits up to WAIT_S for the
    content of the run's inputs; of any other it has what was read until then.

    Args:
        path: The file.
        record: Of `start_record`, with all that the run has found.
        status: running, complete, interrupted or failed.
        results: Files in the record's folder that the same command makes again; they are hashed.
    """
    end: dict[str, Any] = {"status": status, "finished": _now()}
    if results is not None:
        end["results"] = {**record.get("results", {}), **file_hashes(path.parent, results)}
    if isinstance(record, Record):
        deadline = time.monotonic() + (WAIT_S if status == "complete" else 0.0)
        for part, read in record.inputs.items():
            if status == "complete" and not read.is_read(QUIET_S):
                say(f"reading the {part} for the run record, once and {WAIT_S:g} s at most")
            end[part] = read.completed(
                record.get(part) or {}, max(0.0, deadline - time.monotonic())
            )
    for part in ("model", "adapter", "data"):  # a path may be an address
        if part in end or part in record:
            end[part] = without_passwords_within(end.get(part, record.get(part)))
    text = json.dumps({**record, **end}, indent=2, ensure_ascii=False) + "\n"
    # Names of files may hold bytes that are not UTF-8: as \udcXX, which JSON knows.
    write_text(path, text.encode("utf-8", "backslashreplace").decode())
    record.update(end)


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str | None]:
    """SHA-256 of files in a folder, by name; None for one that cannot be read.

    A folder in it stands for all files below. What was read is remembered as that of inputs is: a
    run that reads these files next need not read them for its record.
    """
    from concurrent.futures import ThreadPoolExecutor

    from llm_recipes.content_digest import cached_sha256

    def digest(name: str) -> str | None:
        try:
            return cached_sha256(folder / name)
        except OSError:
            return None

    found: set[str] = set()
    for name in names:
        below = [path for path in (folder / name).rglob("*") if path.is_file()]
        found.update([str(path.relative_to(folder)) for path in below] or [name])
    ordered = sorted(found)
    size = sum(path.stat().st_size for name in ordered if (path := folder / name).is_file())
    if size >= SAID_BYTES:
        say(f"reading {size / 1e9:.3g} GB of results for their hashes in the run record")
    with ThreadPoolExecutor(READERS) as readers:
        return dict(zip(ordered, readers.map(digest, ordered), strict=True))


def read_record(path: Path) -> dict[str, Any] | None:
    """A record that an earlier run left; None if there is none that can be read."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def record_path(output: Path) -> Path:
    """Where the record of an output file goes: `answers.jsonl` has `answers.run.json` beside it.

    Other endings stay: `a.txt` and `a.1` beside it have records of their own, `a.txt.run.json` and
    `a.1.run.json`.
    """
    return output.parent / f"{output.name.removesuffix('.jsonl')}.run.json"  # "." has no name


def is_recorded(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether an earlier run has left the record of the very same output."""
    earlier = read_record(path) or {}
    return earlier.get("status") == "complete" and all(
        earlier.get(key) == record.get(key) for key in ("made_with", "output_digest")
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
