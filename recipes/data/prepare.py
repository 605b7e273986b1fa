"""Turn a dataset into token ids and labels, and show what a model would learn from it.

    llm-run python recipes/data/prepare.py --model models/tiny --data dolly.jsonl
    llm-run python recipes/data/prepare.py --model models/tiny --data tatqa_dataset_dev.json \\
        --max-length 2048 --output dolly-lengths --prompts held-out.jsonl

Prints counts, the split, how long the examples are, and one of them with the learned part marked.
The result lies in a cache, where the fine-tuning recipe finds it; the same command again takes no
time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.examples import Columns, DataOptions, Example, option_faults
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.prepared_data import PreparedData

RECIPE = "data/prepare"
BEGIN, END = "⟦", "⟧"  # around what is learned
BOLD, PLAIN = "\x1b[1;32m", "\x1b[0m"
MOST_SHOWN = 4000  # characters of the example


def prepare_data(
    model: str,
    data: str,
    format: Literal["auto", "dolly", "alpaca", "tatqa", "text", "messages", "columns"] = "auto",
    prompt_column: str | None = None,
    response_column: str | None = None,
    input_column: str | None = None,
    context_column: str | None = None,
    prompt_style: Literal["auto", "raw", "chat", "alpaca"] = "auto",
    system: str | None = None,
    max_length: int = 1024,
    held_out: float = 0.05,
    split_seed: int = 0,
    skip_bad: bool = False,
    learn_prompt: bool = False,
    output: Path | None = None,
    prompts: Path | None = None,
) -> None:
    """Turn a dataset into token ids and labels, and show what a model would learn from it.

    Args:
        model: Folder of the model or only of its tokenizer, or a hub's name (OWNER/NAME).
        data: File (.jsonl, .json, .csv, .tsv, .parquet, .txt, .md), folder of such files, or a
            hub's dataset (OWNER/NAME).
        format: What the rows hold; auto: found from the first of them.
        prompt_column: Column of the prompt; null: prompt or question.
        response_column: Column of the response; null: response, completion or answer.
        input_column: Column of what the prompt works on; null: none.
        context_column: Column of what several rows share, such as a document's name: rows that
            share it are never on both sides of the split; null: rows of the same prompt.
        prompt_style: raw text, the model's chat template, or alpaca's instruction form; auto: the
            chat template if the model has one, else alpaca's form (raw for documents).
        system: System message for chats that have none.
        max_length: Tokens of an example at most; what is longer loses its end.
        held_out: Share of the contexts kept apart from training; 0: none.
        split_seed: Another number keeps other contexts apart.
        skip_bad: Leave bad rows out instead of stopping.
        learn_prompt: Learn the prompt's tokens too.
        output: Folder for lengths.png, summary.json and run.json; null: none.
        prompts: File for the held-out part's prompts, for generate.py --prompts; null: none.
    """
    settings = dict(locals())
    columns = Columns(prompt_column, response_column, input_column, context_column)
    options = DataOptions(
        data,
        format,
        columns,
        prompt_style,
        system,
        max_length,
        held_out,
        split_seed,
        skip_bad,
        learn_prompt,
    )
    raise_all(option_faults(options) + prompts_faults(options, prompts))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # for a job's log
    from llm_recipes.prepared_data import cache_folder, prepare
    from llm_recipes.record import add_input, start_record
    from llm_recipes.tokenizer_folder import load_tokenizer

    # The record asks torch about GPUs, and torch takes seconds to load.
    record = None
    if output is not None:
        record = start_record(RECIPE, settings, "cpu", ("output", "prompts"), deterministic=True)
    folder, tokenizer = load_tokenizer(model)
    if record is not None:
        add_input(record, "model", folder)
        add_input(record, "data", data)
    prepared = prepare(options, tokenizer, folder, cache_folder(), say)
    describe(prepared, options)
    show_example(prepared, tokenizer)
    if prompts is not None:
        write_prompts(prompts.expanduser(), prepared, options)
    if output is not None and record is not None:
        written = None if prompts is None else prompts.expanduser()
        write_summary(output.expanduser(), prepared, options, record, written)


def prompts_faults(options: DataOptions, prompts: Path | None) -> list[LLMError]:
    """What speaks against writing the held-out prompts before anything is read."""
    if prompts is None or options.held_out > 0:
        return []
    what = "--prompts needs a held-out part"
    return [LLMError(what, "--held-out 0 keeps nothing apart", "such as --held-out 0.05")]


def describe(prepared: PreparedData, options: DataOptions) -> None:
    """Print counts and the distribution of lengths."""
    from llm_recipes.length_plot import length_lines
    from llm_recipes.prepared_data import example_lengths

    facts = prepared.facts
    print(f"format {facts['format']}, prompt style {facts['style']}")
    print(
        f"{facts['examples']:,} examples in {facts['contexts']:,} contexts, {facts['bad']:,} bad: "
        f"{facts['train']:,} rows to train on, {facts['held_out']:,} held out"
    )
    print(
        f"{facts['tokens']:,} tokens, of which {facts['loss_tokens']:,} are learned "
        f"({facts['loss_tokens'] / facts['tokens']:.1%})"
    )
    print(
        f"{facts['truncated']:,} examples cut off at {options.max_length:,} tokens, "
        f"{facts['dropped']:,} dropped"
    )
    percentiles = ", ".join(f"{p} %: {n:,}" for p, n in facts["percentiles"].items())
    print(f"tokens of an example: {percentiles}; longest: {facts['longest']:,}")
    for line in length_lines(example_lengths(prepared), options.max_length):
        print("  " + line)
    print(f"prepared data in {prepared.folder}")


def show_example(prepared: PreparedData, tokenizer: Any) -> None:
    """Print the first example as the model sees it, with what it learns marked."""
    row = prepared.train[0]
    begin, end = BEGIN, END
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        begin, end = BOLD + BEGIN, END + PLAIN
    text = "".join(
        f"{begin}{part}{end}" if learned else part
        for part, learned in decoded_parts(row["input_ids"], row["labels"], tokenizer)
    )
    if len(text) > MOST_SHOWN:
        half = MOST_SHOWN // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"
    print(f"\nexample {row['id']}, with {BEGIN}what is learned{END}:\n{text}")


def decoded_parts(ids: list[int], labels: list[int], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Text of neighbouring tokens that are all learned or all not."""
    written, start = 0, 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and (labels[end] < 0) == (labels[start] < 0):
            continue
        # A part alone would lose the space that SentencePiece keeps in its first token.
        whole = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        yield whole[written:], labels[start] >= 0
        written, start = len(whole), end


