"""Prompts: where they come from, and how they become token ids, the same in every recipe.

Text files hold one prompt a line; JSON Lines hold `{"id": …, "prompt": "…"}`, with `"input": "…"`
where a task has one, or `{"id": …, "messages": [{"role": "user", "content": "…"}]}`; without an id
the line's number is it.

    from llm_recipes.prompts import read_prompts, render
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_recipes.encoding import is_utf8, not_utf8
from llm_recipes.errors import LLMError, raise_all

Style = Literal["auto", "raw", "chat", "alpaca"]
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
MOST_FAULTS_SHOWN = 10
# Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca, without and with an input.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


@dataclass(frozen=True)
class Prompt:
    """A prompt as it was given: a text, or a chat's messages.

    id: a string or a whole number. where: file and line, for messages to the user. input: what the
    text's task works on, if that is given apart.
    """

    id: str | int
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    where: str = ""
    input: str = ""

    @property
    def key(self) -> str:
        """The id as JSON: 1 and "1" are two ids."""
        return json.dumps(self.id)

    @property
    def content(self) -> str | list[dict[str, str]]:
        """What an answer repeats of its prompt."""
        return list(self.messages) if self.messages is not None else self.whole_text

    @property
    def whole_text(self) -> str:
        """The text, and its input after a blank line."""
        return "\n\n".join(part for part in (self.text, self.input) if part)


def read_prompts(texts: Sequence[str] | None, source: str | None) -> list[Prompt]:
    """Prompts from the command line, or from a file or standard input (`-`).

    Raises:
        LLMError, ExceptionGroup: No prompts; an unreadable file; every bad line by its number.
    """
    if source is None:
        prompts = [Prompt(number, text=text) for number, text in enumerate(texts or [], start=1)]
        faults = [_empty(f"--prompt number {p.id}") for p in prompts if not (p.text or "").strip()]
        faults += [not_utf8(f"--prompt number {p.id}") for p in prompts if not is_utf8(p.text)]
        raise_all(faults)
        return prompts
    name = "standard input" if source == "-" else source
    data = _read_bytes(source)
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    first = next((line for line in lines if line.strip()), b"")
    is_json = source.lower().endswith(JSON_LINES_SUFFIXES) or (
        source == "-" and first.lstrip().startswith(b"{")
    )
    prompts, faults = _parse_lines(lines, name, is_json)
    raise_some(faults)
    if not prompts:
        fix = (
            'one prompt a line, or JSON Lines such as {"id": 1, "prompt": "Hello"} in a .jsonl file'
        )
        raise LLMError(f"{name} holds no prompts", "it is empty", fix)
    return prompts


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over ids and contents, in their order."""
    found = hashlib.sha256()
    for prompt in prompts:
        # An input that is given apart makes another prompt of the same words, for alpaca's form.
        apart = [prompt.input] if prompt.input else []
        found.update(json.dumps([prompt.id, prompt.content, *apart]).encode())
    return found.hexdigest()


def style_faults(style: Style, chat: bool, system: str | None) -> list[LLMError]:
    """Options about the form of prompts that exclude each other, whatever the model."""
    if style not in ("raw", "alpaca"):
        return []
    faults = [no_system(style)] if system else []
    if chat:
        what = f"--chat does not go with --prompt-style {style}"
        faults.append(LLMError(what, "it needs the model's chat template", "leave one of them out"))
    return faults


