"""Smoke test of the image `llama-recipes`: its packages import with their locked versions, and
`python -m llama_recipes.finetuning` is the one that trains.

Run by `apptainer test`. No GPU is needed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import runpy
import sys
from pathlib import Path

# Distribution -> module.
PACKAGES = {
    "torch": "torch", "transformers": "transformers", "accelerate": "accelerate", "peft": "peft",
    "datasets": "datasets", "bitsandbytes": "bitsandbytes", "optimum": "optimum", "fire": "fire",
    "loralib": "loralib", "sentencepiece": "sentencepiece", "scipy": "scipy",
    "llama-recipes": "llama_recipes.finetuning",
}


def check_imports() -> None:
    """Import everything; installed versions are the locked ones."""
    text = Path("/opt/llm/lock.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    for name, module in PACKAGES.items():
        importlib.import_module(module)
        version = importlib.metadata.version(name)
        assert version == locked[name], f"{name} {version}, locked {locked[name]}"
        print(f"llama-recipes: {name} {version}")


def check_finetuning() -> None:
    """`python -m` looks for its model; with 0.0.5 and later it ends without a word."""
    sys.argv = ["llama_recipes.finetuning", "--model_name", "/no/model"]
    try:
        runpy.run_module("llama_recipes.finetuning", run_name="__main__", alter_sys=True)
    except OSError as error:
        assert "/no/model" in str(error), error
    else:
        raise AssertionError("finetuning did nothing")
    print("llama-recipes: finetuning is the one that trains")


def check_quantization() -> None:
    """A product with 8 bit weights, which needs OpenMP on a CPU."""
    import bitsandbytes
    import torch

    layer = bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    layer = layer.to("cuda" if torch.cuda.is_available() else "cpu")
    values = torch.ones(2, 64, device=layer.weight.device, dtype=torch.float16)
    assert layer(values).isfinite().all()
    print(f"llama-recipes: an 8 bit product on {values.device.type}")


if __name__ == "__main__":
    check_imports()
    check_quantization()
    check_finetuning()
