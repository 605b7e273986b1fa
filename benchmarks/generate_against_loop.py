"""How much faster generate.py's batches are than the usual loop over prompts, on a CPU.

    llm-run python benchmarks/generate_against_loop.py --model FOLDER

The loop is the one that manuals show: one prompt after the other, `model.to(device)` each time,
`generate(**inputs, max_new_tokens=100, do_sample=True)`, decode. The same model in the same
process, dtype and number of tokens; loading counts in neither; interleaved pairs, medians.
Prints a table, and JSON with --output.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from llm_recipes.cli import run_recipe

PROMPT = "My favourite condiment is"


def benchmark(
    model: str,
    prompts: list[int] | None = None,
    new_tokens: int = 100,
    pairs: int = 3,
    output: Path | None = None,
) -> None:
    """Time the loop and generate.py's batches in interleaved pairs.

    Args:
        model: Model folder.
        prompts: Numbers of prompts to measure; repeat the option for several; null: 10 and 64.
        new_tokens: Tokens a completion, exactly.
        pairs: Measurements of each.
        output: JSON file for the results; null: none.
    """
    import torch

    from llm_recipes.device import choose_device, device_name, use_granted_cpus
    from llm_recipes.files import write_text
    from llm_recipes.model_folder import find_model
    from llm_recipes.models import load_model, measure_size

    device = choose_device("cpu")
    cpus = use_granted_cpus()
    loaded = load_model(find_model(model), None, device, torch.float32, False)
    rows = []
    for count in prompts or [10, 64]:
        texts = [PROMPT] * count
        loop = partial(by_loop, loaded.model, loaded.tokenizer, texts, new_tokens)
        batch = partial(by_batches, loaded, texts, new_tokens)
        warm_up(loaded, new_tokens)
        rows.append({"prompts": count, **compare(loop, batch, pairs, count * new_tokens)})
        print(table(rows[-1:]), flush=True)
    size = measure_size(loaded.model)
    result = {
        "benchmark": "generate_against_loop",
        "parameters": size.parameters,
        "dtype": "fp32",
        "new_tokens": new_tokens,
        "pairs": pairs,
        "cpu": device_name(device),
        "cpus": cpus,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }
    if output is not None:
        write_text(output, json.dumps(result, indent=2) + "\n")


def by_loop(model: Any, tokenizer: Any, texts: Sequence[str], new_tokens: int) -> int:
    """One prompt after the other; the tokens generated."""
    generated = 0
    for text in texts:
        inputs = tokenizer([text], return_tensors="pt").to("cpu")
        model.to("cpu")
        ids = model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=True, eos_token_id=None, pad_token_id=0
        )
        tokenizer.batch_decode(ids)[0]
        generated += ids.shape[1] - inputs["input_ids"].shape[1]
    return generated


def by_batches(loaded: Any, texts: Sequence[str], new_tokens: int) -> int:
    """What generate.py does with the same prompts; the tokens generated."""
    from llm_recipes.batching import complete_all
    from llm_recipes.decoding import Decoder, DecodeSettings, Request
    from llm_recipes.models import measure_size
    from llm_recipes.prompts import Prompt, render
    from llm_recipes.sampling import Sampling

    decoder = Decoder(
        loaded.model, loaded.tokenizer, DecodeSettings(new_tokens, Sampling(temperature=1.0))
    )
    asked = [Prompt(number, text=text) for number, text in enumerate(texts)]
    requests = [Request(p.key, 0, tuple(render(p, loaded.tokenizer, "raw"))) for p in asked]
    size = measure_size(loaded.model)
    return sum(len(c.token_ids) for c in complete_all(decoder, requests, size, None))


def warm_up(loaded: Any, new_tokens: int) -> None:
    """Run both once, so that neither pays for first-time imports and allocations."""
    by_loop(loaded.model, loaded.tokenizer, [PROMPT], min(new_tokens, 8))
    by_batches(loaded, [PROMPT] * 2, min(new_tokens, 8))


def compare(
    loop: Callable[[], int], batch: Callable[[], int], pairs: int, tokens: int
) -> dict[str, Any]:
    """Medians of interleaved pairs; each must have made exactly so many tokens."""
    seconds: dict[str, list[float]] = {"loop": [], "batch": []}
    for _ in range(pairs):
        for name, work in (("loop", loop), ("batch", batch)):
            start = time.perf_counter()
            made = work()
            seconds[name].append(time.perf_counter() - start)
            if made != tokens:
                raise RuntimeError(f"{name} made {made} tokens, not {tokens}")
    ratios = [slow / fast for slow, fast in zip(seconds["loop"], seconds["batch"], strict=True)]
    return {
        "loop_s": statistics.median(seconds["loop"]),
        "batch_s": statistics.median(seconds["batch"]),
        "loop_tokens_per_s": tokens / statistics.median(seconds["loop"]),
        "batch_tokens_per_s": tokens / statistics.median(seconds["batch"]),
        "ratio": statistics.median(ratios),
        "all_seconds": seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lines for people."""
    lines = ["prompts   loop tokens/s   generate.py tokens/s   ratio"]
    lines += [
        f"{row['prompts']:7d}   {row['loop_tokens_per_s']:13.0f}"
        f"   {row['batch_tokens_per_s']:20.0f}   {row['ratio']:5.1f}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_recipe(benchmark)
