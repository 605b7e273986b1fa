"""Inference speed of an 8B Llama's shape on a GPU: how close a step comes to the memory's limit.

    llm-run python benchmarks/gpu_inference.py --output gpu_inference.json

Random weights (speed does not depend on them), made on the device, nothing downloaded. Measures
MBU at batch 1 with static cache and CUDA graphs, then tokens/s at several batch sizes of
generate.py's decoder (compiled and not), of transformers' plain `generate`, and of a loop with one
prompt after the other. `--shape tiny --device cpu` tries the program itself without a GPU.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from llm_recipes.cli import run_recipe

# Llama 3 8B: https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/config.json
SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
}
LOOP_PROMPTS = 2  # the loop's rate does not depend on how many there are


class NoText:
    """Stands in for a tokenizer: the random model's tokens mean nothing."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """No text."""
        return ""


def benchmark(
    shape: Literal["8b", "tiny"] = "8b",
    batches: list[int] | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 128,
    repeats: int = 3,
    device: str = "cuda",
    compiled: bool = True,
    output: Path | None = None,
) -> None:
    """Measure MBU at batch 1 and tokens/s over batch sizes.

    Args:
        shape: 8b (16 GB in bf16), or tiny to try the program.
        batches: Batch sizes; repeat the option for several; null: 1 4 16 64 256.
        prompt_tokens: Tokens a prompt.
        new_tokens: Tokens a completion, exactly.
        repeats: Measurements of each; the median counts.
        device: cuda, cuda:N or cpu.
        compiled: Measure CUDA graphs too (off for a quick look, or without a compiler).
        output: JSON file for the results; null: none.
    """
    from llm_recipes.device import choose_device, choose_dtype, device_name, measure_peak
    from llm_recipes.files import write_text
    from llm_recipes.models import measure_size

    where = choose_device(device)
    dtype = choose_dtype("auto", where)
    peak = measure_peak(where, dtype)
    model = random_model(shape, where, dtype)
    size = measure_size(model)
    rows: list[dict[str, Any]] = []
    result = {
        "benchmark": "gpu_inference",
        "shape": shape,
        "parameters": size.parameters,
        "dtype": str(dtype),
        "device": device_name(where),
        "peak": dataclasses.asdict(peak),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "rows": rows,
    }
    for batch in batches or [1, 4, 16, 64, 256]:
        ids = random_prompts(batch, prompt_tokens, SHAPES[shape]["vocab_size"])
        for name, run in methods(model, ids, new_tokens, compiled):
            row = measured(name, batch, run, repeats, size, peak, where)
            rows.append(row)
            print(line(row), flush=True)
        if output is not None:  # each time: a job's end leaves what was measured
            write_text(output, json.dumps(result, indent=2) + "\n")


def random_model(shape: str, device: Any, dtype: Any) -> Any:
    """A Llama with random weights, made on the device in its precision."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], eos_token_id=None))
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def random_prompts(count: int, length: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Prompts of random tokens."""
    import torch

    generator = torch.Generator().manual_seed(count)
    rows = torch.randint(3, vocabulary, (count, length), generator=generator)
    return [tuple(row) for row in rows.tolist()]


def methods(
    model: Any, ids: Sequence[tuple[int, ...]], new_tokens: int, compiled: bool
) -> Iterable[tuple[str, Callable[[], Any]]]:
    """What is compared; each returns the decoder whose work it did, or the number of tokens."""
    from llm_recipes.decoding import Decoder, DecodeSettings, Request
    from llm_recipes.sampling import Sampling

    requests = [Request(str(number), 0, row) for number, row in enumerate(ids)]

    def decoded(decoder: Decoder) -> Decoder:
        decoder.reset_work()
        for _ in decoder.complete(requests):
            pass
        return decoder

    for name, graphs in (("generate.py compiled", True), ("generate.py eager", False)):
        if graphs and not compiled:
            continue
        decoder = Decoder(
            model, NoText(), DecodeSettings(new_tokens, Sampling(temperature=1.0), compiled=graphs)
        )
        yield name, lambda decoder=decoder: decoded(decoder)
    yield "transformers generate", lambda: plain(model, ids, new_tokens)
    if len(ids) == 1:
        loop = [ids[0]] * LOOP_PROMPTS
        yield "loop", lambda: sum(plain(model, [row], new_tokens) for row in loop)


def plain(model: Any, ids: Sequence[tuple[int, ...]], new_tokens: int) -> int:
    """transformers' generate with its defaults; the tokens generated."""
    import torch

    model.to(model.device)
    tensor = torch.tensor(ids, device=model.device)
    made = model.generate(
        tensor,
        attention_mask=torch.ones_like(tensor),
        max_new_tokens=new_tokens,
        do_sample=True,
        pad_token_id=0,
    )
    return int(made.numel() - tensor.numel())


def measured(
    name: str, batch: int, run: Callable[[], Any], repeats: int, size: Any, peak: Any, device: Any
) -> dict[str, Any]:
    """Median of several runs after a first that compiles; out of memory is a result too."""
    from llm_recipes.device import is_out_of_memory, synchronize

    row: dict[str, Any] = {"method": name, "batch": batch}
    times, mbus, tokens = [], [], 0
    try:
        start = time.perf_counter()
        run()
        synchronize(device)
        row["first_run_s"] = time.perf_counter() - start
        for _ in range(repeats):
            start = time.perf_counter()
            result = run()
            synchronize(device)
            times.append(time.perf_counter() - start)
            tokens = result if isinstance(result, int) else result.work.generated_tokens
            if not isinstance(result, int):
                mbus.append(mbu(result.work, size, peak))
                if result.settings.compiled:
                    row["compiled"] = result.compiled  # False: compiling failed
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {**row, "error": "out of memory"}
    finally:
        gc.collect()
    seconds = sorted(times)[len(times) // 2]
    row |= {"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds}
    if mbus:
        row["decode_mbu"] = sorted(mbus)[len(mbus) // 2]
    return row


def mbu(work: Any, size: Any, peak: Any) -> float:
    """Share of the measured bandwidth that the decode steps reached."""
    read = size.weight_bytes * work.steps + size.kv_bytes_per_token * work.decode_attended
    return float(read / work.decode_s / peak.bytes_per_s)


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    start = f"batch {row['batch']:4d}  {row['method']:22s}"
    if "error" in row:
        return f"{start} {row['error']}"
    share = f"  MBU {100 * row['decode_mbu']:.1f} %" if "decode_mbu" in row else ""
    failed = "  (not compiled)" if row.get("compiled") is False else ""
    return f"{start} {row['tokens_per_s']:9.0f} tokens/s{share}{failed}"


if __name__ == "__main__":
    run_recipe(benchmark)
