"""Default targets are PEFT's all-linear; unknown names are told with the nearest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from llm_recipes.errors import LLMError
from llm_recipes.lora_targets import all_linear, check_targets
from llm_recipes.memory import ModelShape
from llm_recipes.tiny_models import ARCHITECTURES, Shape, model_config

SMALL = Shape(hidden_size=64, intermediate_size=96, vocab_size=64)


def small(family: str) -> Any:
    return AutoModelForCausalLM.from_config(model_config(family, SMALL))


def adapted(model: Any, targets: str | list[str]) -> set[str]:
    model = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    return {path for path, module in model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_same_modules_as_peft(family: str) -> None:
    names = all_linear(small(family))
    assert names
    assert adapted(small(family), names) == adapted(small(family), "all-linear")


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_same_names_as_the_memory_model(family: str) -> None:
    shape = ModelShape.from_config(model_config(family, SMALL).to_dict())
    assert sorted(matrix.name for matrix in shape.matrices) == all_linear(small(family))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_memory_model_knows_each_matrix(family: str) -> None:
    shape = ModelShape.from_config(model_config(family, SMALL).to_dict())
    modules = dict(small(family).named_modules())
    first = {path.rsplit(".", 1)[-1]: m for path, m in modules.items() if ".0." in path}
    for name, inputs, outputs in shape.matrices:
        assert first[name].weight.shape == (outputs, inputs)


def test_a_head_named_as_a_matrix_is_left_out() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"dense": nn.Linear(4, 4), "other": nn.Linear(4, 4)})
            self.dense = nn.Linear(4, 8)

        def get_output_embeddings(self) -> nn.Module:
            return self.dense

    assert all_linear(Odd()) == ["other", "inner.dense"]


def test_four_bit_layers_count() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = nn.ModuleDict({"first": bitsandbytes.nn.Linear4bit(64, 64), "act": nn.ReLU()})
    assert all_linear(model) == ["first"]


def test_known_names_pass() -> None:
    check_targets(small("llama"), ["q_proj", "self_attn.v_proj", "model.layers.0.mlp.up_proj"])
    check_targets(small("llama"), ["lm_head"])


def test_unknown_names_are_told_together() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        check_targets(small("gpt_neox"), ["query_key_values", "attention.dense", "q;'\n ü"])
    first, second = (str(fault) for fault in caught.value.exceptions)
    assert "did you mean query_key_value? its linear layers: dense, dense_4h_to_h" in first
    assert "did you mean" not in second
    assert "\\n" in second.splitlines()[0]


def test_a_part_of_a_name_is_no_name() -> None:
    with pytest.raises(LLMError, match="'proj' is no linear layer"):
        check_targets(small("llama"), ["proj"])
    with pytest.raises(LLMError, match="names nothing"):
        check_targets(small("llama"), [])


def test_needs_no_weights() -> None:
    with torch.device("meta"):
        assert "q_proj" in all_linear(small("llama"))
