"""Packed sequences don't see each other: for each family and attention, or it is not packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_recipes import attention
from llm_recipes.attention import PACKABLE, VARLEN, choose_attention, register_varlen
from llm_recipes.errors import LLMError
from llm_recipes.tiny_models import ARCHITECTURES, Shape, model_config
from llm_recipes.training_batches import Batches

CPU = torch.device("cpu")
LENGTHS = (7, 12, 7, 3)


def small_model(family: Any, implementation: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = model_config(family, Shape(64, 128, 2, 4, None, 300, 128))
    for name, value in changes.items():
        setattr(config, name, value)
    register_varlen()
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def packed_batch(ids: list[list[int]]) -> dict[str, Any]:
    flat = [token for sequence in ids for token in sequence]
    row = {"input_ids": flat, "labels": flat, "seq_lengths": [len(sequence) for sequence in ids]}
    batch = Batches(True, 0)([row])
    for name in ("counts", "labels"):
        batch.pop(name)
    return batch


def sequences(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 300, (n,), generator=generator).tolist() for n in LENGTHS]


@torch.no_grad()
def leak(model: Any) -> float:
    """How far the logits of the other sequences move when one of them becomes another text."""
    before = sequences()
    largest = 0.0
    for changed in range(len(before)):
        after = [list(ids) for ids in before]
        after[changed] = sequences(seed=1)[changed]
        logits = [model(**packed_batch(ids), use_cache=False).logits[0] for ids in (before, after)]
        starts = [sum(LENGTHS[:n]) for n in range(len(LENGTHS))]
        for other, start in enumerate(starts):
            part = slice(start, start + LENGTHS[other])
            moved = float((logits[0][part] - logits[1][part]).abs().max())
            if other != changed:
                largest = max(largest, moved)
            else:
                assert moved > 1e-2, "the change must change something"
    return largest


@pytest.mark.parametrize("attention", [VARLEN, "sdpa", "eager"])
@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_no_sequence_sees_another(family: str, attention: str) -> None:
    assert leak(small_model(family, attention)) == 0.0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_falcon_leaks_and_is_refused(attention: str) -> None:
    assert leak(small_model("falcon", attention)) > 1e-2
    assert not choose_attention("falcon", "auto", CPU).packs
    with pytest.raises(LLMError, match="does not work with falcon"):
        choose_attention("falcon", "varlen", CPU)


def test_an_unknown_family_is_padded() -> None:
    chosen = choose_attention("newcomer", "auto", CPU)
    assert (chosen.name, chosen.packs) == ("sdpa", False)


def test_every_family_is_decided() -> None:
    assert set(ARCHITECTURES) - PACKABLE == {"falcon"}


@torch.no_grad()
@pytest.mark.parametrize("family", sorted(PACKABLE))
@pytest.mark.parametrize("window", [None, 4])
def test_varlen_equals_each_sequence_alone(family: str, window: int | None) -> None:
    changes: dict[str, Any] = {}
    if window and family == "mistral":
        changes = {"sliding_window": window}
    elif window and family == "qwen2":
        changes = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
        changes |= {"layer_types": ["sliding_attention"] * 2}
    elif window:
        pytest.skip("no sliding window in this family")
    model, alone = (small_model(family, name, **changes) for name in (VARLEN, "sdpa"))
    ids = sequences()
    logits = model(**packed_batch(ids), use_cache=False).logits[0]
    start = 0
    for sequence in ids:
        expected = alone(torch.tensor([sequence]), use_cache=False).logits[0]
        found = logits[start : start + len(sequence)]
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        start += len(sequence)


def test_gradients_flow_through_varlen() -> None:
    grads = []
    for name in (VARLEN, "sdpa"):
        model = small_model("llama", name)
        model(**packed_batch(sequences()), use_cache=False).logits.sum().backward()
        grads.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    torch.testing.assert_close(*grads, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("hidden", "calls"), [(64, 2), (48, 0)])  # heads of 16, and of 12
def test_the_kernel_gets_what_it_takes(
    hidden: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fp32 weights too: rotary embeddings make fp32 of queries and keys under autocast."""
    from torch.nn.attention import varlen

    found: list[Any] = []

    def kernel(*given: Any, **options: Any) -> torch.Tensor:
        found.append(given)
        q, k, v, starts, _, longest, _ = given
        assert {x.dtype for x in (q, k, v)} == {torch.bfloat16}
        assert starts.dtype == torch.int32 and longest == max(LENGTHS)
        return attention._by_length(q, k, v, LENGTHS, 0.0, options["scale"], None)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    model = small_model("llama", VARLEN, hidden_size=hidden, head_dim=hidden // 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(**packed_batch(sequences()), use_cache=False).logits
        monkeypatch.setattr(attention, "has_varlen_kernel", lambda device: True)
        logits = model(**packed_batch(sequences()), use_cache=False).logits
    assert len(found) == calls
    torch.testing.assert_close(logits, expected)
