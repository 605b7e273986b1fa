"""Run recipes/finetune/sft.py as its users do, with a stopwatch: sft.py CASE.json"""

from __future__ import annotations

import contextlib
import json
import runpy
import shutil
import sys
from pathlib import Path

from stopwatch import Stopwatch

HOME = Path(__file__).resolve().parents[2]


def main() -> None:
    """One run from an empty folder."""
    watch = Stopwatch()
    case = watch.case
    output = Path(case["folder"]) / "sft"
    shutil.rmtree(output, ignore_errors=True)
    options = {
        "model": case["model"], "data": case["data"], "output": output, "method": case["method"],
        "format": "alpaca", "prompt_style": "alpaca", "max_length": case["max_length"],
        "held_out": 0, "learn_prompt": case["learn_prompt"], "packing": case["packing"],
        "max_steps": case["steps"], "global_batch": case["global_batch"],
        "batch_size": case["global_batch"], "learning_rate": case["learning_rate"],
        "schedule": "constant", "warmup": 0, "save_every": 0, "seed": case["seed"],
        "device": "cpu", "lora_rank": case["lora_rank"],
    }
    recipe = HOME / "recipes/finetune/sft.py"
    sys.path[:0] = [str(HOME / "recipes")]
    sys.argv = [str(recipe)]
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        sys.argv += [f"--{name.replace('_', '-')}", text]
    with contextlib.suppress(SystemExit):  # the run is judged by what it wrote
        runpy.run_path(str(recipe), run_name="__main__")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    record = json.loads((output / "run.json").read_text())
    watch.write(
        [row["loss"] for row in rows],
        tokens=[row["tokens"] for row in rows],
        own_tokens_per_s=record["metrics"]["tokens_per_s"],
        versions=record.get("versions"),
    )


if __name__ == "__main__":
    main()
