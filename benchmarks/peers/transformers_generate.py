"""Complete prompts with transformers' own `generate`: transformers_generate.py CASE.json

CASE: model (folder), prompts (texts), batch (prompts at once), new_tokens (of each, exactly), and
result (a file to write): seconds of loading and of generating, numbers of tokens.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))


def main() -> None:
    """Load, generate a little to have everything imported, then everything."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llm_recipes.device import use_granted_cpus
    from llm_recipes.models import import_architecture, read_mapped_weights

    case: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    use_granted_cpus()
    tokenizer = AutoTokenizer.from_pretrained(case["model"], padding_side="left")
    import_architecture(Path(case["model"]), trust_remote_code=False)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32)
    read_mapped_weights(model)
    load_s = time.perf_counter() - start
    tokenizer.pad_token = tokenizer.eos_token
    generate(model, tokenizer, case["prompts"][: case["batch"]], 2)
    start = time.perf_counter()
    read, made = 0, 0
    for first in range(0, len(case["prompts"]), case["batch"]):
        rows = case["prompts"][first : first + case["batch"]]
        tokens = generate(model, tokenizer, rows, case["new_tokens"])
        read, made = read + tokens[0], made + tokens[1]
    seconds = time.perf_counter() - start
    result = {"load_s": load_s, "seconds": seconds, "prompt_tokens": read, "tokens": made}
    Path(case["result"]).write_text(json.dumps(result))


def generate(model: Any, tokenizer: Any, texts: list[str], new_tokens: int) -> tuple[int, int]:
    """Tokens of the prompts and of their completions."""
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    made = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.batch_decode(made)
    read = int(inputs["attention_mask"].sum())
    return read, int(made.numel() - inputs["input_ids"].numel())


if __name__ == "__main__":
    main()
