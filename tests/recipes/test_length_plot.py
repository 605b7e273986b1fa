"""The histogram of lengths: every example is counted, whatever the lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.length_plot import draw_lengths, length_lines


@pytest.mark.parametrize(
    "lengths", [[1], [5] * 100, list(range(1, 1001)), [3, 100_000], [10, 11, 20, 100]]
)
def test_every_example_is_counted(lengths: list[int]) -> None:
    lines = length_lines(lengths, 50)
    assert len(lines) <= 10
    counts = [int(line.split("  <-")[0].split()[-1].replace(",", "")) for line in lines]
    assert sum(counts) == len(lengths)
    assert all("█" in line for line, count in zip(lines, counts, strict=True) if count)


def test_the_limit_is_marked_where_it_cuts() -> None:
    lines = length_lines([10, 20, 95], 45)
    marked = [line for line in lines if "max length" in line]
    assert [line.split()[0] for line in marked] == ["41-50"]
    assert length_lines([95, 100], 200)[0].startswith(" 91-100")
    assert not any("max length" in line for line in length_lines([10, 20, 95], 95))


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "it's; $l ü.png"
    draw_lengths(path, [1, 5, 200], 100, "data $1 and $2_x^")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(LLMError, match="cannot write"):
        draw_lengths(tmp_path / "nowhere" / "a.png", [1], 10, "")
