"""Examples as a model learns them: token ids, and labels that say which of them are learned.

The ids of an example are exactly those that `prompts.render` gives for its prompt, then those of
the response, then the token that ends a turn: training, generation and evaluation see one prompt.

    from llm_recipes.training_examples import training_examples
    for found in training_examples(examples, tokenizer, "auto", None, learn_prompt=False): ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.examples import Example
from llm_recipes.prompts import (
    Style,
    apply_template,
    chat_messages,
    check_knows_chat,
    choose_style,
    encode,
    no_system,
    render_text,
)

NOT_LEARNED = -100  # torch's cross entropy leaves such labels out
# Ends of a text after which another text's tokens do not depend on it, for most tokenizers.
ANCHORS = ("\n", ":", ".")
BATCH = 512


@dataclass(frozen=True)
class TrainingExample:
    """ids: tokens. labels: the same where a token is learned, else -100; both of one length."""

    example: Example
    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Rendered:
    """An example's text in pieces: the prompt, then pieces that are learned or not in turn.

    ends: the tokenizer's end token is put behind. plain: after the prompt, texts such as `</s>`
    are characters and not the tokens they name. mask: ids and labels, if the template marks them.
    """

    pieces: tuple[str, ...]
    ends: bool
    plain: bool
    mask: tuple[list[int], list[int]] | None = None


def example_style(style: Style, tokenizer: Any, example: Example) -> Style:
    """What `auto` means in training: the model's chat template, else alpaca's form for
    instructions and raw text for everything that has none.
    """
    if example.text is not None:
        return "raw"
    chosen = choose_style(style, tokenizer)
    return "alpaca" if style == "auto" and chosen == "raw" else chosen


def check_style(style: Style, tokenizer: Any, system: str | None) -> None:
    """Refuse what no example can be rendered with, once and not for every row.

    Raises:
        LLMError: A chat without a template, a system message outside a chat, no end token.
    """
    if style == "chat":
        check_knows_chat(tokenizer)
    elif system:
        raise no_system(style)
    elif tokenizer.eos_token_id is None:
        raise _no_end()


def training_examples(
    examples: Sequence[Example],
    tokenizer: Any,
    style: Style,
    system: str | None,
    learn_prompt: bool,
) -> Iterator[TrainingExample | LLMError]:
    """Every example's tokens and labels in order, and a fault in the place of each that fits not.

    Args:
        examples: What to learn.
        tokenizer: The model's.
        style: auto, raw, chat or alpaca (see `example_style`).
        system: A system message in front of chats that have none.
        learn_prompt: Learn every token; otherwise only the assistant's and the ends of its turns.

    Raises:
        LLMError: If the tokenizer has no end token but needs one.
    """
    ends = _special_pattern(tokenizer)
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        rendered: list[Rendered | LLMError] = []
        for example in batch:
            try:
                rendered.append(_render(example, tokenizer, style, system, ends))
            except LLMError as fault:
                rendered.append(_placed(fault, example))
        encoded = iter(_encode([r for r in rendered if isinstance(r, Rendered)], tokenizer))
        for example, found in zip(batch, rendered, strict=True):
            if isinstance(found, LLMError):
                yield found
                continue
            ids, labels = next(encoded)
            labels = ids if learn_prompt else labels
            # Nothing comes before the first token: it cannot be predicted, nor from the text
            # that happens to stand before it when several are packed into one row.
            yield TrainingExample(example, ids, [NOT_LEARNED, *labels[1:]])


def _render(
    example: Example, tokenizer: Any, style: Style, system: str | None, ends: re.Pattern[str]
) -> Rendered:
    if example.text is not None:
        return Rendered(("", _without_end(example.text, tokenizer)), ends=True, plain=True)
    chosen = example_style(style, tokenizer, example)
    if chosen == "chat":
        return _render_chat(example, tokenizer, system, ends)
    prompt = render_text(example.prompt, tokenizer, chosen, system)
    return Rendered((prompt, _without_end(example.answer, tokenizer)), ends=True, plain=True)


def _render_chat(
    example: Example, tokenizer: Any, system: str | None, ends: re.Pattern[str]
) -> Rendered:
    what = f"example {example.id!r}"
    answer = {"role": "assistant", "content": example.answer}
    messages = [*chat_messages(example.prompt, system), answer]
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    whole = apply_template(messages, tokenizer, what, answer_follows=False)
    before = [apply_template(messages[:n], tokenizer, what) if n else "" for n in turns]
    if not whole.startswith(before[0]):
        raise _unlike(whole, before[0], what)
    pieces, position = [], 0
    for turn, start in zip(turns, before, strict=True):
        end = _end_of_turn(whole, start, messages[turn]["content"], ends)
        if end is None or len(start) < position:
            return _render_by_mask(messages, before[0], tokenizer, what)
        pieces += [whole[position : len(start)], whole[len(start) : end[0]]]
        position, has_end = end
    # What follows the end of the last turn, often a line's end, is never generated.
    return Rendered(tuple(pieces), ends=not has_end, plain=False)


def _end_of_turn(
    whole: str, start: str, content: str, ends: re.Pattern[str]
) -> tuple[int, bool] | None:
    """Where an assistant's turn ends, and whether a token for that is there; None: not found.

    The turn is searched for as it was written: templates may cut white space off, or put something
    such as an empty thought in front.
    """
    if not whole.startswith(start):
        return None
    found = whole.find(content.strip(), len(start))
    if found < 0 or ends.search(whole, len(start), found):
        return None
    after = found + len(content.strip())
    end = re.compile(rf"\s*(?:{ends.pattern})").match(whole, after)
    return (after, False) if end is None else (end.end(), True)


def _render_by_mask(
    messages: Sequence[dict[str, str]], prompt: str, tokenizer: Any, what: str
) -> Rendered:
    """Rendering for templates that change earlier turns but mark what an assistant writes."""
    if "{% generation" not in re.sub(r"\{%-\s*", "{% ", str(tokenizer.chat_template)):
        why = "its text does not hold each answer of the assistant after the text before it"
        fix = "use single questions with answers, or a template with {% generation %} marks"
        raise LLMError(f"{what} cannot be learned with the model's chat template", why, fix)
    try:
        found = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:  # tokenizers written in Python know no positions of characters
        fault = f"{what} cannot be learned with the model's chat template"
        raise LLMError(fault, str(error)) from None
    whole = apply_template(messages, tokenizer, what, answer_follows=False)
    begin, ids = encode([prompt, whole], tokenizer)
    mask = list(found["assistant_masks"])
    # A BOS of the template and one of ours count once.
    mask = [0] * (len(ids) - len(mask)) + mask[max(0, len(mask) - len(ids)) :]
    if ids[: len(begin)] != begin or 1 not in mask:
        raise _unlike(whole, prompt, what)
    last = len(mask) - mask[::-1].index(1)
    labels = [i if m else NOT_LEARNED for i, m in zip(ids, mask, strict=True)]
    return Rendered((prompt,), ends=False, plain=False, mask=(ids[:last], labels[:last]))


def _encode(rendered: Sequence[Rendered], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of many texts; tokenizers are several times as fast with many at once."""
    prompts = encode([r.pieces[0] for r in rendered], tokenizer)
    wholes: dict[tuple[int, int], list[int]] = {}
    for plain in (False, True):
        keys = [
            (number, count)
            for number, r in enumerate(rendered)
            for count in range(2, len(r.pieces) + 1)
            if r.plain == plain
        ]
        texts = ["".join(rendered[number].pieces[:count]) for number, count in keys]
        wholes.update(zip(keys, encode(texts, tokenizer, plain), strict=True))
    results = []
    for number, r in enumerate(rendered):
        if r.mask is not None:
            results.append(r.mask)
            continue
        steps = [wholes[number, count] for count in range(2, len(r.pieces) + 1)]
        results.append(_with_labels(r, prompts[number], steps, tokenizer))
    return results


