"""A conversation at the terminal, with history.

llm-run python recipes/inference/generate.py --model FOLDER --chat
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from llm_recipes.batching import complete_one
from llm_recipes.decoding import Completion, Request, StreamingDecoder
from llm_recipes.errors import LLMError
from llm_recipes.prompts import Prompt, Style, check_knows_chat, render

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends it, Ctrl-C ends an answer"
ANSWER_SHARE = 4  # at least a fourth of what the model can see is kept for the answer, if it asks


def converse(decoder: StreamingDecoder, tokenizer: Any, style: Style, system: str | None) -> int:
    """Read lines, stream answers, until /quit or the end of input; returns the exit status.

    Ctrl-C while an answer is written ends the answer, and what is there of it stays in the history.

    Raises:
        LLMError: If the model knows no chat.
    """
    check_knows_chat(tokenizer)
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
            token_ids = _rendered(decoder, tokenizer, style, system, history, turn)
            answer = _answer(decoder, token_ids, turn)
            if answer is None:
                history.pop()
            else:
                history.append({"role": "assistant", "content": answer})


def _answer(decoder: StreamingDecoder, token_ids: list[int], turn: int) -> str | None:
    """The answer to a rendered conversation, shown while it is written; None without one."""
    context = decoder.settings.context
    if context is not None and len(token_ids) >= context:
        _note(f"too long: {len(token_ids)} tokens of {context}")
        return None
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        print(text, end="", flush=True)

    # The turn is the prompt's id: the same words get other noise when they are said again.
    request = Request(str(turn), 0, tuple(token_ids))
    try:
        completion = complete_one(decoder, request, show)
    except KeyboardInterrupt:
        print(flush=True)
        return "".join(pieces)
    except LLMError as fault:  # the next question may be shorter
        print(flush=True)
        _note(f"{fault.what}; /reset forgets the conversation")
        return None
    print(flush=True)
    if _lacked_room(decoder, completion):
        _note(f"cut off: the model can see {context} tokens; /reset forgets the conversation")
    return "".join(pieces)


def _rendered(
    decoder: StreamingDecoder,
    tokenizer: Any,
    style: Style,
    system: str | None,
    history: list[dict[str, str]],
    turn: int,
) -> list[int]:
    """Token ids of the history, which forgets its start until there is room for an answer."""
    token_ids = render(Prompt(turn, messages=tuple(history)), tokenizer, style, system)
    context = decoder.settings.context
    if context is None:
        return token_ids
    room = min(decoder.settings.max_new_tokens, context // ANSWER_SHARE)
    while len(token_ids) + room > context and len(history) > 1:
        del history[:2]  # the oldest question and its answer
        _note("the conversation is longer than the model can see: forgot its start")
        token_ids = render(Prompt(turn, messages=tuple(history)), tokenizer, style, system)
    return token_ids


def _lacked_room(decoder: StreamingDecoder, completion: Completion) -> bool:
    """Whether an answer ended because the model can see no more, before --max-new-tokens."""
    most = decoder.settings.max_new_tokens
    return completion.finish_reason == "length" and len(completion.token_ids) < most


def _note(text: str) -> None:
    print(f"({text})", file=sys.stderr)
