"""What the shipped lm-eval tasks have in common: their items are made in memory, not downloaded.

    from llm_recipes.evaluation.task_data import in_memory
    in_memory({"test": [{"question": "2 + 3 =", "answer": " 5"}]})

A task names a function that makes its items (`custom_dataset` in its YAML file); lm-eval calls it
with the task's metadata and dataset_kwargs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

HINT = "Custom kwargs can be passed to"


def in_memory(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The items of each split as lm-eval wants them: a `datasets.Dataset`."""
    from datasets import Dataset

    return {name: Dataset.from_list([dict(item) for item in rows]) for name, rows in splits.items()}


def _says_more(entry: logging.LogRecord) -> bool:
    return HINT not in str(entry.msg)


# lm-eval warns with every task whose items are made by a function that the function takes options.
logging.getLogger("lm_eval.api.task").addFilter(_says_more)
