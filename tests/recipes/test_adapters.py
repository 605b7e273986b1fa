"""Names under which PEFT saves the weights of adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_recipes.adapters import adapter_name, base_of_adapter, recorded_base
from llm_recipes.errors import LLMError

TRAINING = {
    "m.q.lora_A.default.weight": "m.q.lora_A.weight",
    "m.q.lora_magnitude_vector.default.weight": "m.q.lora_magnitude_vector",
    "m.e.lora_embedding_B.default": "m.e.lora_embedding_B",
    "m.q.base_layer.weight": None,
    "m.norm.weight": None,
    "lm_head.modules_to_save.default.weight": "lm_head.weight",
    "lm_head.original_module.weight": None,
}
SAVED = ["m.q.lora_A.weight", "lm_head.weight", "m.q.lora_magnitude_vector"]


def test_names_of_a_training() -> None:
    assert {name: adapter_name(name, TRAINING) for name in TRAINING} == TRAINING


def test_names_of_pefts_own_files_stay() -> None:
    assert [adapter_name(name, dict.fromkeys(SAVED)) for name in SAVED] == SAVED


@pytest.mark.parametrize("named", ["/gone/model", "../gone; 'x'", "", None, 7, "a/b/c"])
def test_a_base_that_is_not_here(named: object, tmp_path: Path) -> None:
    text = json.dumps({"base_model_name_or_path": named})
    (tmp_path / "adapter_config.json").write_text(text)
    assert base_of_adapter(tmp_path) is None


def test_no_settings(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="cannot read"):
        base_of_adapter(tmp_path)


@pytest.mark.parametrize(
    "model, base",
    [
        ({"path": "p", "digest": "d"}, ("p", "d")),
        ({"path": "o", "base": "p", "base_digest": "d"}, ("p", "d")),
        ({"path": "p"}, None),
        ({"digest": 3}, None),
        ([], None),
    ],
)
def test_the_base_in_a_record(model: object, base: object, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"model": model}))
    assert recorded_base(tmp_path / "run.json") == base
