"""Make a tiny language model that has really learned something, without a network.

    llm-run python recipes/data/tiny.py --output models/tiny
    llm-run python recipes/data/tiny.py --output models/falcon --architecture falcon --steps 0

A Hugging Face folder of about 4 million parameters, trained on the texts of Python's own help(), on
sums of single digits and on a few questions. The same command makes the same bytes on the same
machine; where its model is there already, it does nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.files import write_text
from llm_recipes.folders import file_digests, new_folder
from llm_recipes.record import read_record, start_record, write_record
from llm_recipes.tiny_models import Architecture, Shape, model_config, shape_faults

RECIPE = "data/tiny"
RECORD, METRICS = "run.json", "metrics.jsonl"
SYNTHETIC_DOCUMENTS_FOR_TOKENIZER = 4000
SHOWN_PROMPT = "My favourite condiment is"


@dataclass(frozen=True)
class Settings:
    """What decides the model's bytes on a machine: the content key of the folder."""

    architecture: Architecture
    shape: Shape
    steps: int
    seed: int
    threads: int


def make_tiny_model(
    output: Path,
    architecture: Architecture = "llama",
    steps: int = 300,
    seed: int = 0,
    hidden_size: int = 256,
    intermediate_size: int = 768,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    vocab_size: int = 4096,
    context_length: int = 2048,
    threads: int = 1,
    overwrite: bool = False,
) -> None:
    """Make a tiny language model that has really learned something, without a network.

    Args:
        output: folder of the model; made, with those above it
        architecture: family of the model
        steps: training steps of 1024 tokens each; 0: random weights
        seed: of the weights and of the order of the text
        hidden_size: width of the model; llama.cpp's K-quants want multiples of 256
        intermediate_size: width of the MLP
        layers: number of layers
        heads: attention heads
        kv_heads: key and value heads; null: as the family has it
        vocab_size: pieces of the tokenizer
        context_length: most tokens of a text (training uses 128 at a time)
        threads: CPU threads; another number may give other last digits
        overwrite: replace a tiny model that was made with other settings
    """
    options = dict(locals())
    shape = Shape(
        hidden_size, intermediate_size, layers, heads, kv_heads, vocab_size, context_length
    )
    settings = Settings(architecture, shape, steps, seed, threads)
    folder = output.expanduser().resolve()
    raise_all(_setting_faults(settings) + shape_faults(architecture, shape))
    if _is_there(folder, settings, overwrite):
        print(f"nothing to do: {folder} is this model already")
        return
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # for a job's log
    record = start_record(RECIPE, options, "cpu", deterministic=True)
    record["made_with"] = asdict(settings)
    with new_folder(folder) as staging:
        _make(staging, settings, record)
        record["model"]["files"] = file_digests(staging)
        record["model"]["path"] = str(folder)
        names = [name for name in record["model"]["files"] if name != METRICS]
        write_record(staging / RECORD, record, "complete", results=names)
    print(f"model in {folder}")


def _setting_faults(settings: Settings) -> list[LLMError]:
    faults = []
    for name, value, least in (
        ("steps", settings.steps, 0),
        ("seed", settings.seed, 0),
        ("threads", settings.threads, 1),
    ):
        if value < least:
            faults.append(LLMError(f"--{name} {value} is not possible", f"at least {least}"))
    return faults


def _make(folder: Path, settings: Settings, record: dict[str, Any]) -> None:
    """Train tokenizer and model, measure them, and write all files but the record."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from llm_recipes import tiny_corpus, tiny_tokenizer, tiny_training

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tiny_training.make_repeatable(settings.seed, settings.threads)
    texts = tiny_corpus.natural_documents()
    training, held_out = tiny_corpus.split_documents(texts)
    print(f"text: {len(training)} documents to learn from, {len(held_out)} held out")
    pieces, tokenizer = _make_tokenizer(settings, training)
    config = model_config(settings.architecture, settings.shape)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"model: {settings.architecture}, {parameters / 1e6:.2f} million parameters")
    metrics = {"untrained_perplexity": tiny_training.perplexity(model, held_out, tokenizer)}
    if settings.steps:
        documents = tiny_corpus.training_documents(training, settings.seed)
        rows, metrics_of_training = _train(model, documents, tokenizer, settings.steps)
        metrics |= metrics_of_training
        metrics["held_out_perplexity"] = tiny_training.perplexity(model, held_out, tokenizer)
        metrics["sums_right"] = tiny_training.sums_right(model, tokenizer)
        metrics["questions_right"] = tiny_training.questions_right(model, tokenizer)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(folder / METRICS, lines)
    model.save_pretrained(folder)
    tiny_tokenizer.save_tokenizer(tokenizer, pieces, folder)
    _print_metrics(metrics, tiny_training.complete(model, tokenizer, [SHOWN_PROMPT], 24)[0])
    digest = sha256("\0".join(texts).encode()).hexdigest()
    record["metrics"] = metrics
    record["data"] = {"path": "the texts of Python's help()", "digest": digest, "rows": len(texts)}
    record["model"] = {
        "architecture": type(model).__name__,
        "parameters": parameters,
        "dtype": "fp32",
    }


def _make_tokenizer(settings: Settings, training: list[str]) -> tuple[bytes | None, Any]:
    """Return the SentencePiece model, None for Qwen2, and transformers' tokenizer."""
    from llm_recipes import tiny_tokenizer

    texts = _tokenizer_text(training, settings.seed)
    vocab_size = settings.shape.vocab_size
    pieces = None
    if settings.architecture == "qwen2":
        tokenizer: Any = tiny_tokenizer.qwen2_tokenizer(texts, vocab_size)
    else:
        pieces = tiny_tokenizer.train_sentencepiece(texts, vocab_size)
        tokenizer = tiny_tokenizer.llama_tokenizer(pieces)
    tokenizer.model_max_length = settings.shape.context_length
    return pieces, tokenizer


