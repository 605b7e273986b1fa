"""A fine-tuning whose command line has been checked.

    from llm_recipes.sft_job import Job
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_recipes.attention import Attention
from llm_recipes.model_folder import ModelFolder


@dataclass(frozen=True)
class Job:
    """settings: the options by name. config: the model's config.json. compute_dtype: bf16, fp16 or
    fp32. targets: modules that get an adapter. layers: class names of the model's layers.
    """

    settings: dict[str, Any]
    folder: ModelFolder
    config: dict[str, Any]
    device: torch.device
    compute_dtype: str
    attention: Attention
    targets: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def output(self) -> Path:
        """The output folder."""
        path: Path = self.settings["output"]
        return path
