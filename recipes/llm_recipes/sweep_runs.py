"""Measure one run of a sweep: start sft.py, wait, read its numbers, remove what it wrote.

    from llm_recipes.sweep_runs import Row, measure, read_rows
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_recipes.files import write_fault, write_text
from llm_recipes.record import read_record
from llm_recipes.stop_signals import UNFINISHED
from llm_recipes.sweep_plan import SFT, TOO_LARGE, Planned, child_environment
from llm_recipes.sweep_points import AXES, DECIDED, Axes, Point

RUNS = "runs"
KEPT = ("run.json", "metrics.jsonl", ".lock")
WARMUP_STEPS = 2  # training_numbers.FIRST_STEPS, which count in no rate
PATIENCE_S = 60.0  # for a run to leave after a signal; torchrun alone may take 30
TAIL_BYTES, SHOWN_LINES = 65536, 12
DONE, NO_MEMORY, TOO_BIG, FAILED, IMPOSSIBLE = (
    "done",
    "out of memory",
    "does not fit",
    "failed",
    "impossible",
)
MEMORY_WORDS = re.compile(
    r"memory ran out|out of memory|OutOfMemoryError|MemoryError|can't allocate memory"
    r"|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED|oom.kill",
    re.IGNORECASE,
)
KILLED_BY_TORCHRUN = re.compile(r"exitcode\s*: -9\b|Signal 9 \(SIGKILL\)")


class Unfinished(Exception):
    """The job's time is over: the run has left, and the sweep should."""


@dataclass(frozen=True)
class Row:
    """A run's result. fixed: settings that all runs share. step_s, tokens_per_s: medians, over all
    processes. peak_bytes: of the first process, on `memory` (GPU or host). note: for people.
    """

    name: str
    axes: Axes
    fixed: dict[str, Any]
    status: str
    note: str = ""
    step_s: float | None = None
    tokens_per_s: float | None = None
    peak_bytes: int | None = None
    memory: str = ""
    predicted_bytes: int | None = None
    strategy: str = ""
    checkpointing: bool | None = None
    device: str = ""
    wall_s: float = 0.0

    @property
    def is_final(self) -> bool:
        """Whether doing it again would find the same."""
        return self.status in (DONE, NO_MEMORY)

    @property
    def ratio(self) -> float | None:
        """Measured over predicted memory."""
        if not self.peak_bytes or not self.predicted_bytes:
            return None
        return self.peak_bytes / self.predicted_bytes


def fixed_part(point: Point, processes: int) -> dict[str, Any]:
    """The settings that all runs of a sweep share."""
    left_out = {*AXES, *DECIDED, "global_batch"} - {"model", "data", "max_steps"}
    shared = {name: value for name, value in point.settings.items() if name not in left_out}
    return json.loads(json.dumps({**shared, "processes": processes}, default=str))


def read_rows(output: Path) -> list[Row]:
    """Results that are there; files that are none are left out."""
    rows = []
    for path in sorted((output / RUNS).glob("*.json")):
        row = read_row(path)
        if row is not None:
            rows.append(row)
    return rows


def read_row(path: Path) -> Row | None:
    """A result, or None if there is none that can be read."""
    try:
        row = Row(**json.loads(path.read_bytes()))
        known = isinstance(row.axes, dict) and set(row.axes) == set(AXES)
        return row if known and isinstance(row.fixed, dict) else None
    except (OSError, ValueError, TypeError):
        return None


def row_path(output: Path, name: str) -> Path:
    """Where a run's result is kept."""
    return output / RUNS / f"{name}.json"


def measure(
    point: Point, plan: Planned, output: Path, processes: int, script: Path = SFT
) -> Row:
    """Do a run, keep its result and its log, and remove its weights.

    Raises:
        Unfinished: If it was stopped because the job's time is over.
        LLMError: If the folder can't be written.
    """
    folder, log = output / RUNS / point.name, output / RUNS / f"{point.name}.log"
    settings = {**point.settings, "output": folder}
    file = log.with_suffix(".yaml")
    # Paths go on the command line, where they may hold bytes that YAML can't.
    paths = {name: str(settings.pop(name)) for name in ("model", "data", "output")}
    write_text(file, yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(script), f"--config={file}"]
    command += [f"--{name}={value}" for name, value in paths.items()]
    start = time.monotonic()
    try:
        status = run_child(command, log)
        record = read_record(folder / "run.json") or {}
    finally:
        remove_weights(folder)
    seconds = round(time.monotonic() - start, 1)
    row = judge(point, plan, status, record, read_tail(log))
    row = Row(**{**asdict(row), "wall_s": seconds, "fixed": fixed_part(point, processes)})
    write_row(output, row)
    return row


