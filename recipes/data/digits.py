"""Make data that a tiny model can learn in minutes and can't know: "Add 3 to each digit."

    llm-run python recipes/data/digits.py --output data/digits

OUTPUT gets digits-train.jsonl and digits-test.jsonl (instruction, input, output) and run.json. No
test item is a training item in another order, and neither is in the text that recipes/data/tiny.py
learns from: what a model gains by fine-tuning on the first, measured on the second, it has really
learned. The same command makes the same bytes; where they are already, it does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.files import write_text
from llm_recipes.folders import file_digests, new_folder
from llm_recipes.made_folder import RECORD, check_output
from llm_recipes.record import read_record, start_record, write_record
from llm_recipes.say import say

RECIPE = "data/digits"
TRAIN, TEST = "digits-train.jsonl", "digits-test.jsonl"


def make_digits(
    output: Path,
    train: int = 2400,
    test: int = 1000,
    seed: int = 0,
    tiny_steps: int = 300,
    tiny_seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make data that a tiny model can learn in minutes and can't know: "Add 3 to each digit."

    Args:
        output: Folder to make, with digits-train.jsonl and digits-test.jsonl.
        train: Items to learn from.
        test: Items to evaluate with.
        seed: Another number draws other items.
        tiny_steps: No item is in the text that recipes/data/tiny.py learns from in so many steps.
        tiny_seed: Its seed.
        overwrite: Replace what this recipe made there before.
    """
    settings = dict(locals())
    made_with = {k: v for k, v in settings.items() if k not in ("output", "overwrite")}
    folder = output.expanduser().absolute()
    raise_all(_option_faults(made_with))
    if _is_there(folder, made_with):
        say(f"nothing to do: {folder} has these items already")
        return
    check_output(folder, RECIPE, overwrite)
    texts = _draw(made_with)
    record = start_record(RECIPE, settings, "cpu", deterministic=True)
    with new_folder(folder) as staging:
        for name, text in texts.items():
            write_text(staging / name, text)
        record["made_with"] = made_with
        record["data"] = {"path": str(folder / TRAIN), "rows": train}
        record["metrics"] = {"files": [TRAIN, TEST], "digests": file_digests(staging)}
        write_record(staging / RECORD, record, "complete", results=texts)
    say(f"{train} items in {folder / TRAIN}, {test} others in {folder / TEST}")


def _option_faults(options: dict[str, Any]) -> list[LLMError]:
    least = {"train": 1, "test": 1, "seed": 0, "tiny_steps": 0, "tiny_seed": 0}
    return [
        LLMError(
            f"--{name.replace('_', '-')} {options[name]} is not possible", f"at least {lowest}"
        )
        for name, lowest in least.items()
        if options[name] < lowest
    ]


def _is_there(folder: Path, made_with: dict[str, Any]) -> bool:
    record = read_record(folder / RECORD) or {}
    if record.get("recipe") != RECIPE or record.get("made_with") != made_with:
        return False
    digests = file_digests(folder)
    return {name: digests.get(name) for name in (TRAIN, TEST)} == record["metrics"]["digests"]


def _draw(options: dict[str, Any]) -> dict[str, str]:
    """The text of each file.

    Raises:
        LLMError: If there are not so many items.
    """
    from llm_recipes.digits_task import alpaca_lines, digits_in, draw_task, pretraining_texts
    from llm_recipes.tiny_corpus import natural_documents

    natural = natural_documents()
    texts = {*natural, *pretraining_texts(natural, options["tiny_steps"], options["tiny_seed"])}
    seen = set().union(*map(digits_in, texts))
    task = draw_task(options["seed"], seen, options["train"], options["test"])
    faults = [
        LLMError(
            f"there are no {wanted:,} {name} items", f"{len(found):,} are left", "ask for fewer"
        )
        for name, wanted, found in (
            ("training", options["train"], task.tuning),
            ("test", options["test"], task.evaluation),
        )
        if len(found) < wanted
    ]
    raise_all(faults)
    return {TRAIN: alpaca_lines(task.tuning), TEST: alpaca_lines(task.evaluation)}


if __name__ == "__main__":
    run_recipe(make_digits)
