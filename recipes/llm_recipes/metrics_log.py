"""The numbers of a training run while it goes on: JSON Lines, TensorBoard, and lines for people.

with MetricsLog(Path("out"), total_steps=1000, resumed_step=0) as log:
    log.write({"step": 1, "loss": 2.5})
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

from llm_recipes.files import write_fault, write_text
from llm_recipes.progress import Progress

NAME = "metrics.jsonl"
NOT_IN_TENSORBOARD = ("step", "epoch")


class MetricsLog:
    """Appends a row a step. Rows after the step that a run resumes from are dropped first: those
    steps are done again.
    """

    def __init__(self, folder: Path, total_steps: int, resumed_step: int, board: bool) -> None:
        self.path = folder / NAME
        kept = [row for row in read_rows(self.path) if row["step"] <= resumed_step]
        # In any case: behind half a line the next row would be lost.
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.rows: list[dict[str, Any]] = kept
        try:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed at the end
        except OSError as error:
            raise write_fault(self.path, error) from error
        self._board = _tensorboard(folder / "tensorboard", resumed_step) if board else None
        self._progress = Progress("train", total_steps, "steps", resumed_step)

    def write(self, row: dict[str, Any]) -> None:
        """Keep a row, and show it."""
        # JSON knows no NaN; what it means is said where the run ends.
        row = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
        self.rows.append(row)
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_fault(self.path, error) from error
        if self._board is not None:
            for name, value in row.items():
                if name not in NOT_IN_TENSORBOARD and value is not None:
                    self._board.add_scalar(name, value, row["step"])
        if "loss" in row:
            self._progress.advance(describe_step(row))

    def __enter__(self) -> MetricsLog:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, traceback)
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut short is left out."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def describe_step(row: Mapping[str, Any]) -> str:
    """A step in a few words."""
    loss = "not a number" if row["loss"] is None else f"{row['loss']:.4f}"
    parts = [f"loss {loss}", f"lr {row['learning_rate']:.2e}"]
    if row.get("grad_norm") is not None:
        parts.append(f"|g| {row['grad_norm']:.2f}")
    parts.append(f"{row['tokens_per_s']:.0f} tokens/s")
    if row.get("mfu") is not None:
        parts.append(f"MFU {row['mfu']:.0%}")
    memory = row.get("peak_gpu_bytes") or row.get("peak_host_bytes")
    if memory:
        parts.append(f"{memory / 1e9:.1f} GB")
    return ", ".join(parts)


def _tensorboard(folder: Path, resumed_step: int) -> Any:
    """A writer, or None where the package is not installed (an image of one's own)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=resumed_step + 1)
