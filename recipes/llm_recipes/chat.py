"""A conversation at the terminal, with history.

llm-run python recipes/inference/generate.py --model FOLDER --chat
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from llm_recipes.decoding import Decoder, Request
from llm_recipes.prompts import Prompt, Style, render

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends it, Ctrl-C ends an answer"


def converse(decoder: Decoder, tokenizer: Any, style: Style, system: str | None) -> int:
    """Read lines, stream answers, until /quit or the end of input; returns the exit status.

    Ctrl-C while an answer is written ends the answer, and what is there of it stays in the history.
    """
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - line editing for input()
        print(HELP, file=sys.stderr)
    history: list[dict[str, str]] = []
    turn = 0
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=sys.stderr)
            continue
        if line == "/quit":
            return 0
        if line == "/reset":
            history.clear()
        elif line.startswith("/"):
            print(HELP, file=sys.stderr)
        elif line:
            turn += 1
            history.append({"role": "user", "content": line})
            answer = _answer(decoder, tokenizer, style, system, history, turn)
            history.append({"role": "assistant", "content": answer})


def _answer(
    decoder: Decoder,
    tokenizer: Any,
    style: Style,
    system: str | None,
    history: list[dict[str, str]],
    turn: int,
) -> str:
    token_ids = render(Prompt(turn, messages=tuple(history)), tokenizer, style, system)
    context = decoder.settings.context
    while context is not None and len(token_ids) >= context and len(history) > 1:
        del history[:2]  # the oldest question and its answer
        print(
            "(the conversation is longer than the model can see: forgot its start)", file=sys.stderr
        )
        token_ids = render(Prompt(turn, messages=tuple(history)), tokenizer, style, system)
    if context is not None and len(token_ids) >= context:
        print(f"(too long: {len(token_ids)} tokens of {context})", file=sys.stderr)
        return ""
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        print(text, end="", flush=True)

    # The turn is the prompt's id: the same words get other noise when they are said again.
    request = Request(str(turn), 0, tuple(token_ids))
    with contextlib.suppress(KeyboardInterrupt):
        for _ in decoder.complete([request], on_text=show):
            pass
    print(flush=True)
    return "".join(pieces)
