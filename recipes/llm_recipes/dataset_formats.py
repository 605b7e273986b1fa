"""Read a dataset as examples: find its format, check every row, name all bad ones together.

from llm_recipes.dataset_formats import open_source, read_examples
found = read_examples(open_source("dolly.jsonl"), DataOptions("dolly.jsonl"), print)
"""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from llm_recipes import tatqa
from llm_recipes.dataset_files import (
    TEXT,
    Row,
    data_files,
    file_digest,
    missing_source,
    read_rows,
)
from llm_recipes.errors import LLMError
from llm_recipes.examples import SKIP_BAD, Columns, DataOptions, Example, Format
from llm_recipes.prompts import raise_some

Say = Callable[[str], object]
LIKELY = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"))
OWN_IDS = ("id", "uid")
KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),  # before int, which it is too
    (int, "a number"),
    (float, "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "an object"),
)
ROLES_BEFORE_ANSWER = ("user", "tool")


@dataclass(frozen=True)
class Source:
    """Where rows come from: local files, or a hub's dataset that is loaded."""

    name: str
    files: tuple[Path, ...] = ()
    hub: Any = None

    def rows(self) -> Iterator[Row | LLMError]:
        """All rows in their order, and faults in the place of bad ones."""
        if self.hub is None:
            return chain.from_iterable(map(read_rows, self.files))
        return (Row(f"{self.name}, row {n}", row) for n, row in enumerate(self.hub, start=1))

    def digest(self) -> str:
        """SHA-256 over the files' names and bytes; of a hub's dataset its fingerprint."""
        if self.hub is not None:
            return sha256(f"{self.name}\0{self.hub._fingerprint}".encode()).hexdigest()
        parts = [[os.fsencode(file.name).hex(), file_digest(file)] for file in self.files]
        return sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Examples:
    """What was read. bad: rows left out, with the reason. format: the one that was taken."""

    examples: list[Example]
    bad: list[LLMError]
    format: Format


def open_source(name: str) -> Source:
    """The files of a path, or a hub's dataset.

    Raises:
        LLMError: If neither is there.
    """
    path = Path(name).expanduser()
    if os.path.lexists(path):
        return Source(name, tuple(data_files(path)))
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.suffix:
        raise missing_source(name)
    return Source(name, hub=_load_from_hub(name))


def read_examples(
    source: Source, options: DataOptions, say: Say, needs_answer: bool = True
) -> Examples:
    """All examples in the files' order.

    Args:
        source: Of `open_source`.
        options: Format, columns and skip_bad count here.
        say: Gets a line for the user.
        needs_answer: An example without one is a fault (in training).

    Raises:
        LLMError, ExceptionGroup: Unknown format or columns; an empty dataset; bad rows, unless
            they are to be skipped.
    """
    rows: list[Row] = []
    faults: list[LLMError] = []
    for found in source.rows():
        (rows if isinstance(found, Row) else faults).append(found)  # type: ignore[arg-type]
    if not rows:
        raise_some(faults)
        raise LLMError(f"{source.name} holds no examples", "it is empty")
    chosen, columns = _choose_format(source, options, rows)
    if options.format == "auto":
        say(f"{source.name}: read as {_described(chosen, columns)}")
    _check_columns(source, chosen, columns, rows)
    examples: list[Example] = []
    for row in rows:
        for parsed in _parse(row, chosen, columns, needs_answer):
            (examples if isinstance(parsed, Example) else faults).append(parsed)  # type: ignore[arg-type]
    if chosen == "tatqa":
        faults += _repeated_ids(examples)
    else:
        examples = _with_ids(examples)
    if not options.skip_bad:
        raise_some(faults, SKIP_BAD)
    if not examples:
        raise_some(faults)
        raise LLMError(f"{source.name} holds no examples", "none of its contexts has a question")
    return Examples(_first_of_each_id(examples), faults, chosen)


