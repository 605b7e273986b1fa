"""The benchmark of fine-tuning counts steps alike for all, and only trainers that did the same."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOKENS = [900, 900, 100, 200, 300]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("finetune_against_peers", "render", "results"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("finetune_against_peers")


def trained(seconds: float, loss: float = 3.0, **facts: Any) -> dict[str, Any]:
    """A contestant's result, whose steps take `seconds` for 100 tokens."""
    spent = [count / 100 * seconds for count in TOKENS[1:]]
    spent[0] = 50.0  # the warm-up
    losses = [loss, 2.0, 1.0]
    return {"seconds": spent, "cpu_seconds": spent, "losses": losses, "tokens": TOKENS, **facts}


def test_rates_leave_the_first_steps_out(benchmark: ModuleType) -> None:
    assert benchmark.rate([50.0, 1.0, 2.0, 3.0], TOKENS) == 100.0


def test_the_best_peer_is_one_with_the_same_loss(benchmark: ModuleType) -> None:
    case = benchmark.Case("lora", False, True, 32)
    seen = {
        "sft": [trained(1.0)], "loop": [trained(0.9)], "trainer": [trained(1.2)],
        "trl": [trained(0.8, loss=3.001)], "litgpt": [],
    }
    row = benchmark.compare(case, seen, TOKENS, {"litgpt": "status 1: no module"})
    assert row["best_peer"] == "trainer" and row["ratio"] == pytest.approx(1.2)
    assert row["contestants"]["trl"]["ratio"] == pytest.approx(0.8)
    assert row["overhead_ms"] == pytest.approx(200)  # of 2.0 s, the median step
    assert "OTHER LOSS" in benchmark.describe(row) and "no module" in benchmark.describe(row)
    table = importlib.import_module("render").finetune_against_peers(
        {"threads": 2, "limit": 0.98, "goal": 1.0, "rows": [row]}
    )
    cells = [case.name, "100", "83", "125 (other loss)", "", "", "1.20 (Trainer)"]
    assert table.splitlines()[-1] == f"| {' | '.join(cells)} |"


def test_other_work_of_ours_is_no_result(benchmark: ModuleType) -> None:
    case = benchmark.Case("lora", False, True, 32)
    with pytest.raises(RuntimeError, match="other tokens"):
        benchmark.compare(case, {"sft": [{**trained(1.0), "tokens": [1]}]}, TOKENS, {})


def test_losses_of_a_whole_model_are_compared_for_three_steps(benchmark: ModuleType) -> None:
    ours, others = [3.0, 2.0, 1.0, 9.0], [3.0, 2.0, 1.5, 0.0]
    assert benchmark.same_losses(ours, others, "full", "trainer") == 0.5
    assert benchmark.same_losses(ours, others, "lora", "trainer") == 0.0
    assert benchmark.same_losses(ours, others, "full", "litgpt") == 0.0  # clips no gradients


def test_a_contestant_that_fails_says_why(benchmark: ModuleType, tmp_path: Path) -> None:
    case = {"result": str(tmp_path / "x.json"), "threads": 1}
    script = "raise SystemExit('no such model')"
    found = benchmark.run([sys.executable, "-c", script], case, 60)
    assert "status 1: no such model" in found["error"]
    assert "No such file" in benchmark.run([str(tmp_path / "missing")], case, 60)["error"]
