"""The summary's numbers against the memory model and against arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llm_recipes.decoding import Work  # noqa: E402
from llm_recipes.device import Peak, choose_device, free_memory_bytes, measure_peak  # noqa: E402
from llm_recipes.memory import ModelShape  # noqa: E402
from llm_recipes.model_folder import folder_digest  # noqa: E402
from llm_recipes.models import ModelSize, measure_size  # noqa: E402
from llm_recipes.summary import Loading, describe, generation_metrics  # noqa: E402

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CONFIGS = [
    ("LlamaConfig", {**SHAPE, "intermediate_size": 64, "num_key_value_heads": 2}),
    ("LlamaConfig", {**SHAPE, "intermediate_size": 64, "tie_word_embeddings": True}),
    ("MistralConfig", {**SHAPE, "intermediate_size": 64, "num_key_value_heads": 1}),
    ("Qwen2Config", {**SHAPE, "intermediate_size": 64, "num_key_value_heads": 2}),
    ("GPTNeoXConfig", {**SHAPE, "intermediate_size": 64}),
    ("FalconConfig", {**SHAPE, "alibi": False}),
]


@pytest.mark.parametrize(("name", "settings"), CONFIGS)
def test_measured_size_agrees_with_the_memory_model(name: str, settings: dict[str, Any]) -> None:
    config = getattr(transformers, name)(**settings)
    size = measure_size(transformers.AutoModelForCausalLM.from_config(config))
    shape = ModelShape.from_config(config.to_dict())
    assert size.parameters == shape.parameters
    assert size.kv_bytes_per_token == shape.kv_bytes_per_token(4)
    assert size.matmul_parameters == shape.matmul_parameters
    assert size.flops(1, 100) == pytest.approx(shape.flops_per_token(100), rel=1e-6)


def test_numbers_by_hand() -> None:
    loading = Loading(2.0, 4_000_000)
    size = ModelSize(
        parameters=1000,
        matmul_parameters=900,
        head_parameters=100,
        weight_bytes=3600,
        kv_bytes_per_token=8,
        attention_width=16,
        vocabulary=10,
        hidden_size=4,
    )
    work = Work(
        prefill_s=0.5,
        decode_s=2.0,
        first_token_s=[0.5],
        prompt_tokens=20,
        generated_tokens=12,
        decoded_tokens=10,
        steps=5,
        prefills=1,
        prompt_attended=110,
        decode_attended=150,
    )
    found = generation_metrics(
        loading, size, work, Peak(10000.0, 1e6, "by hand"), {"peak_host_bytes": 10**9}
    )
    assert found["tokens_per_s"] == 12 / 2.5
    assert found["tokens_per_min"] == 60 * 12 / 2.5
    assert found["prompt_tokens_per_s"] == 40
    assert found["weight_bytes_per_token"] == 3600 * 5 / 10
    assert found["bytes_read"] == 3600 * 5 + 8 * 150
    assert found["decode_mbu"] == (3600 * 5 + 8 * 150) / 2.0 / 10000
    # Two rows: the head runs for two of the twenty prompt tokens.
    assert found["prompt_flop"] == 2 * 800 * 20 + 2 * 100 * 2 + 4 * 16 * 110
    assert found["generated_flop"] == 2 * 900 * 10 + 4 * 16 * 150
    assert found["load_bytes_per_s"] == 2_000_000
    text = describe(found)
    assert "MBU 96.0 %" in text
    assert "288 tokens/min" in text


def test_unknown_peak_and_no_work_are_said_and_do_not_fail() -> None:
    loading = Loading(1.0, 1)
    size = ModelSize(1, 1, 1, 1, 1, 1, 1, 1)
    memory = {"peak_host_bytes": 1}
    found = generation_metrics(loading, size, Work(), Peak(None, None, "unknown"), memory)
    assert found["decode_mbu"] is None
    assert found["tokens_per_s"] is None
    assert "MBU ?" in describe(found)


def test_measured_peak_and_memory_are_plausible() -> None:
    device = choose_device("cpu")
    peak = measure_peak(device, torch.float32)
    assert peak.bytes_per_s is not None
    assert peak.flops_per_s is not None
    assert 1e8 < peak.bytes_per_s < 1e13
    assert 1e8 < peak.flops_per_s < 1e15
    assert 10**6 < free_memory_bytes(device) < 10**14


def test_digest_tells_weights_apart(model_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    before = folder_digest(tmp_path)
    assert folder_digest(tmp_path) == before
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    changed = folder_digest(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 1}))
    assert len({before, changed, folder_digest(tmp_path)}) == 3
