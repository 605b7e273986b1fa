"""What lies beside the weights of a converted Llama: configuration, tokenizer, what was there.

    from llm_recipes.meta.reshard_files import write_hf_files, write_meta_files

What the new format has no place for goes into a folder of its own, `huggingface` in Meta's format
and `original` in Hugging Face's: so the way back gives the same files, byte for byte.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from llm_recipes.architecture import read_json
from llm_recipes.errors import LLMError
from llm_recipes.meta.checkpoint import ORIGINAL, PARAMS, SIDECAR, TOKENIZER
from llm_recipes.meta.params import config_of, params_of, raw_params, read_params
from llm_recipes.meta.reshard_source import CONFIG, Source
from llm_recipes.meta.tokenizer import (
    load_tokenizer,
    stop_ids,
    write_hf_tokenizer,
    write_meta_tokenizer,
)
from llm_recipes.model_settings import (
    copy_generation_settings,
    copy_tokenizer,
    has_tokenizer,
    write_config,
)

GENERATION = "generation_config.json"
ENDS = "eos_token_id"
TERMS = ("LICENSE", "USE_POLICY", "NOTICE")  # beginnings of names: copies of the weights need them
Say = Callable[[str], None]


def write_hf_files(
    source: Source,
    folder: Path,
    *,
    tied: bool,
    context: int,
    dtype: torch.dtype,
    chat: bool,
    say: Say,
) -> None:
    """Write all of a Hugging Face folder but its weights.

    Args:
        source: The model.
        folder: Where to.
        tied: Whether its output head is its embeddings.
        context: Tokens it was trained for.
        dtype: Of its weights.
        chat: Its tokenizer gets a chat template if it has none.
        say: Tells the user something.
    """
    settings = source.settings
    if settings is not None and has_tokenizer(settings):
        copy_tokenizer([settings], folder)
        if chat:
            _add_chat_template(source, settings, folder)
    else:
        assert source.tokenizer is not None
        write_hf_tokenizer(source.tokenizer, folder, chat)
    config = source.config
    if settings is not None and config is not None and ENDS in config:
        changes = {"tie_word_embeddings": tied, "max_position_embeddings": context}
        if bool(config.get("tie_word_embeddings")) != tied:
            say(f"{settings / CONFIG} says otherwise, but the output head is not the embeddings")
        if not tied and "tie_word_embeddings" not in config:
            del changes["tie_word_embeddings"]
        _copy_config(settings / CONFIG, folder, dtype, changes)
    else:
        _write_json(folder / CONFIG, _config(source, tied, context, dtype, chat))
    if settings is not None and (settings / GENERATION).is_file():
        copy_generation_settings([settings], folder)
    else:
        made = read_json(folder / CONFIG)
        ends = {name: made.get(name) for name in ("bos_token_id", "eos_token_id")}
        _write_json(folder / GENERATION, ends)
    original = folder / ORIGINAL
    original.mkdir()
    assert source.raw is not None
    shutil.copyfile(source.raw, original / PARAMS)
    if source.tokenizer is not None:
        shutil.copyfile(source.tokenizer, original / TOKENIZER)
    _copy_terms(source, folder)


def write_meta_files(source: Source, folder: Path, *, dtype: torch.dtype, say: Say) -> None:
    """Write all of a checkpoint in Meta's format but its shards.

    Args:
        source: The model.
        folder: Where to.
        dtype: Of its weights.
        say: Tells the user something.

    Raises:
        LLMError: If params.json cannot express its sizes.
    """
    raw = params_to_write(source, say)
    if isinstance(raw, Path):
        shutil.copyfile(raw, folder / PARAMS)
    else:
        _write_json(folder / PARAMS, raw)
    if source.kind == "hf":
        if not write_meta_tokenizer(source.folder, folder):
            say(f"no {TOKENIZER} can be made of its tokenizer: sharded.py takes that in {SIDECAR}/")
    elif source.tokenizer is not None:
        shutil.copyfile(source.tokenizer, folder / TOKENIZER)
    else:
        say(f"{source.folder} has no tokenizer: sharded.py will need --tokenizer")
    settings, sidecar = source.settings, folder / SIDECAR
    sidecar.mkdir()
    if settings is not None:
        copy_tokenizer([settings], sidecar)
        copy_generation_settings([settings], sidecar)
    if settings is not None and source.config is not None:
        _copy_config(settings / CONFIG, sidecar, dtype, {})
    elif source.params.rope_factor is not None:
        _write_json(sidecar / CONFIG, _rope_config(source, dtype))
    if not any(sidecar.iterdir()):
        sidecar.rmdir()
    _copy_terms(source, folder)


def params_to_write(source: Source, say: Say) -> Path | dict[str, Any]:
    """The params.json to copy, or what to write into a new one.

    Raises:
        LLMError: If it cannot express the model's sizes.
    """
    if source.raw is None:
        return raw_params(source.params)
    if source.kind == "meta" or _agrees(source):
        return source.raw
    say(f"{source.raw} is damaged or of another model than {source.folder / CONFIG}: made anew")
    return raw_params(source.params)


def _agrees(source: Source) -> bool:
    assert source.raw is not None
    params = source.params
    try:
        raw = read_params(source.raw)
        stated = raw.get("vocab_size")
        same_sizes = params_of(raw, params.vocabulary, params.rope_factor, source.raw) == params
    except (LLMError, ExceptionGroup):
        return False
    return same_sizes and stated in (None, -1, params.vocabulary)


def _config(
    source: Source, tied: bool, context: int, dtype: torch.dtype, chat: bool
) -> dict[str, Any]:
    tokenizer = load_tokenizer(source.tokenizer, source.settings, chat)
    # A base model's text ends with EOS; the ends of a chat's turns have no meaning in it.
    ends = sorted(stop_ids(tokenizer, source.settings)) if chat else [tokenizer.eos_token_id]
    eos = ends[0] if len(ends) == 1 else ends
    name = str(dtype).removeprefix("torch.")
    bos = tokenizer.bos_token_id
    return config_of(source.params, tied=tied, context=context, dtype=name, bos=bos, eos=eos)


def _rope_config(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """A config.json that says what params.json cannot, so that it is not asked again.

    It leaves out what only a conversion to Hugging Face's format knows: tokens, and maybe context.
    """
    name, context = str(dtype).removeprefix("torch."), source.context
    made = config_of(
        source.params, tied=source.tied, context=context or 0, dtype=name, bos=0, eos=0
    )
    unknown = {"bos_token_id", ENDS} | (set() if context else {"max_position_embeddings"})
    return {key: value for key, value in made.items() if key not in unknown}


def _copy_config(
    config: Path, folder: Path, dtype: torch.dtype, changes: Mapping[str, Any]
) -> None:
    """Copy config.json, byte for byte unless it says something else than is true now."""
    before = read_json(config)
    stated = before.get("dtype", before.get("torch_dtype"))
    shutil.copyfile(config, folder / CONFIG)
    if stated is not None and stated != str(dtype).removeprefix("torch."):
        write_config(config, folder, dtype)
    now = {**read_json(folder / CONFIG), **changes}
    if now != read_json(folder / CONFIG):
        _write_json(folder / CONFIG, now)


def _add_chat_template(source: Source, settings: Path, folder: Path) -> None:
    if load_tokenizer(None, settings, False).chat_template:
        return
    made = load_tokenizer(source.tokenizer, settings, True)
    (folder / "chat_template.jinja").write_text(made.chat_template, encoding="utf-8")


def _copy_terms(source: Source, folder: Path) -> None:
    for path in sorted(source.folder.iterdir()):
        if path.name.upper().startswith(TERMS) and path.is_file():
            shutil.copyfile(path, folder / path.name)


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    text = json.dumps(contents, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
