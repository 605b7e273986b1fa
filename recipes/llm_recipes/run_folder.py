"""The output folder of a training run: is it ours, is it finished, where does it go on?

    from llm_recipes.run_folder import RunFolder
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llm_recipes.errors import LLMError
from llm_recipes.files import write_fault
from llm_recipes.record import read_record
from llm_recipes.run_checkpoints import Checkpoint, newest_checkpoint, remove_partial_checkpoints
from llm_recipes.stop_signals import restarts

CHECKPOINTS, RECORD, LOCK = "checkpoints", "run.json", ".lock"
OF_A_RUN = (CHECKPOINTS, "tensorboard", "metrics.jsonl", RECORD)
# A checkpoint of one kind can't be read by another; within a kind, the number of processes may
# change where this says so.
KINDS = {"single": "plain", "ddp": "plain", "fsdp": "fsdp", "zero2": "zero2", "zero3": "zero3"}
DEAD_NODE_SECONDS = 150  # after which a server lets go of the locks of a client that is gone
ANY_NUMBER_OF_PROCESSES = ("plain", "fsdp")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's output."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def record(self) -> Path:
        """The run record."""
        return self.path / RECORD

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other runs out of it.

        Raises:
            LLMError: If it can't be written, or another run is in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / LOCK, "a", encoding="utf-8")  # noqa: SIM115 - closed below
        except OSError as error:
            raise write_fault(self.path, error) from error
        with lock:
            try:
                _lock(lock)
            except BlockingIOError:
                why = f"it holds {self.path / LOCK}, and two would write over each other"
                fix = "wait for it, or choose another --output"
                raise LLMError(f"another run is writing to {self.path}", why, fix) from None
            except OSError:  # a file system without locks: as before there were any
                pass
            yield

    def own_record(self) -> dict[str, Any] | None:
        """The record of the run that is there, if any; it reads only, and can be asked early.

        Raises:
            LLMError: If the folder holds something else, or is a file.
        """
        fix = "choose another --output"
        try:
            if not self.path.exists():
                return None
            if not self.path.is_dir():
                raise LLMError(f"{self.path} is a file", "the output is a folder", fix)
            present = {path.name for path in self.path.iterdir()} - {LOCK}
        except OSError as error:
            raise LLMError(f"cannot read {self.path}", error.strerror or "", fix) from error
        record = read_record(self.record)
        if record is not None and record.get("recipe") == "finetune/sft":
            return record
        if present - set(OF_A_RUN):
            why = f"it holds {', '.join(sorted(present)[:5])}, and no record of a fine-tuning"
            raise LLMError(f"{self.path} is not the folder of a run", why, fix)
        return None

    def chosen_before(self) -> dict[str, str]:
        """What `auto` meant when this run's newest checkpoint was made; empty without one."""
        newest = newest_checkpoint(self.checkpoints)
        if newest is None:
            return {}
        made = (read_record(self.record) or {}).get("made_with") or {}
        found = {"strategy": newest.facts.get("strategy"), "dtype": made.get("dtype")}
        return {name: value for name, value in found.items() if isinstance(value, str)}

    def is_complete(self, made_with: Mapping[str, Any], overwrite: bool) -> bool:
        """Whether the run is finished; clears the folder if it is to be overwritten.

        Raises:
            LLMError: If the folder holds something else, or a run with other settings.
        """
        record = self.own_record()
        if not self.path.exists():
            return False
        if overwrite:
            for name in OF_A_RUN:
                _remove(self.path / name)
            return False
        if record is None:
            if (self.checkpoints).exists():
                why = f"it has {CHECKPOINTS}/ but no {RECORD} that says what they are of"
                fix = "--overwrite starts anew, or choose another --output"
                raise LLMError(f"{self.path} can't be continued", why, fix)
            return False
        earlier = record.get("made_with") or {}
        differs = [
            f"{name} was {earlier[name]!r}, now {value!r}"
            for name, value in made_with.items()
            if name in earlier and earlier[name] != value  # a newer version may have more options
        ]
        if differs:
            fix = "give the same settings, or --overwrite to start anew, or another --output"
            raise LLMError(f"{self.path} is a run with other settings", "; ".join(differs), fix)
        return record.get("status") == "complete"

    def resume_point(self) -> tuple[Checkpoint | None, list[Path]]:
        """The newest whole checkpoint, and those that were cut short, which are removed."""
        partial = remove_partial_checkpoints(self.checkpoints)
        return newest_checkpoint(self.checkpoints), partial


def _lock(file: IO[str]) -> None:
    """Take a lock; a job that was put back waits for that of its node that died.

    Raises:
        BlockingIOError: If another run has it.
    """
    deadline = time.monotonic() + (DEAD_NODE_SECONDS if restarts() else 0)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(2.0)


def resume_faults(checkpoint: Checkpoint, strategy: str, processes: int) -> list[LLMError]:
    """Why a checkpoint can't be continued with this strategy and number of processes."""
    made = str(checkpoint.facts.get("strategy"))
    count = checkpoint.facts.get("processes")
    if KINDS.get(made) != KINDS[strategy]:
        return [
            LLMError(
                f"{checkpoint.folder} was made with --strategy {made}",
                f"--strategy {strategy} can't read it",
                f"--strategy {made}; or consolidate.py, and fine-tune its result further",
            )
        ]
    if count != processes and KINDS[strategy] not in ANY_NUMBER_OF_PROCESSES:
        return [
            LLMError(
                f"{checkpoint.folder} was made by {count} processes, now there are {processes}",
                "DeepSpeed's shards belong to a number of processes",
                f"start as many as before ({count}); or consolidate.py, and fine-tune its result",
            )
        ]
    return []


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise write_fault(path, error) from error
