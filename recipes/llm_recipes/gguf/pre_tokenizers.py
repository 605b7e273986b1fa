"""How BPE tokenizers split text before they merge: llama.cpp's names, and which one fits.

    from llm_recipes.gguf.pre_tokenizers import fitting
    fitting(Source(Path("models/tiny"), "f16"))    # "qwen2"

llama.cpp has code for each way, and the converter recognizes a tokenizer by the tokens of a test
text, which depend on its vocabulary: one that was trained at home is never in its list, although
it may split text just as a published one does.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import tempfile
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.gguf.agreement import (
    EDGE_TEXTS,
    PLAIN_TEXTS,
    default_text,
    tokenizer_differences,
)
from llm_recipes.gguf.conversion import Source, converter, write_vocabulary
from llm_recipes.gguf.file import read_gguf
from llm_recipes.gguf.model import GgufModel

# One name of each common way; those of other models are the same or rare.
COMMON = ("gpt-2", "qwen2", "llama-bpe", "falcon", "gpt-4o", "tekken", "deepseek-llm", "starcoder")


def known() -> list[str]:
    """Every name that the converter gives, sorted."""
    source = inspect.getsource(converter().TextModel.get_vocab_base_pre)
    return sorted(set(re.findall(r'res = "([^"]+)"', source)))


def name_faults(name: str | None) -> list[LLMError]:
    """Whether `--pre-tokenizer` names one, with the nearest if not."""
    if name is None or name in known():
        return []
    nearest = difflib.get_close_matches(name, known(), n=3, cutoff=0.4) or list(COMMON)
    fix = f"did you mean {' or '.join(nearest)}?"
    return [LLMError(f"--pre-tokenizer {name} is not known to llama.cpp", fix=fix)]


def fitting(source: Source, tokenizer: Any) -> str | None:
    """The common name with which a GGUF's tokens are those of transformers; None if none is.

    Args:
        source: A model whose tokenizer the converter does not recognize.
        tokenizer: Transformers' tokenizer of it.
    """
    texts = {**PLAIN_TEXTS, "newlines": EDGE_TEXTS["newlines"], "manual": default_text(20000)}
    with tempfile.TemporaryDirectory(prefix="llm-tokenizer-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        for name in COMMON:
            try:
                write_vocabulary(dataclasses.replace(source, pre_tokenizer=name), path)
                with GgufModel.load(read_gguf(path), vocabulary_only=True) as model:
                    if not tokenizer_differences(tokenizer, model.own_tokenizer, texts):
                        return name
            except LLMError:  # it is only a try
                continue
    return None