def write_prompts(path: Path, prepared: PreparedData, options: DataOptions) -> None:
    """Write the held-out prompts as JSON Lines, each with the answer that the data have."""
    from llm_recipes.dataset_formats import open_source, read_examples
    from llm_recipes.files import write_text

    if prepared.facts["format"] == "text":
        fix = "leave --prompts out"
        raise LLMError("documents have no prompts", "all of a document is learned", fix)
    if not prepared.facts["held_out"]:
        raise LLMError("there are no held-out prompts to write", fix="raise --held-out")
    wanted = set(prepared.held_out["id"])
    found = read_examples(open_source(options.path), options, lambda text: None)
    lines = [prompt_line(example) for example in found.examples if example.id in wanted]
    write_text(path, "".join(lines))
    style = prepared.facts["style"]
    print(f"\n{len(lines)} held-out prompts in {path}; for generate.py: --prompt-style {style}")


def prompt_line(example: Example) -> str:
    """A held-out prompt as generate.py reads it; what it does not know it leaves alone."""
    row: dict[str, Any] = {"id": example.id}
    if example.messages is not None:
        row["messages"] = list(example.prompt.messages or ())
    else:
        row["prompt"] = example.instruction
        if example.input:
            row["input"] = example.input
    return json.dumps({**row, "reference": example.answer}, ensure_ascii=False) + "\n"


def write_summary(
    folder: Path,
    prepared: PreparedData,
    options: DataOptions,
    record: dict[str, Any],
    prompts: Path | None,
) -> None:
    """Write the picture of lengths, the counts, and the run's record. prompts: written before."""
    from llm_recipes.files import write_fault, write_text
    from llm_recipes.length_plot import draw_lengths
    from llm_recipes.prepared_data import example_lengths
    from llm_recipes.record import file_hashes, write_record

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(folder, error) from error
    facts = {**prepared.facts, "options": asdict(options), "prepared": str(prepared.folder)}
    title = f"{Path(options.path).name}: {facts['examples']:,} examples"
    draw_lengths(folder / "lengths.png", example_lengths(prepared), options.max_length, title)
    write_text(folder / "summary.json", json.dumps(facts, indent=2) + "\n")
    record["data"] = {"path": options.path, "digest": facts["digest"], "rows": facts["examples"]}
    record["metrics"] = prepared.facts
    if prompts is not None:
        record["results"] = file_hashes(prompts.parent, [prompts.name])
    names = ["lengths.png", "summary.json"]
    write_record(folder / "run.json", record, "complete", results=names)
    print(f"\nlengths.png and summary.json in {folder}")


if __name__ == "__main__":
    run_recipe(prepare_data)
