"""Rows of numbers: kept, cut short, written again after a resume."""

from __future__ import annotations

import json
from pathlib import Path

from llm_recipes.metrics_log import MetricsLog, describe_step, read_rows


def row(step: int, loss: float = 1.0) -> dict[str, float | int]:
    rates = {"learning_rate": 1e-3, "grad_norm": 2.0, "tokens_per_s": 9.0}
    return {"step": step, "loss": loss, **rates}


def test_rows_after_the_resumed_step_are_done_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 5, 0, board=False) as log:
        for step in (1, 2, 3):
            log.write(row(step, loss=3.0))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    with MetricsLog(tmp_path, 5, 2, board=False) as log:
        for step in (3, 4, 5):
            log.write(row(step, loss=1.0))
    assert [(r["step"], r["loss"]) for r in read_rows(tmp_path / "metrics.jsonl")] == [
        (1, 3.0), (2, 3.0), (3, 1.0), (4, 1.0), (5, 1.0),
    ]  # fmt: skip
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_half_a_row_does_not_take_the_next_one_along(tmp_path: Path) -> None:
    """A full disk cuts the last row short; the checkpoint is of the step before."""
    with MetricsLog(tmp_path, 5, 0, board=False) as log:
        log.write(row(1))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    with MetricsLog(tmp_path, 5, 1, board=False) as log:
        log.write(row(2))
    assert [r["step"] for r in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "nothing") == []


def test_a_step_in_words() -> None:
    words = describe_step({**row(1), "mfu": 0.456, "peak_gpu_bytes": 12.3e9})
    assert "loss 1.0000" in words and "MFU 46%" in words and "12.3 GB" in words
