"""One example of a dataset, whatever the file's format, and the options that say how to read it.

from llm_recipes.examples import DataOptions, Example, option_faults
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llm_recipes.encoding import is_utf8, not_utf8
from llm_recipes.errors import LLMError
from llm_recipes.prompts import Prompt, Style, no_system

Format = Literal["auto", "dolly", "alpaca", "tatqa", "text", "messages", "columns"]
SKIP_BAD = "--skip-bad leaves out the rows that can't be used"


@dataclass(frozen=True)
class Columns:
    """Names of columns for the format `columns`; None: the usual one, if it is there."""

    prompt: str | None = None
    response: str | None = None
    input: str | None = None
    context: str | None = None

    @property
    def given(self) -> bool:
        """Whether any was named."""
        return any((self.prompt, self.response, self.input, self.context))


@dataclass(frozen=True)
class DataOptions:
    """What decides the token ids of a dataset, besides its files and the tokenizer.

    path: file, folder, or a hub's name. max_length: tokens of an example at most. held_out: share
    of the contexts kept apart from training. learn_prompt: learn the prompt's tokens too.
    """

    path: str
    format: Format = "auto"
    columns: Columns = field(default_factory=Columns)
    prompt_style: Style = "auto"
    system: str | None = None
    max_length: int = 1024
    held_out: float = 0.05
    split_seed: int = 0
    skip_bad: bool = False
    learn_prompt: bool = False


@dataclass(frozen=True)
class Example:
    """An instruction with its response, a chat, or a text without a prompt.

    id: unique in the dataset. context: examples of one context are never on both sides of a split.
    input: what the instruction works on. messages: a chat whose last message is the assistant's;
    every turn of the assistant is learned. text: a document; all of it is learned.
    where: file and line.
    """

    id: str
    context: str
    instruction: str = ""
    input: str = ""
    response: str = ""
    messages: tuple[dict[str, str], ...] | None = None
    text: str | None = None
    where: str = ""

    @property
    def prompt(self) -> Prompt:
        """What a model is asked: all but the response or the last message."""
        if self.messages is not None:
            return Prompt(self.id, messages=self.messages[:-1], where=self.where)
        return Prompt(self.id, self.instruction, None, self.where, self.input)

    @property
    def answer(self) -> str:
        """What should come of it."""
        return self.messages[-1]["content"] if self.messages is not None else self.response


def option_faults(options: DataOptions) -> list[LLMError]:
    """Everything about the options that is wrong whatever the data are."""
    faults = []
    if not options.path.strip():
        fix = "name a file, a folder, or a hub's dataset (OWNER/NAME)"
        faults.append(LLMError("--data is empty", fix=fix))
    if options.max_length < 2:
        why = "a prompt and something to learn need 2 tokens at least"
        faults.append(LLMError(f"--max-length {options.max_length} is not possible", why))
    if not 0 <= options.held_out < 1:
        what = f"--held-out {options.held_out} is not a share"
        faults.append(LLMError(what, "it must be in [0, 1)", "0 keeps nothing apart"))
    if options.columns.given and options.format not in ("auto", "columns"):
        what = f"--prompt-column and its like do not go with --format {options.format}"
        faults.append(LLMError(what, "that format names its columns", "leave one of them out"))
    if options.system and options.prompt_style in ("raw", "alpaca"):
        faults.append(no_system(options.prompt_style))
    if not is_utf8(options.system):
        faults.append(not_utf8("--system"))
    return faults