def _choose_format(
    source: Source, options: DataOptions, rows: Sequence[Row]
) -> tuple[Format, Columns]:
    """The format that was asked for, or the one that the first row shows."""
    given, has = options.columns, rows[0].values
    if options.format not in ("auto", "columns"):
        return options.format, given
    if options.format == "columns" or given.given:
        usual = next((pair for pair in LIKELY if all(name in has for name in pair)), LIKELY[0])
        names = (given.prompt or usual[0], given.response or usual[1])
        return "columns", replace(given, prompt=names[0], response=names[1])
    if all(key in has for key in tatqa.KEYS):
        return "tatqa", given
    if "messages" in has:
        return "messages", given
    if {"instruction", "response"} <= has.keys():
        return "dolly", given
    if {"instruction", "output"} <= has.keys():
        return "alpaca", given
    for prompt, response in LIKELY:
        if {prompt, response} <= has.keys():
            return "columns", Columns(prompt, response)
    is_text_file = bool(source.files) and source.files[0].suffix.lower() in TEXT
    if is_text_file or "text" in has:
        return "text", given
    why = f"{rows[0].where} has the columns {_names(has)}"
    fix = "say which are meant: --prompt-column NAME --response-column NAME"
    raise LLMError(f"the format of {source.name} is none of those known", why, fix)


def _described(chosen: Format, columns: Columns) -> str:
    if chosen == "columns":
        return f"columns (prompt: {columns.prompt}, response: {columns.response})"
    return {
        "dolly": "dolly (instruction, context, response)",
        "alpaca": "alpaca (instruction, input, output)",
        "tatqa": "TAT-QA (table, paragraphs, questions)",
        "messages": "messages (chats)",
    }.get(chosen, "text (documents, learned as a whole)")


def _check_columns(source: Source, chosen: Format, columns: Columns, rows: Sequence[Row]) -> None:
    """Refuse columns that no row has, naming the nearest of those that are there."""
    wanted = {
        "dolly": ("instruction", "response"),
        "alpaca": ("instruction", "output"),
        "tatqa": tatqa.KEYS,
        "text": ("text",),
        "messages": ("messages",),
        "columns": (columns.prompt, columns.response, columns.input, columns.context),
    }[chosen]
    there: dict[str, None] = {}
    for row in rows:
        there.update(dict.fromkeys(row.values))
    faults = []
    for name in wanted:
        if name is not None and name not in there:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            why = f"it has {_names(there)}"
            fix = f"did you mean {near[0]}?" if near else "see --format and --prompt-column"
            faults.append(LLMError(f"{source.name} has no column {name}", why, fix))
    raise_some(faults)


def _parse(
    row: Row, chosen: Format, columns: Columns, needs_answer: bool
) -> Iterator[Example | LLMError]:
    if chosen == "tatqa":
        yield from tatqa.parse_context(row, needs_answer)
        return
    try:
        if chosen == "text":
            yield _identified(Example("", "", text=_text(row, "text"), where=row.where), row)
        elif chosen == "messages":
            yield _identified(_from_messages(row, needs_answer), row)
        else:
            names = {
                "dolly": Columns("instruction", "response", "context"),
                "alpaca": Columns("instruction", "output", "input"),
            }.get(chosen, columns)
            yield _from_columns(row, names, needs_answer, strip=chosen != "columns")
    except LLMError as fault:
        yield fault


def _from_columns(row: Row, names: Columns, needs_answer: bool, strip: bool) -> Example:
    """strip: published instruction data carry stray line ends, which a model would learn."""
    assert names.prompt is not None and names.response is not None
    task_input = "" if names.input is None else _text(row, names.input, needed=False)
    texts = (
        _text(row, names.prompt),
        task_input if task_input.strip() else "",
        _text(row, names.response, needed=needs_answer),
    )
    instruction, task_input, response = (t.strip() for t in texts) if strip else texts
    example = Example("", "", instruction, task_input, response, where=row.where)
    if names.context is not None:
        return _identified(example, row, _group(row, names.context))
    # Dolly's questions on one passage belong together, or the held-out ones have been seen.
    return _identified(example, row, task_input if names.input == "context" else "")


def _group(row: Row, column: str) -> str:
    value = row.values.get(column)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise LLMError(f"{row.where}: {column} is {_kind(value)}, expected a text or whole number")
    return f"context {value}"


