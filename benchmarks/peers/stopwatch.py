"""Time the optimizer steps of any trainer that is made of torch, from outside and all alike.

    watch = Stopwatch(case)   # a case: JSON that finetune_against_peers.py writes
    ...train...
    watch.write(losses)

A step's time is from the end of the optimizer's step before it to the end of its own: data, logging
and whatever else the trainer does between two steps belong to it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


class Stopwatch:
    """Notes the time at the end of each step of each torch optimizer."""

    def __init__(self) -> None:
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.case: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
        torch.set_num_threads(self.case["threads"])
        self.ends: list[tuple[float, float]] = []  # on the clock, and of this process's CPU time
        register_optimizer_step_post_hook(
            lambda *unused: self.ends.append((time.perf_counter(), time.process_time()))
        )

    def batches(self) -> list[list[dict[str, list[int]]]]:
        """The rows of each step: input_ids, labels and the lengths of the sequences in a row."""
        lines = Path(self.case["batches"]).read_text().splitlines()
        return [json.loads(line) for line in lines]

    def write(self, losses: list[float], **facts: Any) -> None:
        """Write what was seen to the case's `result`. losses: of the steps, or of the first ones.

        Raises:
            RuntimeError: If there were other steps than the case's.
        """
        import torch

        if len(self.ends) != self.case["steps"]:
            raise RuntimeError(f"{len(self.ends)} optimizer steps, not {self.case['steps']}")
        pairs = list(zip(self.ends, self.ends[1:], strict=False))
        result = {
            "seconds": [after[0] - before[0] for before, after in pairs],
            "cpu_seconds": [after[1] - before[1] for before, after in pairs],
            "losses": losses,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **facts,
        }
        Path(self.case["result"]).write_text(json.dumps(result))
