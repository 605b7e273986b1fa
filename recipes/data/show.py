"""Show examples of a dataset: question, what it is about, and the answer.

    llm-run python recipes/data/show.py --data tatqa_dataset_dev.json --sid 100 --sid 500-502
    llm-run python recipes/data/show.py --data dolly.jsonl --sid 7 --model models/tiny

Numbers count from 0 over the questions in the file's order. With --model: as the model sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.examples import Columns, DataOptions, Example, option_faults
from llm_recipes.say import say

UNESCAPED_BAR = re.compile(r"(?<!\\)\|")


def show(
    data: str,
    sid: list[str] | None = None,
    uid: list[str] | None = None,
    format: Literal["auto", "dolly", "alpaca", "tatqa", "text", "messages", "columns"] = "auto",
    prompt_column: str | None = None,
    response_column: str | None = None,
    input_column: str | None = None,
    model: str | None = None,
    prompt_style: Literal["auto", "raw", "chat", "alpaca"] = "auto",
    system: str | None = None,
) -> None:
    """Show examples of a dataset: question, what it is about, and the answer.

    Args:
        data: File, folder, or a hub's dataset (OWNER/NAME).
        sid: Number of a question, from 0, or a range such as 100-105; repeat the option for more.
        uid: Id of a question; repeat the option for more.
        format: What the rows hold; auto: found from the first of them.
        prompt_column: Column of the prompt; null: prompt or question.
        response_column: Column of the response; null: response, completion or answer.
        input_column: Column of what the prompt works on; null: none.
        model: Show the prompt as this model sees it; null: the parts as they are.
        prompt_style: raw, chat or alpaca; auto: the chat template if the model has one.
        system: System message for chats that have none.
    """
    columns = Columns(prompt_column, response_column, input_column)
    options = DataOptions(data, format, columns, prompt_style, system, held_out=0.0, skip_bad=True)
    faults = option_faults(options)
    ranges = [read_range(text, faults) for text in sid or []]
    if not sid and not uid:
        faults.append(LLMError("nothing to show", "no question is named", "such as --sid 100"))
    raise_all(faults)
    from llm_recipes.dataset_formats import open_source, read_examples

    found = read_examples(open_source(data), options, say, needs_answer=False)
    if found.bad:
        say(f"warning: {len(found.bad)} bad rows are not counted, such as: {found.bad[0].what}")
    chosen = choose(found.examples, ranges, uid or [], data)
    tokenizer = None
    if model is not None:
        from llm_recipes.tokenizer_folder import load_tokenizer

        tokenizer = load_tokenizer(model)[1]
    for number in chosen:
        print("\n".join(lines_of(number, found.examples[number], tokenizer, options)))


def read_range(text: str, faults: list[LLMError]) -> range:
    """Numbers that `100` or `100-105` name; an empty range and a fault for anything else."""
    found = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", text, re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if last < first:
        why = "expected a number from 0, or a range such as 100-105"
        faults.append(LLMError(f"--sid {text} names no question", why))
    return range(first, last + 1)


def choose(
    examples: Sequence[Example], ranges: Sequence[range], uids: Sequence[str], data: str
) -> list[int]:
    """Places of the examples that are meant, in the order of the command line.

    Raises:
        LLMError, ExceptionGroup: Numbers out of range and ids that are not there, all at once.
    """
    faults = []
    for asked in ranges:
        if asked[-1] >= len(examples):
            name = str(asked[0]) if len(asked) == 1 else f"{asked[0]}-{asked[-1]}"
            why = f"{data} has {len(examples):,} questions: 0 to {len(examples) - 1}"
            faults.append(LLMError(f"--sid {name} is out of range", why))
    places = {example.id: number for number, example in enumerate(examples)}
    for uid in uids:
        if uid not in places:
            why = f"{data} has ids such as {', '.join(list(places)[:3])}"
            faults.append(LLMError(f"--uid {uid} is not there", why))
    raise_all(faults)
    return list(dict.fromkeys([*chain.from_iterable(ranges), *(places[uid] for uid in uids)]))


def lines_of(number: int, example: Example, tokenizer: Any, options: DataOptions) -> Iterator[str]:
    """What is printed of an example."""
    yield f"== sid {number}, uid {example.id} ({example.where})"
    if example.text is not None:
        yield from ("", example.text, "")
        return
    if tokenizer is not None:
        yield from ("", as_the_model_sees_it(example, tokenizer, options))
    elif example.messages is not None:
        for message in example.messages[:-1]:
            yield from ("", f"-- {message['role']}", message["content"])
    else:
        yield from ("", "-- prompt", example.instruction)
        if example.input:
            yield from ("", "-- input", aligned(example.input))
    yield from ("", "-- answer", example.answer or "(the file has none)", "")


def as_the_model_sees_it(example: Example, tokenizer: Any, options: DataOptions) -> str:
    """The prompt's tokens, as text again: special tokens show."""
    from llm_recipes.prompts import render
    from llm_recipes.training_examples import example_style

    style = example_style(options.prompt_style, tokenizer, example)
    ids = render(example.prompt, tokenizer, style, options.system)
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return f"-- the model sees ({style}, {len(ids):,} tokens)\n{text}"


def aligned(text: str) -> str:
    """The text with its Markdown tables in columns of equal width, for eyes and not for models."""
    lines: list[str] = []
    table: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.startswith("|"):
            table.append(line)
            continue
        lines += _padded(table)
        table = []
        lines.append(line)
    return "\n".join(lines[:-1])


def _padded(table: Sequence[str]) -> list[str]:
    rows = [[cell.strip() for cell in UNESCAPED_BAR.split(line)[1:-1]] for line in table]
    if len({len(row) for row in rows}) != 1:  # not a table of ours
        return list(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "| "
        + " | ".join(
            "-" * width if set(cell) == {"-"} else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        + " |"
        for row in rows
    ]


if __name__ == "__main__":
    run_recipe(show)
