"""Load a model's tokenizer, without the model.

from llm_recipes.tokenizer_folder import load_tokenizer
folder, tokenizer = load_tokenizer("models/tiny")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.model_folder import TOKENIZER_FILES, find_model, first_line


def load_tokenizer(name: str, trust_remote_code: bool = False) -> tuple[Path, Any]:
    """The folder and the tokenizer in it; the model's weights may be elsewhere.

    Args:
        name: The folder, or a hub's name.
        trust_remote_code: Run Python code that the tokenizer brings along.

    Raises:
        LLMError: If there is no folder or no tokenizer that transformers knows.
    """
    folder = Path(name).expanduser()
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        folder = find_model(name).path  # says what is missing, or downloads
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return folder, AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # for files that do not fit, libraries raise what they like
        fix = "see that its files belong together"
        raise LLMError(f"cannot load the tokenizer in {folder}", first_line(error), fix) from None
