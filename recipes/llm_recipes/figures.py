"""Pictures are written whole or not at all.

from llm_recipes.figures import save_figure
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llm_recipes.files import write_fault


def save_figure(figure: Any, path: Path, dots_per_inch: int = 120) -> Path:
    """Write a picture as PNG so that half of one is never seen; returns its path.

    Raises:
        LLMError: If the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=dots_per_inch)
        os.replace(temporary, path)
    except OSError as error:
        raise write_fault(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
