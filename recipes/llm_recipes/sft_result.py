"""Make the adapter or the model out of a checkpoint and give its files their names in the output.

    from llm_recipes.sft_result import write_result
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_recipes.consolidation import Dtype, consolidate
from llm_recipes.files import write_fault
from llm_recipes.record import file_hashes

SHARD_BYTES = 5 * 10**9
STAGING = ".result-"
# Beside a model's files an adapter's would be taken for part of it, and shards for other shards.
OF_A_RESULT = re.compile(
    r"adapter_(config\.json|model\.safetensors)|(generation_)?config\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


def result_hashes(output: Path) -> dict[str, str | None]:
    """SHA-256 of the adapter's or model's files, by name."""
    return file_hashes(output, filter(OF_A_RESULT.fullmatch, os.listdir(output)))


def write_result(
    checkpoint: Path, output: Path, dtype: Dtype, base: Path, say: Callable[[str], None]
) -> Mapping[str, Any]:
    """Write a checkpoint's weights, configuration and tokenizer into the output folder.

    An earlier result there stays as it is until every file of the new one is on the disk, and then
    goes. The run's lock is held: what another has left half-written goes too.

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
        for left in output.glob(f"{STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=output))
        facts = consolidate(checkpoint, staging, dtype, SHARD_BYTES, base, say)
        files = [path for path in sorted(staging.iterdir()) if path.is_file()]
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for path in files:
            os.replace(path, output / path.name)
        for path in output.iterdir():
            if OF_A_RESULT.fullmatch(path.name) and path.name not in {new.name for new in files}:
                path.unlink()
    except OSError as error:
        raise write_fault(output, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return facts
