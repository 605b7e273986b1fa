"""The sizes of a Llama: from params.json and config.json, and back.

from llm_recipes.meta.params import Params, params_of, read_params
params = params_of(read_params(path), 32000, None, path)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.meta.releases import releases_like
from llm_recipes.meta.settings import Checks, read_object, shown

MOST_LAYERS = 10_000
LARGEST_SIZE = 1 << 31
LARGEST_THETA = 1e12
MULTIPLE_OF = 256  # of the feed-forward's width, where params.json does not say
LLAMA_3_FROM = 100_000  # tokens of the vocabulary; Llama 1 and 2 have 32,000, 3 has 128,256
# Where params.json does not say: Meta's code for Llama 1 and 2, and for 3.
ROPE_THETA, ROPE_THETA_3 = 10000.0, 500000.0
# The constants of the scaled rotary frequencies that all releases share.
LOW_FREQUENCY, HIGH_FREQUENCY, ORIGINAL_CONTEXT = 1.0, 4.0, 8192
# Keys of checkpoints that this format is also used for, and that are other models than a Llama.
FOREIGN = {
    "moe_args": "it has experts",
    "moe": "it has experts",
    "vision_args": "it sees images",
    "vision_chunk_size": "it sees images",
    "vision_model": "it sees images",
    "use_qk_norm": "it normalizes queries and keys",
    "quantization_args": "its weights are quantized",
    "lora_args": "it holds an adapter",
    "hidden_dim": "it is in Mistral's format",
}


@dataclass(frozen=True)
class Params:
    """What a Llama is made of.

    dim: numbers a token's state has. ffn: width of the feed-forward. vocabulary: rows of the
    embeddings and of the output head. rope_factor: of the scaled rotary frequencies that 3.1
    brought (its other constants are the same in all releases); None: they are not scaled.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    rope_factor: float | None

    @property
    def head_size(self) -> int:
        """Numbers a head."""
        return self.dim // self.heads


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Width of the feed-forward: two thirds of 4 dim, times the multiplier, rounded up.

    Shazeer, "GLU Variants Improve Transformer" (2020), for the two thirds; the order in which
    Meta rounds decides the result.
    """
    width = int(8 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def read_params(path: Path) -> dict[str, Any]:
    """What params.json says, checked, with a nested "model" unwrapped.

    Raises:
        LLMError: With everything that is missing or wrong in it.
    """
    raw = read_object(path)
    if isinstance(raw.get("model"), dict):
        raw = raw["model"]
    wrong = Checks(raw)
    wrong.number("dim", int, largest=LARGEST_SIZE)
    wrong.number("n_layers", int, largest=MOST_LAYERS)
    wrong.number("n_heads", int, largest=LARGEST_SIZE)
    wrong.number("norm_eps", float, largest=1)
    wrong.number("n_kv_heads", int, optional=True, largest=LARGEST_SIZE)
    wrong.number("multiple_of", int, optional=True, largest=LARGEST_SIZE)
    wrong.number("ffn_dim_multiplier", float, optional=True, largest=LARGEST_SIZE)
    wrong.number("rope_theta", float, optional=True, largest=LARGEST_THETA)
    if raw.get("vocab_size") != -1:
        wrong.number("vocab_size", int, optional=True, largest=LARGEST_SIZE)
    if not isinstance(raw.get("use_scaled_rope"), bool | None):
        wrong.lines.append(f"use_scaled_rope is {shown(raw['use_scaled_rope'])}, not true or false")
    if not wrong.lines:
        kv_heads = raw.get("n_kv_heads") or raw["n_heads"]
        wrong.lines += _head_faults(raw["dim"], raw["n_heads"], kv_heads)
    foreign = [f"{why}: {key}" for key, why in FOREIGN.items() if _used(raw.get(key))]
    fix = "only models of text with plain weights are read: Llama 1, 2, 3, 3.1, 3.2, 3.3"
    _raise_wrong(path, wrong.lines, foreign, fix)
    return raw


def params_of(
    raw: Mapping[str, Any], vocabulary: int, rope_factor: float | None, path: Path
) -> Params:
    """The sizes that params.json describes.

    Args:
        raw: What `read_params` returned.
        vocabulary: Rows of the embeddings; params.json often has -1.
        rope_factor: Of the scaled rotary frequencies, which params.json lacks; None: not known.
        path: The file, for messages.

    Raises:
        LLMError: If the factor is needed and not known, or known and not needed.
    """
    heads = raw["n_heads"]
    multiple = raw.get("multiple_of") or MULTIPLE_OF
    params = Params(
        dim=raw["dim"],
        layers=raw["n_layers"],
        heads=heads,
        kv_heads=raw.get("n_kv_heads") or heads,
        ffn=ffn_width(raw["dim"], multiple, raw.get("ffn_dim_multiplier")),
        vocabulary=vocabulary,
        norm_eps=float(raw["norm_eps"]),
        rope_theta=float(raw.get("rope_theta") or _default_theta(vocabulary)),
        rope_factor=None,
    )
    scaled = raw.get("use_scaled_rope") is True
    if rope_factor is None:
        if scaled:
            raise _unknown_factor(params, path)
        return params
    if not (math.isfinite(rope_factor) and rope_factor >= 1):
        why = "it must be 1 or more"
        raise LLMError(f"--rope-factor {rope_factor:g} is no factor", why, _factor_for(params))
    if not scaled:
        why = "its rotary frequencies are not scaled: use_scaled_rope is not true"
        raise LLMError(f"--rope-factor {rope_factor:g} does not fit {path}", why, "leave it out")
    return replace(params, rope_factor=float(rope_factor))


def raw_params(params: Params) -> dict[str, Any]:
    """A params.json for these sizes, as Meta's own code reads it.

    Raises:
        LLMError: If no multiple and multiplier give the width of the feed-forward.
    """
    multiple, multiplier = _rounding(params)
    raw: dict[str, Any] = {
        "dim": params.dim,
        "n_layers": params.layers,
        "n_heads": params.heads,
        "vocab_size": params.vocabulary,
        "multiple_of": multiple,
        "norm_eps": params.norm_eps,
    }
    # What older code of Meta's does not know is left out where it says nothing.
    if params.kv_heads != params.heads:
        raw["n_kv_heads"] = params.kv_heads
    if multiplier is not None:
        raw["ffn_dim_multiplier"] = multiplier
    if params.vocabulary > LLAMA_3_FROM or params.rope_theta != ROPE_THETA:
        raw["rope_theta"] = params.rope_theta
    if params.rope_factor is not None:
        raw["use_scaled_rope"] = True
    return raw


def config_of(
    params: Params, *, tied: bool, context: int, dtype: str, bos: int, eos: int | list[int]
) -> dict[str, Any]:
    """transformers' config.json for a model.

    The keys are those of its version 4, which version 5 and llama.cpp's converter read too.

    Args:
        params: Its sizes.
        tied: Whether the output head is the embeddings.
        context: Tokens it was trained for.
        dtype: Of its weights, by torch's name: bfloat16.
        bos: Id of the token that begins a text.
        eos: Ids of the tokens that end one.
    """
    scaling = None
    if params.rope_factor is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": params.rope_factor,
            "low_freq_factor": LOW_FREQUENCY,
            "high_freq_factor": HIGH_FREQUENCY,
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "head_dim": params.head_size,
        "hidden_act": "silu",
        "hidden_size": params.dim,
        "initializer_range": 0.02,
        "intermediate_size": params.ffn,
        "max_position_embeddings": context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": params.heads,
        "num_hidden_layers": params.layers,
        "num_key_value_heads": params.kv_heads,
        "rms_norm_eps": params.norm_eps,
        "rope_scaling": scaling,
        "rope_theta": params.rope_theta,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": params.vocabulary,
    }


def params_of_config(config: Mapping[str, Any], path: Path) -> Params:
    """The sizes of a plain Llama that transformers' config.json describes, of version 4 or 5.

    Args:
        config: What the file holds.
        path: The file, for messages.

    Raises:
        LLMError, ExceptionGroup: What is wrong in it, and what Meta's format has no place for.
    """
    rope = _rope(config)
    wrong = Checks({"rope_theta": ROPE_THETA, "rms_norm_eps": 1e-6, **config, **rope})
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        wrong.number(key, int, largest=LARGEST_SIZE)
    wrong.number("num_hidden_layers", int, largest=MOST_LAYERS)
    wrong.number("num_key_value_heads", int, optional=True, largest=LARGEST_SIZE)
    wrong.number("head_dim", int, optional=True, largest=LARGEST_SIZE)
    wrong.number("rms_norm_eps", float, largest=1)
    wrong.number("rope_theta", float, largest=LARGEST_THETA)
    found = wrong.values
    scaled = found.get("rope_type", "default") == "llama3"
    if scaled:
        wrong.number("factor", float, largest=1000)
    if not wrong.lines:
        dim, heads = found["hidden_size"], found["num_attention_heads"]
        wrong.lines += _head_faults(dim, heads, found.get("num_key_value_heads") or heads)
    foreign = _foreign(found)
    if not wrong.lines and found.get("head_dim") not in (None, dim // heads):
        foreign.append(f"head_dim is {found['head_dim']}, not {dim} / {heads}")
    fix = "Meta's format has no place for these: only plain Llamas can be converted"
    _raise_wrong(path, wrong.lines, foreign, fix)
    return Params(
        dim=dim,
        layers=found["num_hidden_layers"],
        heads=heads,
        kv_heads=found.get("num_key_value_heads") or heads,
        ffn=found["intermediate_size"],
        vocabulary=found["vocab_size"],
        norm_eps=float(found["rms_norm_eps"]),
        rope_theta=float(found["rope_theta"]),
        rope_factor=float(found["factor"]) if scaled else None,
    )


def _used(value: Any) -> bool:
    """Whether a setting is there; Meta's code has -1 for numbers that are not."""
    return bool(value) and value != -1


