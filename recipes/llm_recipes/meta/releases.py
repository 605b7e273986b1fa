"""Meta's releases of Llama: their sizes, number of shards and what params.json leaves out.

    from llm_recipes.meta.releases import context_of, releases_like
    [release.name for release in releases_like(params)]

Sources of the numbers: params.json and config.json of each release on its model page, the model
cards (contexts, tied embeddings; for Code Llama 70B Meta's answer in
https://github.com/meta-llama/codellama/issues/188), and for 3.1 and later the list of models of the
package llama-models (number of shards, sizes), whose code also holds the two factors of the rotary
scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # params.py takes from here
    from llm_recipes.meta.params import Params


@dataclass(frozen=True)
class Release:
    """One release. degree: shards it comes in; context: tokens it was trained for.

    rope_factor: of the scaled rotary frequencies; None: they are not scaled. multiple_of and
    multiplier: how its params.json says the width of the feed-forward. norm_eps: None if copies
    with 1e-5 and with 1e-6 are about.
    """

    name: str
    degree: int
    context: int
    rope_factor: float | None
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tied: bool
    rope_theta: float
    norm_eps: float | None
    multiple_of: int
    multiplier: float | None


def _first(
    name: str, degree: int, dim: int, layers: int, heads: int, ffn: int, eps: float = 1e-6
) -> Release:
    sizes = (dim, layers, heads, heads, ffn, 32000)
    return Release(name, degree, 2048, None, *sizes, False, 10000.0, eps, 256, None)


def _second(
    name: str, degree: int, dim: int, layers: int, heads: int, kv_heads: int, ffn: int
) -> Release:
    sizes = (dim, layers, heads, kv_heads, ffn, 32000)
    grouped = kv_heads < heads
    rounding = (4096, 1.3) if grouped else (256, None)
    eps = 1e-5 if grouped else None
    return Release(name, degree, 4096, None, *sizes, False, 10000.0, eps, *rounding)


def _code(
    name: str,
    degree: int,
    sizes: tuple[int, int, int, int, int],
    vocabulary: int,
    rounding: tuple[int, float] = (256, 1.0),
    theta: float = 1e6,
    context: int = 16384,
) -> Release:
    return Release(name, degree, context, None, *sizes, vocabulary, False, theta, 1e-5, *rounding)


def _third(
    name: str,
    degree: int,
    sizes: tuple[int, int, int, int, int],
    rounding: tuple[int, float],
    factor: float | None = None,
    tied: bool = False,
) -> Release:
    context = 8192 if factor is None else 131072
    return Release(name, degree, context, factor, *sizes, 128256, tied, 500000.0, 1e-5, *rounding)


_7B = (4096, 32, 32, 32, 11008)
_13B = (5120, 40, 40, 40, 13824)
_34B = (8192, 48, 64, 8, 22016)
_8B = (4096, 32, 32, 8, 14336)
_70B = (8192, 80, 64, 8, 28672)

RELEASES = (
    _first("LLaMA 7B", 1, 4096, 32, 32, 11008),
    _first("LLaMA 13B", 2, 5120, 40, 40, 13824),
    _first("LLaMA 33B (30B)", 4, 6656, 60, 52, 17920),
    _first("LLaMA 65B", 8, 8192, 80, 64, 22016, 1e-5),
    _second("Llama 2 7B", 1, 4096, 32, 32, 32, 11008),
    _second("Llama 2 13B", 2, 5120, 40, 40, 40, 13824),
    _second("Llama 2 70B", 8, 8192, 80, 64, 8, 28672),
    _code("Code Llama 7B", 1, _7B, 32016),
    _code("Code Llama 7B Python", 1, _7B, 32000),
    _code("Code Llama 13B", 2, _13B, 32016),
    _code("Code Llama 13B Python", 2, _13B, 32000),
    _code("Code Llama 34B", 4, _34B, 32000),
    _code("Code Llama 70B", 8, _70B, 32016, (4096, 1.3)),
    _code("Code Llama 70B Python and Instruct", 8, _70B, 32016, (4096, 1.3), 10000.0, 4096),
    _third("Llama 3 8B", 1, _8B, (1024, 1.3)),
    _third("Llama 3 70B", 8, _70B, (4096, 1.3)),
    _third("Llama 3.1 8B", 1, _8B, (1024, 1.3), 8.0),
    _third("Llama 3.1 70B", 8, _70B, (4096, 1.3), 8.0),
    _third("Llama 3.3 70B", 8, _70B, (4096, 1.3), 8.0),
    _third("Llama 3.1 405B", 8, (16384, 126, 128, 8, 53248), (4096, 1.2), 8.0),
    # Each K/V head is there twice, so that 16 processes hold one each.
    _third("Llama 3.1 405B (MP16)", 16, (16384, 126, 128, 16, 53248), (4096, 1.2), 8.0),
    _third("Llama 3.2 1B", 1, (2048, 16, 32, 8, 8192), (256, 1.5), 32.0, tied=True),
    _third("Llama 3.2 3B", 1, (3072, 28, 24, 8, 8192), (256, 1.0), 32.0, tied=True),
)


def releases_like(sizes: Params) -> tuple[Release, ...]:
    """The releases whose tensors have these shapes, whatever their other numbers are."""
    return tuple(release for release in RELEASES if _shape(release) == _shape(sizes))


def context_of(sizes: Params) -> tuple[int | None, str]:
    """Tokens that a model was trained for, and what to say about it.

    Returns:
        The context of the releases that have all these numbers, the smallest where they differ,
        with a sentence that says so; None if no release has them.
    """
    same = [release for release in releases_like(sizes) if _same_numbers(release, sizes)]
    if not same:
        return None, ""
    least = min(release.context for release in same)
    if all(release.context == least for release in same):
        return least, ""
    each = ", ".join(f"{release.name} {release.context}" for release in same)
    return least, f"releases of these sizes differ in their context: {each} tokens"


def _shape(sizes: Params | Release) -> tuple[int, ...]:
    of_layer = (sizes.dim, sizes.heads, sizes.kv_heads, sizes.ffn)
    return (*of_layer, sizes.layers, sizes.vocabulary)


def _same_numbers(release: Release, sizes: Params) -> bool:
    same_rotary = (release.rope_theta, release.rope_factor) == (sizes.rope_theta, sizes.rope_factor)
    return same_rotary and release.norm_eps in (None, sizes.norm_eps)