def _with_labels(
    rendered: Rendered, prompt: list[int], steps: Sequence[list[int]], tokenizer: Any
) -> tuple[list[int], list[int]]:
    """Join the pieces' ids; steps: ids of the text up to the end of each piece after the prompt.

    Where the ids of a longer text begin with those of the shorter, they are taken as they are.
    Where tokens reach across a border (a prompt that ends in a space), a piece is encoded alone:
    the prompt's ids must stay what generation will see.
    """
    ids, labels = list(prompt), [NOT_LEARNED] * len(prompt)
    chain = [prompt, *steps]
    joint = all(later[: len(earlier)] == earlier for earlier, later in pairwise(chain))
    for number, text in enumerate(rendered.pieces[1:], start=1):
        added = (
            chain[number][len(chain[number - 1]) :]
            if joint
            else _continuation(text, tokenizer, rendered.plain)
        )
        ids += added
        labels += added if number % 2 else [NOT_LEARNED] * len(added)
    if rendered.ends:
        if tokenizer.eos_token_id is None:
            raise _no_end()
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id)
    return ids, labels


def _continuation(text: str, tokenizer: Any, plain: bool) -> list[int]:
    """Ids of a text that continues another: without the space that SentencePiece puts in front."""

    def ids_of(piece: str) -> list[int]:
        found = tokenizer(piece, add_special_tokens=False, split_special_tokens=plain)
        return list(found["input_ids"])

    for anchor in ANCHORS:
        alone, both = ids_of(anchor), ids_of(anchor + text)
        if both[: len(alone)] == alone:
            return both[len(alone) :]
    return ids_of(text)


def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the text of a token that can end a turn."""
    texts = set(tokenizer.all_special_tokens)
    texts |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _without_end(text: str, tokenizer: Any) -> str:
    """A text without the end tokens that some datasets carry: one is put behind anyway."""
    while tokenizer.eos_token and text.rstrip().endswith(tokenizer.eos_token):
        text = text.rstrip().removesuffix(tokenizer.eos_token)
    while tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        text = text.removeprefix(tokenizer.bos_token)
    return text


def _no_end() -> LLMError:
    why = "a model that has not learned where to stop never does"
    return LLMError("the tokenizer has no end token", why, "use a model with an eos_token")


def _placed(fault: LLMError, example: Example) -> LLMError:
    what = re.sub(rf"^(example|prompt) {re.escape(repr(example.id))} ?", "", fault.what)
    return LLMError(f"{example.where} {what}", fault.why, fault.fix)


def _unlike(whole: str, prompt: str, what: str) -> LLMError:
    same = next((i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), 0)
    why = (
        f"the text for an answer goes on with {prompt[same : same + 40]!r} where that of the whole "
        f"chat has {whole[same : same + 40]!r}"
    )
    fix = "use --prompt-style alpaca or raw, or another template"
    return LLMError(f"{what} cannot be learned with the model's chat template", why, fix)
