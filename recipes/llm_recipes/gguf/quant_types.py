"""The quantization types of llama.cpp: their names, and what a name that isn't one may have meant.

    llm-run python -m llm_recipes.gguf.quant_types

A type is a recipe for a file (Q4_K_M); it gives most tensors one type (Q4_K) and some a better one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from llm_recipes.errors import LLMError


@dataclass(frozen=True)
class QuantType:
    """A type as llama-quantize names it. tensor_type: what most tensors get. use: for people."""

    name: str
    tensor_type: str
    use: str = ""

    @property
    def uses_importance(self) -> bool:
        """Whether an importance matrix changes anything: with 8 bits and more nothing is rounded
        by it (ggml_quantize_chunk in ggml.c).
        """
        return self.tensor_type not in ("F32", "BF16", "F16", "Q8_0")


# The order of size. llama_ftype_get_default_type in llama-quant.cpp says what most tensors get.
TYPES = {
    kind.name: kind
    for kind in (
        QuantType("F32", "F32"),
        QuantType("BF16", "BF16", "as models are trained"),
        QuantType("F16", "F16"),
        QuantType("Q8_0", "Q8_0", "hardly different from F16"),
        QuantType("Q6_K", "Q6_K", "very good"),
        QuantType("Q5_1", "Q5_1", "older than Q5_K"),
        QuantType("Q5_K_M", "Q5_K", "good"),
        QuantType("Q5_K_S", "Q5_K"),
        QuantType("Q5_0", "Q5_0", "older than Q5_K"),
        QuantType("Q4_1", "Q4_1", "older than Q4_K"),
        QuantType("Q4_K_M", "Q4_K", "the usual choice"),
        QuantType("Q4_K_S", "Q4_K"),
        QuantType("Q4_0", "Q4_0", "older than Q4_K; fast on some CPUs"),
        QuantType("IQ4_NL", "IQ4_NL", "any row that is a multiple of 32"),
        QuantType("IQ4_XS", "IQ4_XS", "the best of its size"),
        QuantType("MXFP4_MOE", "MXFP4", "for mixtures of experts that were trained in it"),
        QuantType("Q3_K_L", "Q3_K"),
        QuantType("Q3_K_M", "Q3_K"),
        QuantType("IQ3_M", "IQ3_S"),
        QuantType("IQ3_S", "IQ3_S"),
        QuantType("Q3_K_S", "Q3_K"),
        QuantType("IQ3_XS", "IQ3_S"),
        QuantType("IQ3_XXS", "IQ3_XXS"),
        QuantType("Q2_K", "Q2_K", "a loss that everybody sees"),
        QuantType("Q2_K_S", "Q2_K"),
        QuantType("IQ2_M", "IQ2_S"),
        QuantType("IQ2_S", "IQ2_XS"),
        QuantType("IQ2_XS", "IQ2_XS"),
        QuantType("Q2_0", "Q2_0", "for models that were trained in it"),
        QuantType("IQ2_XXS", "IQ2_XXS"),
        QuantType("TQ2_0", "TQ2_0", "for models that were trained with three values"),
        QuantType("IQ1_M", "IQ1_M"),
        QuantType("TQ1_0", "TQ1_0", "for models that were trained with three values"),
        QuantType("IQ1_S", "IQ1_S"),
        QuantType("Q1_0", "Q1_0", "for models that were trained in it"),
    )
}
# The first three as llama-quantize has them.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "FP32": "F32"}
ALIASES["BFLOAT16"] = "BF16"


def resolve_types(names: Sequence[str]) -> tuple[list[QuantType], list[LLMError]]:
    """The types that these names mean, largest first and each once, and a fault for every other.

    Args:
        names: In capitals or not; each may be several with commas between them.
    """
    found: dict[str, QuantType] = {}
    faults = []
    for name in (part.strip() for text in names for part in text.split(",")):
        plain = name.upper().replace("-", "_")
        kind = TYPES.get(ALIASES.get(plain, plain))
        if kind is not None:
            found[kind.name] = kind
        elif name:
            faults.append(_unknown(name, plain))
    if not found and not faults:
        faults.append(LLMError("--types names no type", fix="--types Q8_0,Q4_K_M"))
    return [kind for kind in TYPES.values() if kind.name in found], faults


def nearest_types(name: str) -> list[str]:
    """Names of types that are spelled alike, the likeliest first."""
    plain = name.upper().replace("-", "_")
    starts = [known for known in TYPES if plain and known.startswith(f"{plain}_")]
    alike = difflib.get_close_matches(plain, [*TYPES, *ALIASES], n=3, cutoff=0.5)
    return list(dict.fromkeys([*starts, *(ALIASES.get(known, known) for known in alike)]))[:3]


def tensor_type_faults(option: str, name: str | None) -> list[LLMError]:
    """Whether a name is a type of tensors (Q4_K and not Q4_K_M), with the nearest ones if not."""
    known = sorted({kind.tensor_type for kind in TYPES.values()})
    if name is None or name.upper() in known:
        return []
    alike = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.5) or known
    return [
        LLMError(
            f"{option} {name} is no type of a tensor",
            "a tensor has one of " + ", ".join(known),
            f"{option} {alike[0]}",
        )
    ]


def _unknown(name: str, plain: str) -> LLMError:
    alike = nearest_types(plain)
    fix = f"did you mean {' or '.join(alike)}?" if alike else f"--types is of {', '.join(TYPES)}"
    return LLMError(f"unknown quantization type {name}", fix=fix)


if __name__ == "__main__":
    for shown in TYPES.values():
        print(f"{shown.name:<10} {shown.tensor_type:<8} {shown.use}".rstrip())
