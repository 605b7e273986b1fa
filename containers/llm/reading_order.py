"""Write the order in which the image's main programs read its files: reading_order.py OUTPUT

Runs at the end of a build; the image's data are then packed in this order. A compressed image is
read in blocks that hold many small files each: in the packer's own order, which is that of names,
each import touches blocks all over the image, and the blocks that the FUSE server keeps are thrown
out before their next file is asked for, so that the same block is unpacked again and again.
benchmarks/imports.py and benchmarks/squashfs.py show what that costs.

OUTPUT gets one absolute path a line, first read first.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

# As a recipe imports them: the most common first.
MODULES = ("torch", "transformers", "transformers.models.auto", "transformers.models.llama",
           "transformers.models.llama.modeling_llama", "transformers.generation",
           "accelerate", "peft", "datasets", "trl", "trl.trainer.sft_trainer",
           "trl.trainer.dpo_trainer", "jsonargparse", "llama_cpp", "lm_eval", "lm_eval.evaluator",
           "deepspeed", "fairscale", "distributed", "matplotlib.pyplot")


def main() -> None:
    """Import everything and write what was opened for it."""
    opened: dict[str, None] = {}

    def remember(event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(values[0], str):
            opened.setdefault(values[0])
        elif event == "import" and isinstance(values[1], str):  # an extension module
            opened.setdefault(values[1])

    # What Python itself had read before this line.
    for module in list(sys.modules.values()):
        for name in (getattr(module, "__cached__", None), getattr(module, "__file__", None)):
            if name:
                opened.setdefault(name)
    sys.addaudithook(remember)
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:  # the smoke test says what must be there
            print(f"reading order: {name}: {error}")
        if name == "transformers.models.auto":
            getattr(sys.modules["transformers"], "AutoModelForCausalLM", None)
    # Shared libraries that the loader opened; by name, as their addresses are random.
    maps = Path("/proc/self/maps").read_text().splitlines()
    for line in sorted({line.split(maxsplit=5)[-1] for line in maps}):
        opened.setdefault(line)
    packed = ("/usr/", "/opt/", "/etc/")
    files = dict.fromkeys(os.path.realpath(name) for name in opened if name.startswith(packed))
    files.pop(os.path.realpath(__file__), None)  # the build removes it
    Path(sys.argv[1]).write_text("".join(f"{name}\n" for name in files if os.path.isfile(name)),
                                 encoding="utf-8")


if __name__ == "__main__":
    main()
