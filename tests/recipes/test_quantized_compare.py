"""recipes/quantized/compare.py: models of different sizes and tokenizers on the same text."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="llama.cpp is not here")

from conftest import RECIPES, recipe_environment

from llm_recipes.errors import LLMError
from llm_recipes.gguf.programs import run_program

SCRIPT = RECIPES / "quantized" / "compare.py"
Compare = Callable[..., int]


@pytest.fixture(scope="module")
def compare() -> Compare:
    spec = importlib.util.spec_from_file_location("compare_recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Compare = module.compare
    return function


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of Python's manual."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "the manual's; ü.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)[:10]))
    return path


@pytest.fixture(scope="module")
def coarse(trained_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model in ternary weights, worse beyond doubt, under a path with a comma."""
    path = tmp_path_factory.mktemp("coarse") / "trained, coarse; ü.gguf"
    run_program(["llama-quantize", str(trained_gguf), str(path), "TQ1_0", "1"])
    return path


def test_a_comparison_as_a_user_starts_it(
    trained_gguf: Path, coarse: Path, tiny_gguf: Path, text: Path, tmp_path: Path
) -> None:
    """A random model with another tokenizer is worse by bits, whatever its perplexity is."""
    arguments = ["--models", trained_gguf, "--models", coarse, "--models", tiny_gguf]
    output = tmp_path / "out's; ü"
    arguments += [
        "--text",
        text,
        "--output",
        output,
        "--passages",
        40,
        "--context",
        256,
        "--threads",
        1,
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env=recipe_environment(),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((output / "compare.json").read_text())
    assert found["passages"] >= 40 and not found["one_tokenizer"]
    fine, rough, random = found["rows"]
    assert fine["more_than_first"] is None
    assert 0 < rough["more_than_first"]["low"] < rough["more_than_first"]["mean"]
    assert random["more_than_first"]["low"] > 1
    assert random["bits_per_byte"] > 8  # random and peaked: worse than guessing bytes
    assert 1 < fine["bits_per_byte"] < rough["bits_per_byte"] < 8
    nats = fine["bits_per_byte"] * found["bytes"] * math.log(2)
    assert fine["perplexity"] == pytest.approx(math.exp(nats / fine["tokens"]))
    assert all(row["speed"]["new"]["mean"] > 0 for row in found["rows"])
    assert "trained, coarse; ü is worse than trained and is" in done.stdout
    assert "their perplexities don't compare, bits per byte do" in done.stdout
    assert (output / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "compare.md").read_text().count("\n| ") == 3
    record = json.loads((output / "run.json").read_text())
    assert (record["recipe"], record["status"]) == ("quantized/compare", "complete")


def test_what_was_scored_is_not_scored_again(
    compare: Compare,
    trained_gguf: Path,
    coarse: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llm_recipes.gguf import comparison

    scored: list[str] = []
    score = comparison.score_model

    def count(file: object, *rest: object) -> object:
        scored.append(file.path.name)  # type: ignore[attr-defined]
        return score(file, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "score_model", count)
    options = {"text": str(text), "passages": 4, "context": 256, "speed": False, "threads": 1}
    twin = tmp_path / "twin.gguf"
    shutil.copy(trained_gguf, twin)
    models = [str(trained_gguf), str(coarse)]
    compare(models, tmp_path / "o", **options)
    first = json.loads((tmp_path / "o" / "compare.json").read_text())
    assert len(scored) == 2
    compare([*models, str(twin)], tmp_path / "o", **options)  # the same model: counted once
    assert len(scored) == 2
    assert json.loads((tmp_path / "o" / "compare.json").read_text()) == first
    assert "passages are few" in capsys.readouterr().err
    compare(models, tmp_path / "o", **{**options, "passages": 5})
    assert len(scored) == 4


def test_faults(compare: Compare, trained_gguf: Path, tmp_path: Path) -> None:
    model = str(trained_gguf)
    with pytest.raises(LLMError, match="needs two models"):
        compare([model, model], tmp_path / "o")
    with pytest.raises(ExceptionGroup) as caught:
        compare([str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")], tmp_path / "o")
    assert len(caught.value.exceptions) == 2
    with pytest.raises(ExceptionGroup):
        compare([model], tmp_path / "o", passages=-1, context=1)
    assert not (tmp_path / "o").exists()


def test_too_short_a_text(
    compare: Compare, trained_gguf: Path, coarse: Path, tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("One passage.")
    with pytest.raises(LLMError, match="too short for a comparison"):
        compare([str(trained_gguf), str(coarse)], tmp_path / "o", text=str(text))
