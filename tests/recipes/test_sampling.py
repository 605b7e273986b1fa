"""Sampling: the right distribution, controls as published, noise that is a pure function."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from llm_recipes.sampling import (  # noqa: E402
    Sampling,
    negative_exponential_noise,
    noise_key,
    nucleus_threshold,
    sample_tokens,
)

SCORES = torch.tensor([0.0, 1.0, 2.0, -1.0, 3.0, 0.5])


def draws(sampling: Sampling, count: int = 20000, scores: torch.Tensor = SCORES) -> torch.Tensor:
    """How often each token is drawn, over prompts and positions."""
    keys = torch.tensor([noise_key(sampling.seed, str(i), 0) for i in range(100)])
    keys = keys.to(torch.int32).repeat(count // 100, 1)
    positions = torch.arange(count // 100, dtype=torch.int32).repeat_interleave(100)
    tokens = sample_tokens(scores.expand(count, -1), sampling, keys, positions, None)
    return torch.bincount(tokens, minlength=len(scores)) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    expected = torch.softmax(SCORES / temperature, dim=-1)
    # 20,000 draws: five standard deviations are at most 0.018.
    assert torch.allclose(draws(Sampling(temperature)), expected, atol=0.018)


def test_a_large_vocabulary_is_drawn_evenly() -> None:
    found = draws(Sampling(1.0), 100000, torch.zeros(1000))
    assert found.max() < 2 * found.mean()  # ten standard deviations
    assert found.min() > 0.3 * found.mean()


def test_top_k_and_top_p_keep_what_they_should() -> None:
    # By probability: token 4 (0.60), 2 (0.22), 1 (0.08), 5 (0.05), 0 (0.03), 3 (0.01).
    assert set(draws(Sampling(1.0, top_k=2)).nonzero().flatten().tolist()) == {2, 4}
    assert set(draws(Sampling(1.0, top_p=0.59)).nonzero().flatten().tolist()) == {4}
    assert set(draws(Sampling(1.0, top_p=0.85)).nonzero().flatten().tolist()) == {1, 2, 4}


@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_nucleus_is_the_smallest_set_with_the_mass(spread: float) -> None:
    # A flat distribution needs more tokens than the first guess of the nucleus holds.
    torch.manual_seed(0)
    probabilities = torch.softmax(spread * torch.randn(4, 2000), dim=-1)
    kept = probabilities >= nucleus_threshold(probabilities, 0.9)
    for row, inside in zip(probabilities, kept, strict=True):
        mass, smallest = row[inside].sum(), row[inside].min()
        assert mass >= 0.9 - 1e-5
        assert mass - smallest < 0.9


def test_noise_is_a_function_of_key_and_position() -> None:
    keys = torch.tensor([noise_key(0, "a", 0), noise_key(0, "b", 0)], dtype=torch.int32)
    positions = torch.tensor([3, 9], dtype=torch.int32)
    noise = negative_exponential_noise(keys, positions, 1000)
    alone = negative_exponential_noise(keys[1:], positions[1:], 1000)
    assert torch.equal(noise[1:], alone)
    keys = torch.tensor([noise_key(0, str(i), 0) for i in range(50)], dtype=torch.int32)
    for other in (keys, keys + 1):
        rows = negative_exponential_noise(other, torch.full((50,), 7, dtype=torch.int32), 4000)
        assert -rows.mean() == pytest.approx(1.0, abs=0.02)
        assert rows.var() == pytest.approx(1.0, abs=0.05)
    correlations = torch.corrcoef(rows) - torch.eye(50)
    assert correlations.abs().max() < 0.1  # six standard deviations


def test_keys_differ_in_each_part() -> None:
    keys = {noise_key(s, p, n) for s in range(3) for p in ("1", "11", "a\ud800") for n in range(3)}
    assert len(keys) == 27