def _tokenizer_text(training: list[str], seed: int) -> Iterator[str]:
    from llm_recipes.tiny_corpus import training_documents

    yield from training
    for document in islice(training_documents(training, seed), SYNTHETIC_DOCUMENTS_FOR_TOKENIZER):
        yield document.text
        for turn in document.turns:
            yield f"### Instruction:\n{turn.instruction}\n\n### Response:\n{turn.response}"


def _train(
    model: Any, documents: Iterator[Any], tokenizer: Any, steps: int
) -> tuple[list[dict[str, float]], dict[str, float]]:
    from llm_recipes import tiny_training

    start = time.monotonic()
    rows = tiny_training.train(model, documents, tokenizer, steps)
    seconds = time.monotonic() - start
    tokens = steps * tiny_training.BATCH_BLOCKS * tiny_training.BLOCK_TOKENS
    return rows, {
        "train_s": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1),
    }


def _print_metrics(metrics: dict[str, float], completion: str) -> None:
    untrained = f"{metrics['untrained_perplexity']:.0f}"
    if "held_out_perplexity" not in metrics:
        print(f"held-out perplexity: {untrained} (untrained)")
        return
    print(f"held-out perplexity: {metrics['held_out_perplexity']:.1f}, untrained {untrained}")
    print(
        f"sums of two digits answered right: {metrics['sums_right']:.0%}, "
        f"questions of the training text: {metrics['questions_right']:.0%}"
    )
    print(f"{SHOWN_PROMPT}{completion}")
    print(f"training: {metrics['train_s']:.0f} s, {metrics['tokens_per_s']:.0f} tokens/s")


def _is_there(folder: Path, settings: Settings, overwrite: bool) -> bool:
    """Tell whether the folder is this model already.

    Raises:
        LLMError: If the folder holds anything that making the model would lose.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise LLMError(f"{folder} is a file", "the model is a folder", "choose another --output")
    present = {path.name for path in folder.iterdir()}
    if not present:
        return False
    record = read_record(folder / RECORD) or {}
    # Older records have it among the configuration.
    made_with = record.get("made_with") or record.get("config", {})
    made = record.get("model", {}).get("files")
    if record.get("recipe") != RECIPE or made is None or "shape" not in made_with:
        why = "it holds something else, which --overwrite doesn't replace either"
        raise LLMError(f"{folder} is no tiny model", why, "choose another --output")
    wanted, there = _flat(asdict(settings)), _flat(made_with)
    differs = [f"{k} {there.get(k)}, now {v}" for k, v in wanted.items() if there.get(k) != v]
    digests = file_digests(folder)
    changed = [name for name in made if digests.get(name) != made[name]]
    if not overwrite and not differs and not changed:
        return True
    foreign = sorted(present - set(made) - {RECORD})
    if foreign:
        what, why = f"{folder} holds files that are not the tiny model's", ", ".join(foreign[:8])
        raise LLMError(what, why, "move them away, or choose another --output")
    if overwrite:
        return False
    what = f"{folder} is another tiny model" if differs else f"files in {folder} were changed"
    fix = "--overwrite replaces it, or choose another --output"
    raise LLMError(what, "; ".join(differs or changed), fix)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in settings.items() if name != "shape"}
    return {**flat, **settings["shape"]}


if __name__ == "__main__":
    run_recipe(make_tiny_model)