def write_row(output: Path, row: Row) -> None:
    """Keep a result.

    Raises:
        LLMError: If it can't be written.
    """
    write_text(row_path(output, row.name), json.dumps(asdict(row), indent=2) + "\n")


def run_child(command: list[str], log: Path) -> int:
    """Run a program to its end, with everything it prints in the log; returns its status.

    If this process is interrupted or terminated, the program gets the same signal and a minute.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        file = open(log, "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise write_fault(log, error) from error
    child = None
    with file:
        try:
            # A signal between the start and the name `child` would leave it behind.
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=child_environment(),
                    start_new_session=True,  # Ctrl-C reaches it through us alone
                    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals),
                )
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            return child.wait()
        except BaseException as error:
            if child is not None:
                ctrl_c = isinstance(error, KeyboardInterrupt)
                end_child(child, signal.SIGINT if ctrl_c else signal.SIGTERM)
            raise


def end_child(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Ask a program to leave, and end it if it does not; a second Ctrl-C ends it at once."""
    print("ending the run that goes on …", file=sys.stderr, flush=True)
    try:
        child.send_signal(number)
        child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what it has started, too
        child.wait()


def judge(
    point: Point, plan: Planned, status: int, record: Mapping[str, Any], tail: str
) -> Row:
    """What a run's end means.

    Raises:
        Unfinished: See `measure`.
    """
    metrics = record.get("metrics")
    numbers: Mapping[str, Any] = metrics if isinstance(metrics, dict) else {}
    complete = status == 0 and record.get("status") == "complete"
    if complete and number(numbers, "step_s") and number(numbers, "tokens_per_s"):
        return measured(point, plan, record, numbers)
    row = Row(point.name, point.axes, {}, FAILED, predicted_bytes=plan.predicted_bytes)
    if status == UNFINISHED or (status == 0 and record.get("status") == "interrupted"):
        raise Unfinished
    if TOO_LARGE in tail and status > 0:
        return with_end(row, TOO_BIG, "sft.py refuses it")
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL) or (
        status and KILLED_BY_TORCHRUN.search(tail)
    ):
        return with_end(row, NO_MEMORY, "killed (signal 9), as when the host's memory runs out")
    found = [line.strip() for line in tail.splitlines() if MEMORY_WORDS.search(line)]
    if status and found:
        return with_end(row, NO_MEMORY, found[-1][:200])
    lines = [line for line in tail.splitlines() if line.strip()][-SHOWN_LINES:]
    reason = f"status {status}" if status else "it left no numbers"
    return with_end(row, FAILED, "\n".join([reason, *lines]))


def measured(
    point: Point, plan: Planned, record: Mapping[str, Any], numbers: Mapping[str, Any]
) -> Row:
    """The result of a run that reached its end."""
    sharing, host = record.get("sharing") or {}, record.get("host") or {}
    on_gpu = bool(number(numbers, "peak_gpu_bytes"))
    peak = number(numbers, "peak_gpu_bytes" if on_gpu else "peak_host_bytes")
    return Row(
        name=point.name,
        axes=point.axes,
        fixed={},
        status=DONE,
        step_s=number(numbers, "step_s"),
        tokens_per_s=number(numbers, "tokens_per_s"),
        peak_bytes=round(peak) if peak else None,
        memory="GPU" if on_gpu else "host",
        predicted_bytes=plan.predicted_bytes,
        strategy=str(sharing.get("strategy", plan.strategy)),
        checkpointing=bool(sharing.get("checkpointing", plan.checkpointing)),
        device=str(host.get("device", "")),
    )


def number(numbers: Mapping[str, Any], name: str) -> float | None:
    """A number above 0, or None."""
    value = numbers.get(name)
    return value if isinstance(value, (int, float)) and value > 0 else None


def with_end(row: Row, status: str, note: str) -> Row:
    """The same row with another end."""
    return Row(**{**asdict(row), "status": status, "note": note})


def read_tail(path: Path) -> str:
    """The end of a log, whatever bytes it holds."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def remove_weights(folder: Path) -> None:
    """Remove what a run of the sweep wrote, but for its numbers."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        if path.name in KEPT:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
