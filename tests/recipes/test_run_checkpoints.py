"""Whole checkpoints, cut ones, and how many stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_recipes.run_checkpoints import (
    newest_checkpoint,
    prune_checkpoints,
    read_seal,
    remove_partial_checkpoints,
    seal_checkpoint,
    whole_checkpoints,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Whole checkpoints of the steps 2, 10 and 30, and what else may lie there."""
    folder = tmp_path / "it's; \"checkpoints\" ü"
    for step in (2, 10, 30):
        shards = folder / f"checkpoint-{step}" / "shards"
        shards.mkdir(parents=True)
        (shards.parent / "model.bin").write_bytes(b"x" * 100)
        (shards / "part").write_bytes(b"y" * 10)
        seal_checkpoint(shards.parent, {"step": step, "strategy": "fsdp"})
    (folder / "checkpoint-best").mkdir()
    (folder / "checkpoint-99").write_text("a file")
    return folder


def steps(folder: Path) -> list[int]:
    return [found.step for found in whole_checkpoints(folder)]


def test_the_newest_is_the_latest_step(folder: Path) -> None:
    newest = newest_checkpoint(folder)
    assert newest and newest.step == 30 and newest.facts["strategy"] == "fsdp"
    assert newest_checkpoint(folder / "nowhere") is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "no seal", "half a seal", "grown"])
def test_a_checkpoint_that_is_not_whole(folder: Path, damage: str) -> None:
    cut = folder / "checkpoint-30"
    if damage == "truncated":
        (cut / "model.bin").write_bytes(b"x" * 99)
    elif damage == "grown":
        (cut / "model.bin").write_bytes(b"x" * 101)
    elif damage == "missing":
        (cut / "shards" / "part").unlink()
    elif damage == "no seal":
        (cut / "complete.json").unlink()
    else:
        (cut / "complete.json").write_text('{"files": {"model')
    assert read_seal(cut) is None and steps(folder) == [2, 10]
    assert remove_partial_checkpoints(folder) == [cut] and not cut.exists()
    assert (folder / "checkpoint-best").exists() and (folder / "checkpoint-99").exists()


@pytest.mark.parametrize(
    ("keep", "protected", "left"),
    [
        (2, [], [10, 30]),
        (1, [], [30]),
        (0, [], [2, 10, 30]),
        (1, [2], [2, 30]),
        (9, [], [2, 10, 30]),
    ],
)
def test_how_many_stay(folder: Path, keep: int, protected: list[int], left: list[int]) -> None:
    prune_checkpoints(folder, keep, protected)
    assert steps(folder) == left