def check_knows_chat(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        LLMError: If it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        why = "its tokenizer has no chat template: it is a base model"
        raise LLMError("the model knows no chat", why, "use prompts of plain text, or a chat model")


def choose_style(style: Style, tokenizer: Any) -> Style:
    """What `auto` means for a model: its chat template if it has one, else raw text."""
    if style != "auto":
        return style
    return "chat" if getattr(tokenizer, "chat_template", None) else "raw"


def render(prompt: Prompt, tokenizer: Any, style: Style, system: str | None = None) -> list[int]:
    """Token ids of a prompt, with exactly one BOS if the model's tokenizer uses one.

    Args:
        prompt: Text or messages.
        tokenizer: The model's.
        style: auto, raw, chat or alpaca.
        system: A system message in front of a chat that has none.

    Raises:
        LLMError: If the prompt or the system message does not fit the style, or the style the
            model.
    """
    return encode([render_text(prompt, tokenizer, style, system)], tokenizer)[0]


def render_text(prompt: Prompt, tokenizer: Any, style: Style, system: str | None = None) -> str:
    """The text of a prompt in a style; a chat template may begin it with a BOS.

    Raises:
        LLMError: As `render`.
    """
    chosen = choose_style(style, tokenizer)
    if chosen == "chat":
        messages = chat_messages(prompt, system)
        return apply_template(messages, tokenizer, f"prompt {prompt.id!r}")
    if system:
        raise no_system(chosen)
    text, task_input = prompt.whole_text, prompt.input
    if prompt.messages is not None:
        text, task_input = _only_user_text(prompt, chosen), ""
    if chosen == "alpaca" and task_input:
        text = ALPACA_WITH_INPUT.format(instruction=prompt.text or "", input=task_input)
    elif chosen == "alpaca":
        text = ALPACA.format(instruction=text)
    while tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        text = text[len(tokenizer.bos_token) :]
    return text


def encode(texts: Sequence[str], tokenizer: Any, plain: bool = False) -> list[list[int]]:
    """Token ids of texts, each with exactly one BOS in front if the model's tokenizer uses one.

    Args:
        texts: What a style has made of prompts.
        tokenizer: The model's.
        plain: `</s>` and the like are characters and not the tokens they name.
    """
    if not texts:
        return []
    how = {"add_special_tokens": False, **({"split_special_tokens": True} if plain else {})}
    # Many at once are several times as fast, and their ids the same.
    given = texts[0] if len(texts) == 1 else list(texts)
    found = tokenizer(given, **how)["input_ids"]
    many = [found] if len(texts) == 1 else found
    bos = tokenizer.bos_token_id
    # What the tokenizer puts in front by itself; what it would put behind must not end a prompt.
    if bos is None or tokenizer("a")["input_ids"][:1] != [bos]:
        return [list(ids) for ids in many]
    return [[bos, *_without_leading(bos, ids)] for ids in many]


def _without_leading(bos: int, ids: list[int]) -> list[int]:
    while ids[:1] == [bos]:  # written by the chat template
        ids = ids[1:]
    return ids


def chat_messages(prompt: Prompt, system: str | None) -> list[dict[str, str]]:
    """A prompt as a chat's messages, with the system message in front of one that has none."""
    messages = list(prompt.messages or ({"role": "user", "content": prompt.whole_text},))
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def apply_template(
    messages: Sequence[dict[str, str]], tokenizer: Any, what: str, answer_follows: bool = True
) -> str:
    """The text of a chat by the model's template; what: names it in messages to the user.

    Raises:
        LLMError: If the model knows no chat, or the template not this one.
    """
    check_knows_chat(tokenizer)
    try:
        rendered: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer_follows
        )
    except Exception as error:  # templates raise what they like for roles they do not allow
        why = str(error) or type(error).__name__
        fault = f"{what} does not fit the model's chat template"
        raise LLMError(fault, why, "look at the roles and their order") from None
    return rendered


def no_system(style: str) -> LLMError:
    """The fault of a system message in a style that has no place for it."""
    what = f"--system has no place in the style {style!r}"
    fix = "leave it out, or use --prompt-style chat and a chat model"
    return LLMError(what, "only chats have a system message", fix)


def _only_user_text(prompt: Prompt, style: str) -> str:
    messages = prompt.messages or ()
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    what = f"prompt {prompt.id!r} is a chat, which the style {style!r} cannot show"
    raise LLMError(
        what, "only a single user message fits", "use --prompt-style chat and a chat model"
    )


