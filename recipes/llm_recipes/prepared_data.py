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
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from llm_recipes.dataset_formats import Say, Source, open_source, read_examples
from llm_recipes.errors import LLMError
from llm_recipes.examples import DataOptions
from llm_recipes.folders import new_folder
from llm_recipes.model_folder import TOKENIZER_FILES
from llm_recipes.prompts import raise_some
from llm_recipes.training_examples import (
    NOT_LEARNED,
    TrainingExample,
    check_style,
    example_style,
    training_examples,
)

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
ALWAYS_HELD_OUT_FROM = 20  # contexts; fewer may leave none for a small share
PERCENTILES = (5, 25, 50, 75, 95, 99)
CHUNK = 1024
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


@dataclass
class Pieces:
    """What is collected on the way from examples to files."""

    ids: list[str]
    contexts: list[str]
    batches: list[Any]
    lengths: list[int]
    kept_lengths: list[int]
    loss_tokens: list[int]
    truncated: int = 0
    dropped: int = 0


def cache_folder() -> Path:
    """Where prepared data lie, unless the user says otherwise by LLM_CACHE_DIR."""
    env = os.environ
    cache = env.get("XDG_CACHE_HOME") or "~/.cache"
    root = env.get("LLM_CACHE_DIR") or os.path.join(cache, "llm")
    return Path(root).expanduser() / "prepared"


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
    pieces, faults = _collect(found.examples, options, tokenizer)
    if not options.skip_bad:
        raise_some(faults)
    bad = [*found.bad, *faults]
    if not pieces.ids:
        raise_some(faults)
        why = f"no response begins within the first {options.max_length} tokens"
        raise LLMError(f"{source.name} has nothing to learn", why, "raise --max-length")
    held_out = _held_out_rows(pieces.contexts, options)
    facts = {
        "digest": source.digest(),
        "format": found.format,
        "style": style,
        "examples": len(found.examples),
        "bad": len(bad),
        "first_bad": bad[0].what if bad else None,
        **_counts(pieces, held_out, options),
    }
    _write(folder, pieces, held_out, facts)


def _collect(
    examples: Sequence[Any], options: DataOptions, tokenizer: Any
) -> tuple[Pieces, list[LLMError]]:
    """Tokens of every example, cut to max_length."""
    pieces = Pieces([], [], [], [], [], [])
    faults: list[LLMError] = []
    waiting: list[tuple[list[int], list[int]]] = []
    for found in training_examples(
        examples, tokenizer, options.prompt_style, options.system, options.learn_prompt
    ):
        if isinstance(found, LLMError):
            faults.append(found)
            continue
        pieces.lengths.append(len(found.ids))
        for name, ids, labels in _cut(found, options.max_length, tokenizer, pieces):
            pieces.ids.append(name)
            pieces.contexts.append(found.example.context)
            pieces.kept_lengths.append(len(ids))
            pieces.loss_tokens.append(_learned(labels))
            waiting.append((ids, labels))
        if len(waiting) >= CHUNK:
            pieces.batches.append(_arrays(waiting))
            waiting = []
    if waiting:
        pieces.batches.append(_arrays(waiting))
    return pieces, faults


def _cut(
    found: TrainingExample, most: int, tokenizer: Any, pieces: Pieces
) -> Iterator[tuple[str, list[int], list[int]]]:
    """An example within the limit: a response loses its end, a document becomes several."""
    name, ids, labels = found.example.id, found.ids, found.labels
    if found.example.text is not None and len(ids) > most:
        yield from _blocks(found, most, tokenizer)
        return
    if len(ids) > most:
        ids, labels = ids[:most], labels[:most]
        if not _learned(labels):
            pieces.dropped += 1
            return
        pieces.truncated += 1
    elif not _learned(labels):
        pieces.dropped += 1  # a document of one token
        return
    yield name, ids, labels


def _learned(labels: list[int]) -> int:
    return len(labels) - labels.count(NOT_LEARNED)


def _blocks(
    found: TrainingExample, most: int, tokenizer: Any
) -> Iterator[tuple[str, list[int], list[int]]]:
    """A long document in blocks; each begins with a BOS if the document does."""
    ids = found.ids
    bos = [ids[0]] if ids[0] == tokenizer.bos_token_id else []
    step = most - len(bos)
    for number, start in enumerate(range(len(bos), len(ids), step), start=1):
        block = [*bos, *ids[start : start + step]]
        if len(block) > 1:
            yield f"{found.example.id}#{number}", block, [NOT_LEARNED, *block[1:]]


def _arrays(rows: Sequence[tuple[list[int], list[int]]]) -> Any:
    import pyarrow

    kind = pyarrow.list_(pyarrow.int32())
    columns = [pyarrow.array([row[i] for row in rows], kind) for i in (0, 1)]
    return pyarrow.RecordBatch.from_arrays(columns, ["input_ids", "labels"])


def _held_out_rows(contexts: Sequence[str], options: DataOptions) -> list[bool]:
    """Which rows are held out: those of the contexts with the smallest digests.

    The digest is of the seed and the context alone: the order of rows plays no part.
    """

    def digest(context: str) -> bytes:
        return sha256(json.dumps([options.split_seed, context]).encode()).digest()

    ordered = sorted(set(contexts), key=digest)
    count = round(options.held_out * len(ordered))
    if options.held_out > 0 and len(ordered) >= ALWAYS_HELD_OUT_FROM:
        count = max(count, 1)
    chosen = set(ordered[: min(count, len(ordered) - 1)])
    return [context in chosen for context in contexts]


def _counts(pieces: Pieces, held_out: Sequence[bool], options: DataOptions) -> dict[str, Any]:
    import numpy

    lengths = numpy.array(pieces.lengths)
    kept = numpy.array(pieces.kept_lengths)
    learned = numpy.array(pieces.loss_tokens)
    train = ~numpy.array(held_out, dtype=bool)
    return {
        "contexts": len(set(pieces.contexts)),
        "train": int(train.sum()),
        "held_out": int((~train).sum()),
        "tokens": int(kept.sum()),
        "loss_tokens": int(learned.sum()),
        "train_tokens": int(kept[train].sum()),
        "train_loss_tokens": int(learned[train].sum()),
        "longest": int(lengths.max()),
        "longest_kept": int(kept.max()),
        "percentiles": {
            str(p): int(numpy.percentile(lengths, p, method="higher")) for p in PERCENTILES
        },
        "max_length": options.max_length,
        "truncated": pieces.truncated,
        "dropped": pieces.dropped,
    }


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
