"""The sizes of a Llama: params.json, config.json, and the table of Meta's releases."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_recipes.errors import LLMError, faults_of
from llm_recipes.meta.params import (
    Params,
    config_of,
    ffn_width,
    params_of,
    params_of_config,
    raw_params,
    read_params,
)
from llm_recipes.meta.releases import RELEASES, Release, context_of, releases_like

LLAMA_2 = Params(64, 2, 8, 4, 224, 512, 1e-5, 10000.0, None)
LLAMA_3_2 = Params(2048, 16, 32, 8, 8192, 128256, 1e-5, 500000.0, 32.0)
FILE = Path("it's; ü/params.json")
RAW: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 8, "norm_eps": 1e-5, "vocab_size": -1}


def params(release: Release) -> Params:
    sizes = (release.dim, release.layers, release.heads, release.kv_heads, release.ffn)
    eps = release.norm_eps or 1e-5
    return Params(*sizes, release.vocabulary, eps, release.rope_theta, release.rope_factor)


def faults(work: Callable[[], object]) -> str:
    found = faults_of(work)
    assert found, "nothing was raised"
    return "\n".join(map(str, found))


def written(folder: Path, **changes: object) -> Path:
    path = folder / "it's; ü.json"
    path.write_text(json.dumps({k: v for k, v in {**RAW, **changes}.items() if v != "absent"}))
    return path


# Published sizes: dim, multiple_of, ffn_dim_multiplier, intermediate_size of each config.json.
@pytest.mark.parametrize(
    ("dim", "multiple", "multiplier", "width"),
    [
        (4096, 256, None, 11008),
        (6656, 256, None, 17920),
        (8192, 4096, 1.3, 28672),
        (4096, 1024, 1.3, 14336),
        (16384, 4096, 1.2, 53248),
        (2048, 256, 1.5, 8192),
    ],
)
def test_width_of_the_feed_forward(
    dim: int, multiple: int, multiplier: float | None, width: int
) -> None:
    assert ffn_width(dim, multiple, multiplier) == width


@pytest.mark.parametrize("nested", [False, True])
def test_params_are_read(nested: bool, tmp_path: Path) -> None:
    raw = {**RAW, "n_kv_heads": 4, "multiple_of": 32, "ffn_dim_multiplier": 1.3, "unknown": [1]}
    path = tmp_path / "params.json"
    path.write_text(json.dumps({"model": raw} if nested else raw))
    assert read_params(path) == raw
    assert params_of(read_params(path), 512, None, path) == LLAMA_2


def test_what_is_left_out_has_its_old_value(tmp_path: Path) -> None:
    path = written(tmp_path, n_kv_heads=None, vocab_size="absent")
    found = params_of(read_params(path), 512, None, path)
    assert found == replace(LLAMA_2, kv_heads=8, ffn=256)
    # Written by Meta's own code: all that its settings have.
    path = written(tmp_path, vision_chunk_size=-1, lora_args=None, max_seq_len=2048, rope_theta=5e5)
    assert params_of(read_params(path), 512, None, path).rope_theta == 500000.0


def test_the_default_theta_is_that_of_the_generation() -> None:
    assert params_of(RAW, 32000, None, FILE).rope_theta == 10000.0
    assert params_of(RAW, 128256, None, FILE).rope_theta == 500000.0
    for theta in (10000.0, 500000.0):
        for vocabulary in (32000, 128256):
            sizes = replace(LLAMA_2, rope_theta=theta, vocabulary=vocabulary)
            raw = raw_params(sizes)
            assert params_of(raw, vocabulary, None, FILE) == sizes
            assert ("rope_theta" in raw) == (theta > 1e4 or vocabulary > 1e5)


def test_all_that_is_wrong_is_said(tmp_path: Path) -> None:
    wrong = {
        "dim": "64",
        "n_layers": True,
        "n_heads": 8.0,
        "norm_eps": "absent",
        "n_kv_heads": 0,
        "vocab_size": -2,
        "multiple_of": 10**12,
        "ffn_dim_multiplier": -1.3,
        "rope_theta": float("nan"),
        "use_scaled_rope": "yes",
        "vision_chunk_size": 448,
        "moe_args": {"num_experts": 16},
        "hidden_dim": 14336,
    }
    said = faults(lambda: read_params(written(tmp_path, **wrong)))
    for key in wrong:
        assert key in said, key
    assert "n_layers is true, not a whole number above 0" in said
    assert "norm_eps is missing" in said and "describes no plain Llama" in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_heads": 7}, "64 cannot be divided by 7 heads"),
        ({"n_kv_heads": 3}, "8 heads cannot share 3 K/V heads"),
        ({"n_heads": 64}, "no pairs to rotate"),
        ({"n_layers": 10**9}, "n_layers is 1000000000, more than"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in faults(lambda: read_params(written(tmp_path, **changes)))


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"", "is not JSON"),
        (b'{"dim": 64,', "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"dim": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1]", "holds no JSON object"),
        (b'{"dim": "' + b" " * (1 << 21), "more than 1048576 bytes"),
        (None, "No such file"),
    ],
)
def test_damaged_files(contents: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    if contents is not None:
        path.write_bytes(contents)
    said = faults(lambda: read_params(path))
    assert str(path) in said and expected in said
    assert "it is no file" in faults(lambda: read_params(tmp_path))


def test_the_factor_is_asked_for() -> None:
    def said(release: str) -> str:
        raw = raw_params(params(next(r for r in RELEASES if r.name == release)))
        return faults(lambda: params_of(raw, 128256, None, FILE))

    assert "fix: --rope-factor 32: its sizes are those of Llama 3.2 1B" in said("Llama 3.2 1B")
    assert "fix: --rope-factor 8: its sizes are those of Llama 3.1 8B" in said("Llama 3.1 8B")
    assert "Llama 3.1 70B and Llama 3.3 70B" in said("Llama 3.3 70B")
    unknown = faults(lambda: params_of({**RAW, "use_scaled_rope": True}, 512, None, FILE))
    assert "--rope-factor 8 for" in unknown and "--rope-factor 32 for" in unknown


def test_a_factor_that_does_not_fit() -> None:
    said = faults(lambda: params_of(RAW, 512, 8.0, FILE))
    assert f"--rope-factor 8 does not fit {FILE}" in said and "leave it out" in said
    for factor in (0.0, 0.5, -8.0, float("nan"), float("inf")):
        raw = {**RAW, "use_scaled_rope": True}
        assert "is no factor" in faults(lambda: params_of(raw, 512, factor, FILE))  # noqa: B023
    assert params_of({**RAW, "use_scaled_rope": True}, 512, 32, FILE).rope_factor == 32.0


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_releases(release: Release) -> None:
    sizes = params(release)
    assert ffn_width(release.dim, release.multiple_of, release.multiplier) == release.ffn
    assert release in releases_like(sizes)
    assert releases_like(replace(sizes, dim=64)) == ()
    raw = raw_params(sizes)
    assert params_of(raw, raw["vocab_size"], release.rope_factor, FILE) == sizes
    others = [other for other in releases_like(sizes) if other.degree != release.degree]
    assert not others  # the number of shards follows from the sizes


def test_contexts() -> None:
    found = {release.name: context_of(params(release))[0] for release in RELEASES}
    assert found["LLaMA 65B"] == 2048 and found["Llama 2 7B"] == 4096
    assert found["Code Llama 7B Python"] == found["Code Llama 34B"] == 16384
    assert found["Llama 3 8B"] == 8192 and found["Llama 3.1 8B"] == found["Llama 3.2 3B"] == 131072
    # LLaMA 7B and Llama 2 7B cannot be told apart where the second has the first's epsilon.
    context, said = context_of(replace(params(RELEASES[4]), norm_eps=1e-6))
    assert context == 2048 and "LLaMA 7B 2048, Llama 2 7B 4096" in said
    assert context_of(LLAMA_2) == (None, "")


def test_any_width_can_be_written() -> None:
    chance = random.Random(0)
    for _ in range(3000):
        dim = chance.choice([2, 6, 64, 666, 4096])
        sizes = replace(LLAMA_2, dim=dim, heads=1, kv_heads=1)
        sizes = replace(sizes, ffn=chance.randint(1, chance.choice([9, 999, 99_999])))
        raw = raw_params(sizes)
        assert params_of(raw, sizes.vocabulary, None, FILE) == sizes
    assert raw_params(replace(LLAMA_2, dim=4096, ffn=14336))["ffn_dim_multiplier"] < 1.34
    with pytest.raises(LLMError, match="cannot express"):
        raw_params(replace(LLAMA_2, ffn=(1 << 70) + 1))


@pytest.mark.parametrize("sizes", [LLAMA_2, LLAMA_3_2], ids=["plain", "scaled"])
def test_transformers_reads_our_config(sizes: Params, tmp_path: Path) -> None:
    from transformers import AutoConfig

    made = config_of(sizes, tied=True, context=131072, dtype="bfloat16", bos=1, eos=[2, 3])
    (tmp_path / "config.json").write_text(json.dumps(made))
    found = AutoConfig.from_pretrained(tmp_path)
    assert found.rope_parameters["rope_theta"] == sizes.rope_theta
    assert found.rope_parameters["rope_type"] == ("llama3" if sizes.rope_factor else "default")
    if sizes.rope_factor:
        assert found.rope_parameters["factor"] == 32.0
        assert found.rope_parameters["low_freq_factor"] == 1.0
        assert found.rope_parameters["high_freq_factor"] == 4.0
        assert found.rope_parameters["original_max_position_embeddings"] == 8192
    assert found.max_position_embeddings == 131072 and found.tie_word_embeddings
    assert found.eos_token_id == [2, 3] and str(found.dtype) == "torch.bfloat16"
    assert found.head_dim == sizes.head_size and found.intermediate_size == sizes.ffn
    assert params_of_config(made, FILE) == sizes
    found.save_pretrained(tmp_path)  # in the form of transformers' own version
    assert params_of_config(json.loads((tmp_path / "config.json").read_text()), FILE) == sizes


def test_configs_of_other_models_are_refused() -> None:
    made = config_of(LLAMA_3_2, tied=True, context=9, dtype="bfloat16", bos=1, eos=2)
    wrong: dict[str, Any] = {
        "model_type": "mistral",
        "architectures": ["LlamaForSequenceClassification"],
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 128,
        "quantization_config": {"bits": 4},
        "partial_rotary_factor": 0.5,
    }
    scaling = {**made["rope_scaling"], "low_freq_factor": 2.0, "high_freq_factor": 8.0}
    scaling["original_max_position_embeddings"] = 4096
    said = faults(lambda: params_of_config({**made, **wrong, "rope_scaling": scaling}, FILE))
    for key in [*wrong, *(key for key in scaling if key not in ("rope_type", "factor"))]:
        assert key in said, key
    for kind in ("yarn", "linear", "dynamic"):
        changed = {**made, "rope_scaling": {"type": kind, "factor": 2.0}}
        assert "rope_type" in faults(lambda: params_of_config(changed, FILE))  # noqa: B023
    assert params_of_config({**made, "pretraining_tp": 2}, FILE) == LLAMA_3_2


def test_damaged_configs() -> None:
    made = config_of(LLAMA_3_2, tied=True, context=9, dtype="bfloat16", bos=1, eos=2)
    broken = {**made, "hidden_size": "2048", "vocab_size": None, "rope_theta": True}
    broken["rope_scaling"] = {"rope_type": "llama3", "factor": -1}
    said = faults(lambda: params_of_config(broken, FILE))
    for key in ("hidden_size", "vocab_size is missing", "rope_theta", "factor is -1"):
        assert key in said, key
    assert "32 heads cannot share 7" in faults(
        lambda: params_of_config({**made, "num_key_value_heads": 7}, FILE)
    )