def _from_messages(row: Row, needs_answer: bool) -> Example:
    """OpenAI's form; keys other than role and content have no place in a text."""
    messages = row.values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise LLMError(f"{row.where}: messages is {_kind(messages)}, expected a list of messages")
    for number, message in enumerate(messages, start=1):
        place = f"{row.where}, message {number}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise LLMError(f"{place} has no role", 'expected {"role": "user", "content": "…"}')
        if not isinstance(message.get("content"), str):
            raise LLMError(f"{place}: content is {_kind(message.get('content'))}, expected a text")
        if not message["content"].strip():
            raise LLMError(f"{place}: content is empty")
    last = messages[-1]["role"]
    if last != "assistant":
        why = f"the last of {len(messages)} messages is of the role {last!r}"
        if needs_answer:
            raise LLMError(f"{row.where}: there is no answer of the assistant to learn", why)
        messages = [*messages, {"role": "assistant", "content": ""}]
    if len(messages) < 2 or messages[-2]["role"] not in ROLES_BEFORE_ANSWER:
        raise LLMError(f"{row.where}: no message of the user is before the assistant's last one")
    kept = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    return Example("", "", messages=kept, where=row.where)


def _text(row: Row, column: str, needed: bool = True) -> str:
    value = row.values.get(column)
    if value is None and column not in row.values and needed:
        raise LLMError(f"{row.where} has no {column}", f"it has {_names(row.values)}")
    text = "" if value is None else value
    if not isinstance(text, str):
        raise LLMError(f"{row.where}: {column} is {_kind(value)}, expected a text")
    if needed and not text.strip():
        raise LLMError(f"{row.where}: {column} is empty")
    return text


def _identified(example: Example, row: Row, group: str = "") -> Example:
    """The example with the row's own id, if it has one, and the context it belongs to.

    Without a group of its own an example's context is its prompt: the same prompt is never on both
    sides of a split, and the order of the rows plays no part.
    """
    own = next((row.values[key] for key in OWN_IDS if key in row.values), "")
    is_id = isinstance(own, (str, int)) and not isinstance(own, bool)
    content = [group] if group else [example.text, example.instruction, example.input]
    if example.messages is not None:
        content = [m["content"] for m in example.messages[:-1]]
    context = sha256(json.dumps(content).encode()).hexdigest()[:16]
    return replace(example, id=str(own) if is_id else "", context=context)


def _with_ids(examples: Sequence[Example]) -> list[Example]:
    """The rows' own ids if they tell all rows apart, else numbers."""
    if all(e.id for e in examples) and len({e.id for e in examples}) == len(examples):
        return list(examples)
    return [replace(e, id=str(number)) for number, e in enumerate(examples, start=1)]


def _repeated_ids(examples: Sequence[Example]) -> list[LLMError]:
    times = Counter(e.id for e in examples)
    first: dict[str, str] = {}
    faults = []
    for example in examples:
        if times[example.id] > 1 and example.id in first:
            why = f"{first[example.id]} has it already"
            faults.append(LLMError(f"{example.where}: uid {example.id} is used twice", why))
        first.setdefault(example.id, example.where)
    return faults


def _first_of_each_id(examples: Sequence[Example]) -> list[Example]:
    return list({e.id: e for e in reversed(examples)}.values())[::-1]


def _load_from_hub(name: str) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    from llm_recipes.model_folder import first_line

    try:
        return datasets.load_dataset(name, split="train")
    except Exception as error:  # the hub's client, httpx and datasets raise their own
        fix = (
            f"on a login node: llm-run hf download {name} --repo-type dataset --local-dir FOLDER\n"
            "then --data FOLDER, or a file in it"
        )
        why = f"it is no file or folder here, and as a hub's dataset: {first_line(error)}"
        raise LLMError(f"cannot find the data {name}", why, fix) from None


def _names(columns: Any) -> str:
    names = [str(name) for name in columns]
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "")


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    return next((name for kind, name in KINDS if isinstance(value, kind)), "no text")
