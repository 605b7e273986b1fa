"""The order of examples depends on seed and epoch alone."""

from __future__ import annotations

import pytest

from llm_recipes.training_order import TrainingOrder, steps_of


def test_every_epoch_has_each_example_once() -> None:
    order = list(TrainingOrder(10, 25, seed=3))
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20] and len(order) == 25


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    assert list(TrainingOrder(10, 40, 3))[:17] == list(TrainingOrder(10, 17, 3))


def test_seeds_differ() -> None:
    assert list(TrainingOrder(50, 50, 0)) != list(TrainingOrder(50, 50, 1))


@pytest.mark.parametrize(
    ("examples", "epochs", "batch", "steps"),
    [(10, 1.0, 5, 2), (10, 1.0, 4, 3), (10, 3.0, 4, 8), (3, 1.0, 100, 1), (10, 0.1, 4, 1)],
)
def test_steps(examples: int, epochs: float, batch: int, steps: int) -> None:
    assert steps_of(examples, epochs, batch) == steps
