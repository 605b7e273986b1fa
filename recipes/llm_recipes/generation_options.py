"""Whether the options of a generation can be meant; all faults at once.

from llm_recipes.generation_options import option_faults
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_recipes.encoding import is_utf8, not_utf8
from llm_recipes.errors import LLMError


def option_faults(options: Mapping[str, Any]) -> list[LLMError]:
    """Every option whose value cannot be meant, and options that exclude each other."""
    o = options
    sources = [o["prompt"] is not None, o["prompts"] is not None, o["chat"]]
    checks = [
        (
            sum(sources) == 1,
            "exactly one of --prompt, --prompts and --chat is needed",
            'such as --prompt "Hello", or --prompts FILE',
        ),
        (o["max_new_tokens"] >= 1, "--max-new-tokens {max_new_tokens} is too small", "1 or more"),
        (
            o["temperature"] >= 0,
            "--temperature {temperature} is negative",
            "0 takes the likeliest token, 1 samples as the model says",
        ),
        (0 < o["top_p"] <= 1, "--top-p {top_p} is no share", "above 0 up to 1; 1 is off"),
        (o["top_k"] >= 0, "--top-k {top_k} is negative", "1 or more; 0 is off"),
        (
            o["repetition_penalty"] > 0,
            "--repetition-penalty {repetition_penalty} is not positive",
            "1 is off",
        ),
        (o["samples"] >= 1, "--samples {samples} is too small", "1 or more"),
        (
            o["samples"] == 1 or o["temperature"] > 0,
            "--samples {samples} at --temperature 0 would all be the same",
            "--temperature 0.8",
        ),
        (
            o["batch_size"] == "auto" or o["batch_size"] >= 1,
            "--batch-size {batch_size} is too small",
            "auto, or 1 or more",
        ),
        (all(o["stop"] or ["-"]), "--stop is an empty text", "leave it out to turn it off"),
        (not (o["chat"] and o["output"]), "--chat writes no --output", "leave one of them out"),
        (
            not (o["stream"] and o["output"]),
            "--stream shows text and writes no --output",
            "leave one of them out",
        ),
    ]
    faults = [LLMError(what.format(**o), fix=fix) for valid, what, fix in checks if not valid]
    texts = {"--system": [o["system"]], "--stop": o["stop"] or []}
    faults += [not_utf8(name) for name, given in texts.items() if not all(map(is_utf8, given))]
    return faults
