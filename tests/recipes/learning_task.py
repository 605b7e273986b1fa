"""Whether a model has learned the task of `llm_recipes.digits_task`, and how sure that is.

correct(model_folder, adapter, task.evaluation)
bounds(right=930, count=1000)
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from conftest import RECIPES

from llm_recipes.digits_task import INSTRUCTION, alpaca_lines, answer

CONFIDENCE = 0.95


def write_alpaca(items: Sequence[str], path: Path) -> Path:
    path.write_text(alpaca_lines(items), encoding="utf-8")
    return path


def correct(model: Path, adapter: Path | None, items: Sequence[str]) -> int:
    """How many items are answered exactly and ended by the model itself, greedily."""
    import torch

    from llm_recipes.decoding import Decoder, DecodeSettings, Request
    from llm_recipes.model_folder import find_model
    from llm_recipes.models import load_model
    from llm_recipes.prompts import Prompt, render
    from llm_recipes.sampling import Sampling

    loaded = load_model(find_model(str(model)), adapter, torch.device("cpu"), torch.float32, False)
    tokenizer = loaded.tokenizer
    ends = frozenset({tokenizer.eos_token_id})
    decoder = Decoder(loaded.model, tokenizer, DecodeSettings(10, Sampling(), stop_token_ids=ends))
    prompts = [Prompt(item, INSTRUCTION, input=item) for item in items]
    requests = [Request(str(p.id), 0, tuple(render(p, tokenizer, "auto"))) for p in prompts]
    return sum(
        done.finish_reason == "stop" and done.text == answer(done.request.prompt_id)
        for start in range(0, len(requests), 250)
        for done in decoder.complete(requests[start : start + 250])
    )


def bounds(right: int, count: int) -> tuple[float, float]:
    """Two-sided exact 95 % interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(right, count).proportion_ci(CONFIDENCE, "exact")
    return float(interval.low), float(interval.high)


def load_recipe(name: str) -> ModuleType:
    """A recipe as a module, such as "finetune/sft": a process of its own takes seconds to start."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), RECIPES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for theirs
    spec.loader.exec_module(module)
    return module
