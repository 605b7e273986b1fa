"""The text that models are measured with: a file, or Python's own documentation.

    from llm_recipes.gguf.evaluation_text import read_text
    text = read_text("python", held_out=True)

Python's documentation is there without a download and under a free licence. It is English prose
about programming: what a model is worth for another language or subject, a text of it tells.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.gguf.file import GgufFile
from llm_recipes.gguf.model import GgufModel

PYTHON = "python"
# Names that the files of Python's documentation get, which files made with them keep.
NAMES = {True: "python-documentation-held-out.txt", False: "python-documentation.txt"}


@dataclass(frozen=True)
class Text:
    """A text. name: of its file, without folders. digest: of its bytes."""

    name: str
    content: str
    digest: str

    @property
    def bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.content.encode())


def read_text(source: str, held_out: bool) -> Text:
    """Read a text.

    Args:
        source: Path of a UTF-8 file; `python` is Python's own documentation.
        held_out: Of Python's documentation, take the twentieth that recipes/data/tiny.py keeps
            from training, and not the other nineteen.

    Raises:
        LLMError: If it can't be read, is empty, or no UTF-8.
    """
    if source == PYTHON:
        return _documentation()[held_out]
    path = Path(source).expanduser()
    fix = "give a text file in UTF-8, or `python` for Python's own documentation"
    try:
        content = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise LLMError(f"cannot read the text {path}", error.strerror or str(error), fix) from None
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is no UTF-8"
        raise LLMError(f"{path} is no text", why, "iconv -f latin1 -t utf-8 converts one") from None
    if not content.strip():
        raise LLMError(f"{path} is empty", fix=fix)
    return make_text(path.name, content)


@functools.cache
def _documentation() -> dict[bool, Text]:
    """Python's documentation, by whether it is the part that is held out; takes seconds."""
    from llm_recipes.tiny_corpus import natural_documents, split_documents

    training, held_out = split_documents(natural_documents())
    parts = {True: held_out, False: training}
    return {held: make_text(NAMES[held], "\n\n".join(texts)) for held, texts in parts.items()}


def make_text(name: str, content: str) -> Text:
    """A text of this content."""
    return Text(name, content, sha256(content.encode()).hexdigest())


def count_tokens(file: GgufFile, text: Text) -> int:
    """Tokens of a text as llama-perplexity and llama-imatrix count them.

    By llama.cpp's tokenizer, whatever the file carries; special tokens in the text are characters,
    and a new line at its end is dropped.

    Raises:
        LLMError: If llama.cpp can't read the model's vocabulary.
    """
    with GgufModel.load(file, vocabulary_only=True) as model:
        content = text.content.removesuffix("\n")
        return len(model.own_tokenizer(content, split_special_tokens=True)["input_ids"])


def length_faults(text: Text, tokens: int, context: int) -> list[LLMError]:
    """Whether a text is long enough to be taken in pieces of `context` tokens."""
    if tokens >= 2 * context:
        return []
    why = f"it has {tokens} tokens, and {2 * context} are needed"
    fix = "give a longer text"
    return [LLMError(f"the text {text.name} is too short", why, fix)]
