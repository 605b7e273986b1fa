"""Open a GGUF file as a model of lm-evaluation-harness, its memory shared out as requests need it.

from llm_recipes.gguf.harness_opening import open_lm
with open_lm("model.gguf", gpu_layers="auto") as lm: lm_eval.simple_evaluate(lm, ...)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llm_recipes.gguf.file import GgufFile, read_gguf
from llm_recipes.gguf.harness_model import GgufLM
from llm_recipes.gguf.opening import Number, OpenOptions, open_model

ROOM_TOKENS = 2048  # of each sequence; a longer request takes the room of several

_open = ExitStack()  # models that lm-eval opened by name live as long as the process


@contextmanager
def open_lm(
    path: Path | str | GgufFile, context: Number = "auto", max_gen_toks: int = 256, **options: Any
) -> Iterator[GgufLM]:
    """The model for lm-eval, until the block ends.

    Args:
        path: The file, or its header.
        context: Tokens that the model sees at once; auto: as many as it was trained to.
        max_gen_toks: Tokens of an answer at most, where a task doesn't say.
        options: As of `OpenOptions`.

    Raises:
        LLMError: If it can't be read or loaded.
    """
    file = path if isinstance(path, GgufFile) else read_gguf(path)
    trained = file.context_length or ROOM_TOKENS
    window = trained if context == "auto" else min(context, trained)
    with open_model(file, OpenOptions(**options), min(window, ROOM_TOKENS)) as (model, room):
        yield GgufLM(model, room, window, max_gen_toks)


def open_for_good(**options: Any) -> GgufLM:
    """The model for lm-eval, until the process ends; options as of `open_lm`."""
    return _open.enter_context(open_lm(**options))