def _read_bytes(source: str) -> bytes:
    try:
        if source == "-":
            return sys.stdin.buffer.read()
        return Path(source).expanduser().read_bytes()
    except OSError as error:
        raise LLMError(
            f"cannot read prompts from {source}",
            error.strerror or str(error),
            "--prompts takes a text file, a .jsonl file, or - for standard input",
        ) from None


def _parse_lines(
    lines: Sequence[bytes], name: str, is_json: bool
) -> tuple[list[Prompt], list[LLMError]]:
    prompts: list[Prompt] = []
    faults: list[LLMError] = []
    first_line: dict[str, int] = {}
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        where = f"{name}, line {number}"
        try:
            text = raw.decode("utf-8").rstrip("\r")
            prompt = (
                _from_json(text, number, where) if is_json else Prompt(number, text, None, where)
            )
        except UnicodeDecodeError as error:
            fix = "convert the file: iconv -f latin1 -t utf-8"
            faults.append(LLMError(f"{where} is not UTF-8", f"byte {error.start + 1}", fix))
            continue
        except LLMError as fault:
            faults.append(fault)
            continue
        if prompt.key in first_line:
            why = f"line {first_line[prompt.key]} has it already"
            faults.append(LLMError(f"{where}: id {prompt.key} is used twice", why))
        first_line.setdefault(prompt.key, number)
        prompts.append(prompt)
    return prompts, faults


def _from_json(text: str, number: int, where: str) -> Prompt:
    example = 'expected {"id": 1, "prompt": "Hello"}'
    try:
        row = json.loads(text)
        text.encode("utf-8")
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise LLMError(f"{where} holds half of a UTF-16 surrogate pair", example) from None
    except (ValueError, RecursionError) as error:
        raise LLMError(f"{where} is not JSON", f"{error}; {example}") from None
    if not isinstance(row, dict):
        raise LLMError(f"{where} is no JSON object", example)
    known = row.get("id", number)
    if isinstance(known, bool) or not isinstance(known, (str, int)):
        raise LLMError(f"{where}: id {known!r} is not valid", "expected a string or a whole number")
    if ("prompt" in row) == ("messages" in row):
        raise LLMError(
            f"{where} needs either prompt or messages", f"it has {sorted(row)}; {example}"
        )
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise LLMError(f"{where}: prompt is not a text", example)
        if not row["prompt"].strip():
            raise _empty(f"the prompt in {where}")
        task_input = row.get("input") or ""
        if not isinstance(task_input, str):
            raise LLMError(f"{where}: input is not a text", example)
        return Prompt(known, row["prompt"], None, where, task_input)
    return Prompt(known, None, _checked_messages(row["messages"], where), where)


def _checked_messages(messages: object, where: str) -> tuple[dict[str, str], ...]:
    valid = (
        isinstance(messages, list)
        and messages
        and all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in messages
        )
    )
    if not valid:
        why = 'expected a list such as [{"role": "user", "content": "Hello"}]'
        raise LLMError(f"{where}: messages are not valid", why)
    assert isinstance(messages, list)
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _empty(what: str) -> LLMError:
    return LLMError(f"{what} is empty", fix="remove it, or give it a text")


def raise_some(faults: Sequence[LLMError], fix: str = "") -> None:
    """Raise the first faults of many lines together, with the number of the others.

    Args:
        faults: One a line.
        fix: What helps with all of them; it is said once, at the end.
    """
    shown = list(faults[:MOST_FAULTS_SHOWN])
    if len(faults) > MOST_FAULTS_SHOWN:
        shown.append(LLMError(f"and {len(faults) - MOST_FAULTS_SHOWN} more bad lines"))
    if shown:
        shown[-1].fix = shown[-1].fix or fix
    raise_all(shown)
