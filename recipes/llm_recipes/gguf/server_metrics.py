"""What a server has done, in numbers: for its run record and for people.

from llm_recipes.gguf.server_metrics import describe, parse_metrics, server_numbers
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MINUTE = 60.0
COUNTERS = {
    "prompt_tokens": "prompt_tokens_total",
    "cached_prompt_tokens": "prompt_tokens_cached_total",
    "completion_tokens": "tokens_predicted_total",
}
# Of one request: where several run at once, their time counts for each of them.
RATES = {
    "prompt_tokens_per_s": ("prompt_tokens_total", "prompt_seconds_total"),
    "request_tokens_per_s": ("tokens_predicted_total", "tokens_predicted_seconds_total"),
}


def parse_metrics(text: str) -> dict[str, float]:
    """Numbers of Prometheus' text format, without llama.cpp's prefix."""
    found = re.findall(r"^llamacpp:(\w+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def server_numbers(found: Mapping[str, float], requests: int, uptime_s: float) -> dict[str, Any]:
    """The record's metrics of a server.

    Args:
        found: llama-server's own numbers; empty if it could not tell them any more.
        requests: Sequences that it has answered, or given up.
        uptime_s: Seconds since it was ready.
    """
    numbers: dict[str, Any] = {"uptime_s": round(uptime_s, 3), "requests": requests}
    numbers |= {name: round(found[key]) for name, key in COUNTERS.items() if key in found}
    for name, (tokens, seconds) in RATES.items():
        if found.get(seconds):
            numbers[name] = round(found[tokens] / found[seconds], 3)
    if "n_busy_slots_per_decode" in found:
        numbers["busy_slots"] = found["n_busy_slots_per_decode"]
    return numbers


def describe(numbers: Mapping[str, Any]) -> str:
    """The server's work in one line."""
    text = f"served for {numbers['uptime_s'] / MINUTE:.1f} minutes: {numbers['requests']} requests"
    if "prompt_tokens" in numbers:
        text += f", {numbers['prompt_tokens']} prompt tokens"
        text += f", {numbers['completion_tokens']} tokens generated"
    if "request_tokens_per_s" in numbers:
        text += f", {numbers['request_tokens_per_s']:.1f} tokens/s for a request"
    return text
