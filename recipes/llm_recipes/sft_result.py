"""Make the adapter or the model out of a checkpoint and give its files their names in the output.

    from llm_recipes.sft_result import write_result
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_recipes.consolidation import Dtype, consolidate
from llm_recipes.files import write_fault

SHARD_BYTES = 5 * 10**9


def write_result(
    checkpoint: Path, output: Path, dtype: Dtype, base: Path, say: Callable[[str], None]
) -> Mapping[str, Any]:
    """Write a checkpoint's weights, configuration and tokenizer into the output folder.

    An earlier result there stays as it is until every file of the new one is on the disk.

    Args:
        checkpoint: A whole checkpoint.
        output: The run's folder.
        dtype: keep, bf16, fp16 or fp32.
        base: The model that was tuned.
        say: Tells the user something.

    Raises:
        LLMError: If the checkpoint can't be read or the output not be written.
    """
    staging = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=".result-", dir=output))
        facts = consolidate(checkpoint, staging, dtype, SHARD_BYTES, base, say)
        files = [path for path in sorted(staging.iterdir()) if path.is_file()]
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for path in files:
            os.replace(path, output / path.name)
    except OSError as error:
        raise write_fault(output, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return facts
