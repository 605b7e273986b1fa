"""Figures in the manual come from results, and what was not measured is not claimed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs/performance.md"


@pytest.fixture
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", REPOSITORY / "benchmarks/render.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_has_its_place_in_the_page(render: ModuleType) -> None:
    for name in ["machine", *render.TABLES]:
        assert "| x |" in render.replace(PAGE.read_text(), name, "| x |")
    with pytest.raises(ValueError, match="no part"):
        render.replace(PAGE.read_text(), "nonsense", "")


def test_results_go_in_and_the_rest_stays(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    results = tmp_path / "results"
    results.mkdir()
    row = {"batch": 1, "method": "generate.py compiled", "tokens_per_s": 123.4, "decode_mbu": 0.61}
    failed = {"batch": 256, "method": "loop", "error": "out of memory"}
    slow = {"batch": 4, "method": "generate.py compiled", "tokens_per_s": 5, "compiled": False}
    (results / "gpu_inference.json").write_text(json.dumps({
        "device": "NVIDIA H200", "parameters": 8.03e9, "dtype": "bf16", "prompt_tokens": 128,
        "new_tokens": 64, "rows": [row, failed, slow]}))
    monkeypatch.setattr(sys, "argv", ["render.py", str(results), str(page)])
    render.main()
    text = page.read_text()
    assert "| GPU | NVIDIA H200 |" in text
    assert "| batch 1 (goal MBU 60 %) |  |  |  | 123 | 61 % |" in text
    assert "| batch 256 | out of memory |" in text and "5 (not compiled)" in text
    before, after = PAGE.read_text(), text
    for name in ("launch", "imports"):
        part = before.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0]
        assert part in after
