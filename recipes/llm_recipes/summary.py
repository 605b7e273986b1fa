"""What a generation cost and how close it came to the machine's limits, in numbers with units.

from llm_recipes.summary import generation_metrics, describe
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_recipes.decoding import Work
from llm_recipes.device import GB, Peak
from llm_recipes.models import ModelSize


@dataclass(frozen=True)
class Loading:
    """How long reading a model took, and how many bytes its files have."""

    seconds: float
    bytes: int


def generation_metrics(
    loading: Loading, size: ModelSize, work: Work, peak: Peak, memory: Mapping[str, int]
) -> dict[str, Any]:
    """All numbers of a run; the unit is in the name, shares are fractions, None is unknown.

    A decode step reads all weights once, however large the batch, and the keys and values of every
    running row: MBU = those bytes / (time x bandwidth). MFU = (2 N tokens + 4 L h attended tokens)
    / (time x peak FLOP/s), N the matmul parameters, L h layers x heads x head size (Chowdhery et
    al. 2022, appendix B, https://arxiv.org/abs/2204.02311). Padding counts nowhere.
    """
    generating_s = work.prefill_s + work.decode_s
    prompt_flops = size.flops(work.prompt_tokens, work.prompt_attended)
    # Only the last token of a prompt goes through the output head.
    prompt_flops -= 2.0 * size.head_parameters * (work.prompt_tokens - prompts_run(work))
    decode_flops = size.flops(work.decoded_tokens, work.decode_attended)
    read = size.weight_bytes * work.steps + size.kv_bytes_per_token * work.decode_attended
    return {
        "load_s": loading.seconds,
        "load_bytes": loading.bytes,
        "load_bytes_per_s": _ratio(loading.bytes, loading.seconds),
        "parameters": size.parameters,
        "first_token_s": statistics.median(work.first_token_s) if work.first_token_s else None,
        "generating_s": generating_s,
        "prompt_tokens": work.prompt_tokens,
        "prompt_tokens_per_s": _ratio(work.prompt_tokens, work.prefill_s),
        "generated_tokens": work.generated_tokens,
        "tokens_per_s": _ratio(work.generated_tokens, generating_s),
        "tokens_per_min": _ratio(60 * work.generated_tokens, generating_s),
        "decode_tokens_per_s": _ratio(work.decoded_tokens, work.decode_s),
        "rows_per_step": _ratio(work.decoded_tokens, work.steps),
        "step_s": _ratio(work.decode_s, work.steps),
        "weight_bytes_per_step": size.weight_bytes,
        "weight_bytes_per_token": _ratio(size.weight_bytes * work.steps, work.decoded_tokens),
        "bytes_read": read,
        "bytes_read_per_s": _ratio(read, work.decode_s),
        "prompt_flop": prompt_flops,
        "generated_flop": decode_flops,
        "decode_mbu": _ratio(_ratio(read, work.decode_s), peak.bytes_per_s),
        "decode_mfu": _ratio(_ratio(decode_flops, work.decode_s), peak.flops_per_s),
        "prompt_mfu": _ratio(_ratio(prompt_flops, work.prefill_s), peak.flops_per_s),
        "peak_bytes_per_s": peak.bytes_per_s,
        "peak_flop_per_s": peak.flops_per_s,
        "peak_source": peak.source,
        **memory,
    }


def describe(metrics: Mapping[str, Any]) -> str:
    """The metrics as a few lines for people."""
    m = metrics
    memory = f"{m['peak_host_bytes'] / GB:.2f} GB host"
    if "peak_gpu_bytes" in m:
        memory += f", {m['peak_gpu_bytes'] / GB:.2f} GB GPU"
    lines = [
        f"load       {m['load_s']:.2f} s for {m['load_bytes'] / GB:.3g} GB"
        f" ({_in(m['load_bytes_per_s'], GB)} GB/s)",
        f"prompts    {m['prompt_tokens']} tokens, {_in(m['prompt_tokens_per_s'])} tokens/s,"
        f" first token after {_in(m['first_token_s'], 1e-3)} ms",
        f"generated  {m['generated_tokens']} tokens in {m['generating_s']:.2f} s:"
        f" {_in(m['tokens_per_s'])} tokens/s, {_in(m['tokens_per_min'])} tokens/min"
        f" ({_in(m['rows_per_step'])} rows a step, {_in(m['step_s'], 1e-3)} ms a step)",
        f"reads      {_in(m['weight_bytes_per_token'], 1e6)} MB of weights a token;"
        f" {m['bytes_read'] / GB:.3g} GB in all, {_in(m['bytes_read_per_s'], GB)} GB/s,"
        f" MBU {_percent(m['decode_mbu'])}",
        f"computes   {(m['prompt_flop'] + m['generated_flop']) / GB:.3g} GFLOP;"
        f" MFU {_percent(m['prompt_mfu'])} on prompts, {_percent(m['decode_mfu'])} generating",
        f"peak       {_in(m['peak_bytes_per_s'], GB)} GB/s,"
        f" {_in(m['peak_flop_per_s'], 1e12)} TFLOP/s ({m['peak_source']})",
        f"memory     {memory} at most",
    ]
    return "\n".join(lines)


def prompts_run(work: Work) -> int:
    """Prompts that were run."""
    return work.generated_tokens - work.decoded_tokens


def _ratio(number: float | None, by: float | None) -> float | None:
    return number / by if number is not None and by else None


def _in(number: float | None, unit: float = 1.0) -> str:
    return "?" if number is None else f"{number / unit:.4g}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.1f} %"