def _default_theta(vocabulary: int) -> float:
    """What Meta's code takes where params.json says nothing."""
    return ROPE_THETA_3 if vocabulary > LLAMA_3_FROM else ROPE_THETA


def _raise_wrong(path: Path, wrong: list[str], foreign: list[str], fix: str) -> None:
    """Raise what is wrong in a file, and what makes it another model's, with what to do then."""
    faults = []
    if wrong:
        what = f"{path} is not as it should be"
        again = "copy it again from where the weights are from"
        faults.append(LLMError(what, "\n".join(wrong), again))
    if foreign:
        faults.append(LLMError(f"{path} describes no plain Llama", "\n".join(foreign), fix))
    raise_all(faults)


def _head_faults(dim: int, heads: int, kv_heads: int) -> list[str]:
    if dim % heads:
        return [f"the width {dim} cannot be divided by {heads} heads"]
    faults = []
    if dim // heads % 2:
        faults.append(f"heads of {dim // heads} numbers have no pairs to rotate")
    if heads % kv_heads:
        faults.append(f"{heads} heads cannot share {kv_heads} K/V heads evenly")
    return faults


def _unknown_factor(params: Params, path: Path) -> LLMError:
    what = f"{path} does not say by how much its rotary frequencies are scaled"
    why = "use_scaled_rope is true, and the factor is in Meta's code: 8 in 3.1 and 3.3, 32 in 3.2"
    return LLMError(what, why, _factor_for(params))


