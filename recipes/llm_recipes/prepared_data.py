"""A dataset as token ids and labels on disk: made once, split, counted; the next run loads it.

    from llm_recipes.prepared_data import cache_folder, prepare
    data = prepare(DataOptions("dolly.jsonl"), tokenizer, folder, cache_folder(), print)
    data.train[0]["input_ids"]

The folder's name is a digest of the data's bytes, the tokenizer's files and the options: whatever
changes the token ids makes another folder, and nothing in one ever changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from llm_recipes.dataset_formats import Say, Source, open_source, read_examples
from llm_recipes.errors import LLMError
from llm_recipes.examples import SKIP_BAD, DataOptions
from llm_recipes.folders import new_folder, user_cache
from llm_recipes.model_folder import TOKENIZER_FILES
from llm_recipes.prompts import raise_some
from llm_recipes.training_examples import check_style, example_style
from llm_recipes.training_rows import Pieces, collect, counts, held_out_rows

VERSION = 1  # of all code that decides token ids, labels or the split: raise it with each change
ALL_TOKENIZER_FILES = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
FACTS, LENGTHS = "facts.json", "lengths.npy"


@dataclass(frozen=True)
class PreparedData:
    """Training data on disk.

    train, held_out: `datasets.Dataset`s with input_ids (int32), labels (int32, -100 where nothing
    is learned) and id; held_out may have no rows. facts: counts, see the README of recipes/data.
    """

    folder: Path
    train: Any
    held_out: Any
    facts: dict[str, Any]


def cache_folder() -> Path:
    """Where prepared data lie, unless the user says otherwise by LLM_CACHE_DIR."""
    return user_cache("prepared")


def prepare(
    options: DataOptions, tokenizer: Any, model_path: Path, cache: Path, say: Say
) -> PreparedData:
    """Token ids and labels of a dataset, split into what is trained and what is held out.

    Args:
        options: What the data are and how they are rendered; `examples.option_faults` checks them.
        tokenizer: The model's.
        model_path: Folder of the tokenizer's files.
        cache: Folder of prepared data, `cache_folder()`.
        say: Gets lines for the user.

    Raises:
        LLMError, ExceptionGroup: Data that are missing, empty or bad, an example that does not fit
            the model's chat template, nothing to learn, or a cache that cannot be written.
    """
    source = open_source(options.path)
    folder = cache / _key(source, options, tokenizer, model_path)
    with _locked(folder):
        data = _load(folder)
        if data is not None:
            say(f"{options.path}: prepared before, in {folder}")
        else:
            _make(folder, source, options, tokenizer, say)
            data = _load(folder)
    if data is None:
        raise LLMError(f"{folder} cannot be read again", fix="remove it and try once more")
    _warn(data.facts, options, say)
    return data


def _key(source: Source, options: DataOptions, tokenizer: Any, model_path: Path) -> str:
    import transformers

    found = sha256()
    # Where the data lie plays no part; how a tokenizer was changed after loading does.
    chosen = {**asdict(options), "path": None}
    special = [tokenizer.bos_token, tokenizer.eos_token, str(tokenizer.chat_template)]
    about = [VERSION, transformers.__version__, source.digest(), chosen, special]
    found.update(json.dumps(about, sort_keys=True).encode())
    for name in ALL_TOKENIZER_FILES:
        if (model_path / name).is_file():
            found.update(name.encode() + b"\0" + (model_path / name).read_bytes())
    return found.hexdigest()[:32]


def _make(folder: Path, source: Source, options: DataOptions, tokenizer: Any, say: Say) -> None:
    found = read_examples(source, options, say)
    style = example_style(options.prompt_style, tokenizer, found.examples[0])
    check_style(style, tokenizer, options.system)
    pieces, faults = collect(found.examples, options, tokenizer)
    if not options.skip_bad:
        raise_some(faults, SKIP_BAD)
    bad = [*found.bad, *faults]
    if not pieces.ids:
        raise_some(faults)
        why = f"no response begins within the first {options.max_length} tokens"
        raise LLMError(f"{source.name} has nothing to learn", why, "raise --max-length")
    held_out = held_out_rows(pieces.contexts, options)
    facts = {
        "digest": source.digest(),
        "format": found.format,
        "style": style,
        "examples": len(found.examples),
        "bad": len(bad),
        "first_bad": bad[0].what if bad else None,
        **counts(pieces, held_out, options),
    }
    _write(folder, pieces, held_out, facts)


def _warn(facts: dict[str, Any], options: DataOptions, say: Say) -> None:
    if facts["bad"]:
        say(f"warning: {facts['bad']} bad examples are left out, such as: {facts['first_bad']}")
    if facts["truncated"]:
        say(
            f"warning: {facts['truncated']} of {facts['examples']} examples are cut off at "
            f"{options.max_length} tokens; the longest has {facts['longest']} (--max-length)"
        )
    if facts["dropped"]:
        say(
            f"warning: {facts['dropped']} of {facts['examples']} examples are dropped: the prompt "
            f"alone fills {options.max_length} tokens (--max-length)"
        )
    if options.held_out > 0 and not facts["held_out"]:
        say(
            f"warning: nothing is held out: {options.held_out:g} of {facts['contexts']} "
            "contexts is less than one, and some must be left to train on"
        )


def _write(folder: Path, pieces: Pieces, held_out: Sequence[bool], facts: dict[str, Any]) -> None:
    import datasets
    import numpy
    import pyarrow

    table = pyarrow.Table.from_batches(pieces.batches)
    table = table.append_column("id", pyarrow.array(pieces.ids, pyarrow.string()))
    mask = numpy.array(held_out, dtype=bool)
    try:
        with new_folder(folder) as staging, _no_bars():
            for name, rows in (("train", ~mask), ("held_out", mask)):
                if not rows.any():
                    continue  # datasets cannot load what has no rows
                part = table.filter(pyarrow.array(rows)).combine_chunks()
                datasets.Dataset(part).save_to_disk(str(staging / name))
            numpy.save(staging / LENGTHS, numpy.array(pieces.lengths, dtype=numpy.int32))
            kept = {"facts": facts, "files": _sizes(staging)}
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
            # Names of files may hold bytes that are not UTF-8.
            (staging / FACTS).write_bytes(text.encode("utf-8", "backslashreplace"))
    except LLMError as fault:
        fix = "set LLM_CACHE_DIR to a folder with space that you can write"
        raise LLMError(fault.what, fault.why, fix) from None


def example_lengths(data: PreparedData) -> list[int]:
    """Tokens of every example before it was cut, in the files' order."""
    import numpy

    return [int(n) for n in numpy.load(data.folder / LENGTHS, allow_pickle=False)]


def _load(folder: Path) -> PreparedData | None:
    """What an earlier run has made; None if it is not there or damaged."""
    try:
        kept = json.loads((folder / FACTS).read_bytes())
        facts = kept["facts"]
        # Arrow maps files into memory: reading one that was cut off would end the process.
        if _sizes(folder) != kept["files"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    import datasets

    try:
        with _no_bars():
            train = datasets.load_from_disk(str(folder / "train"))
            held_out = (
                datasets.load_from_disk(str(folder / "held_out"))
                if facts["held_out"]
                else train.select([])
            )
    except Exception:  # of datasets, Arrow and the system: written by another version
        return None
    return PreparedData(folder, train, held_out, facts)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FACTS
    }


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make a folder; another that wants the same waits and loads it."""
    fix = "set LLM_CACHE_DIR to a folder that you can write"
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder.parent / f".{folder.name}.lock", "wb"))
        except OSError as error:
            if not folder.is_dir():
                what = f"cannot write the cache {folder.parent}"
                raise LLMError(what, error.strerror or str(error), fix) from None
            lock = None  # a cache that others have filled is read without writing to it
        if lock is not None:
            with contextlib.suppress(OSError):  # some network file systems know no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    import datasets

    were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
