"""Several tests at once: each finds a difference by chance at times, and all together more often.

from llm_recipes.evaluation.correction import holm
"""

from __future__ import annotations

from collections.abc import Sequence


def holm(chances: Sequence[float]) -> list[float]:
    """Corrected p of each test: below the level, it is so for all of them together.

    Holm (1979), Scandinavian Journal of Statistics 6: whatever the tests have to do with each
    other, a false difference among all of them is reported no more often than the level says.

    Args:
        chances: p of each test.
    """
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    corrected = [1.0] * len(chances)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = largest
    return corrected