def _factor_for(params: Params) -> str:
    like = [release for release in releases_like(params) if release.rope_factor is not None]
    factors = {release.rope_factor for release in like}
    if len(factors) == 1:
        names = " and ".join(release.name for release in like)
        return f"--rope-factor {factors.pop():g}: its sizes are those of {names}"
    return "--rope-factor 8 for what comes from Llama 3.1 or 3.3, --rope-factor 32 for 3.2"


def _rounding(params: Params) -> tuple[int, float | None]:
    """multiple_of and ffn_dim_multiplier that give the feed-forward's width."""
    for release in releases_like(params):
        return release.multiple_of, release.multiplier

    def fits(multiple: int, multiplier: float | None) -> bool:
        return ffn_width(params.dim, multiple, multiplier) == params.ffn

    multiples = [1 << power for power in range(12, -1, -1)]
    for multiple in sorted(multiples, key=lambda multiple: multiple != MULTIPLE_OF):
        if fits(multiple, None):
            return multiple, None
    base = int(8 * params.dim / 3)
    largest = next(multiple for multiple in multiples if params.ffn % multiple == 0)
    for multiple in (largest, 1):
        # Anything above the next smaller multiple is rounded up to the width: few digits do.
        for digits in range(1, 18):
            multiplier = round((params.ffn - multiple / 2 + (multiple == 1)) / base, digits)
            if fits(multiple, multiplier):
                return multiple, multiplier
    what = f"params.json cannot express a feed-forward of {params.ffn} numbers"
    raise LLMError(what, f"no multiplier gives it for a width of {params.dim}")


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the rotary embeddings, wherever this version of transformers puts them."""
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), Mapping):
            found |= config[key]
    if "type" in found:
        found.setdefault("rope_type", found.pop("type"))
    return found


def _foreign(found: Mapping[str, Any]) -> list[str]:
    """What a plain Llama does not have."""
    is_llama: dict[str, Callable[[Any], bool]] = {
        "model_type": lambda value: value == "llama",
        "architectures": lambda value: value in (None, ["LlamaForCausalLM"], ["LlamaModel"]),
        "hidden_act": lambda value: value in (None, "silu", "swish"),
        "attention_bias": lambda value: not value,
        "mlp_bias": lambda value: not value,
        "quantization_config": lambda value: not value,
        "partial_rotary_factor": lambda value: value in (None, 1, 1.0),
        "rope_type": lambda value: value in (None, "default", "llama3"),
    }
    if found.get("rope_type") == "llama3":
        is_llama |= {
            "low_freq_factor": lambda value: value == LOW_FREQUENCY,
            "high_freq_factor": lambda value: value == HIGH_FREQUENCY,
            "original_max_position_embeddings": lambda value: value == ORIGINAL_CONTEXT,
        }
    return [
        f"{key} is {shown(found.get(key))}"
        for key, check in is_llama.items()
        if not check(found.get(key))
    ]
