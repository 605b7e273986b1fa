"""Meta's tokenizers as transformers' ones, with the same ids, and back.

tokenizer = load_tokenizer(Path("llama/tokenizer.model"), sidecar=None, chat=False)
write_hf_tokenizer(Path("llama/tokenizer.model"), Path("llama-hf"), chat=False)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llm_recipes.architecture import read_json
from llm_recipes.errors import LLMError
from llm_recipes.meta.chat_templates import LLAMA_2, LLAMA_3
from llm_recipes.meta.tokenizer_building import from_sentencepiece, from_tiktoken, llama_3_tokens
from llm_recipes.meta.tokenizer_files import rank_lines, tokenizer_kind, vocabulary_size
from llm_recipes.model_folder import first_line

__all__ = [
    "load_tokenizer",
    "stop_ids",
    "tokenizer_kind",
    "vocabulary_size",
    "write_hf_tokenizer",
    "write_meta_tokenizer",
]
FILE, HF_FILE = "tokenizer.model", "tokenizer.json"
# What ends a text or a turn of Llama 3's; the last is for calls of tools.
ENDS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
# Without `Fast`, transformers 4 doesn't know it; a Llama class would build another normalizer.
CLASS = "PreTrainedTokenizerFast"


def load_tokenizer(tokenizer: Path | None, sidecar: Path | None, chat: bool) -> Any:
    """transformers' tokenizer of a checkpoint.

    Args:
        tokenizer: Its tokenizer.model.
        sidecar: A folder with Hugging Face's files; a tokenizer in it goes first.
        chat: Give it a chat template if it has none: Llama 2's or 3's, by its kind.

    Raises:
        LLMError, ExceptionGroup: If there is none, or it is damaged.
    """
    if tokenizer is None and sidecar is not None and (sidecar / FILE).is_file():
        tokenizer = sidecar / FILE
    if sidecar is not None and (sidecar / HF_FILE).is_file():
        found = _load_hf(sidecar)
    elif tokenizer is None:
        why = "there is no tokenizer.model in the folder or the one above it"
        raise LLMError("the checkpoint has no tokenizer", why, "--tokenizer FILE says where it is")
    elif tokenizer_kind(tokenizer) == "tiktoken":
        found = from_tiktoken(tokenizer)
    else:
        found = from_sentencepiece(tokenizer)
    if chat and not found.chat_template:
        found.chat_template = LLAMA_3 if _known(found, "<|eot_id|>") is not None else LLAMA_2
    return found


def stop_ids(tokenizer: Any, sidecar: Path | None) -> frozenset[int]:
    """Tokens that end an answer: EOS, Llama 3's ends of turns, and what the sidecar names.

    Raises:
        LLMError: If the sidecar's generation_config.json is no JSON.
    """
    found = {tokenizer.eos_token_id, *(_known(tokenizer, name) for name in ENDS)}
    if sidecar is not None and (sidecar / "generation_config.json").is_file():
        eos = read_json(sidecar / "generation_config.json").get("eos_token_id")
        found.update(eos if isinstance(eos, list) else [eos])
    return frozenset(token for token in found if isinstance(token, int))


def write_hf_tokenizer(tokenizer: Path, folder: Path, chat: bool) -> None:
    """Write a tokenizer.model in Hugging Face's form, for transformers 4 and 5.

    Args:
        tokenizer: The file.
        folder: Where tokenizer.json and its settings go, and a SentencePiece model itself.
        chat: With a chat template.

    Raises:
        LLMError, ExceptionGroup: If the file is damaged.
    """
    made = load_tokenizer(tokenizer, None, chat)
    made.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    from llm_recipes.tiny_tokenizer import WRITTEN_FOR_TRANSFORMERS_5

    for name in WRITTEN_FOR_TRANSFORMERS_5:
        settings.pop(name, None)
    settings["tokenizer_class"] = CLASS
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if tokenizer_kind(tokenizer) == "sentencepiece":
        shutil.copyfile(tokenizer, folder / FILE)


def write_meta_tokenizer(hf_folder: Path, folder: Path) -> bool:
    """Write tokenizer.model for a Hugging Face folder: its own, or one made of tokenizer.json.

    Returns:
        Whether there was something to make it of: a tokenizer.model, or a tokenizer.json that
        works as Llama 3's.

    Raises:
        LLMError, ExceptionGroup: If tokenizer.json is no JSON, or tokenizer.model damaged.
    """
    for source in (hf_folder / FILE, hf_folder / "original" / FILE):
        if source.is_file():
            vocabulary_size(source)  # damage is found here and not when the copy is used
            shutil.copyfile(source, folder / FILE)
            return True
    source = hf_folder / HF_FILE
    tokens = llama_3_tokens(read_json(source)) if source.is_file() else None
    if tokens is None:
        return False
    (folder / FILE).write_bytes(rank_lines(iter(tokens)))
    return True


def _load_hf(folder: Path) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # for files that do not fit, libraries raise what they like
        fix = "see that its files belong together"
        raise LLMError(f"cannot load the tokenizer in {folder}", first_line(error), fix) from None


def _known(tokenizer: Any, name: str) -> int | None:
    found = tokenizer.get_added_vocab().get(name)
    return found if isinstance(found, int) else None
