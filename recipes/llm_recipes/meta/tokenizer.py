"""Meta's tokenizers as transformers' ones, with the same ids, and back.

tokenizer = load_tokenizer(Path("llama/tokenizer.model"), sidecar=None, chat=False)
write_hf_tokenizer(Path("llama/tokenizer.model"), Path("llama-hf"), chat=False)
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.meta.chat_templates import LLAMA_2, LLAMA_3
from llm_recipes.meta.tokenizer_files import (
    rank_lines,
    read_ranks,
    read_sentencepiece,
    special_tokens,
    tokenizer_kind,
    vocabulary_size,
)
from llm_recipes.model_folder import TOKENIZER_FILES, first_line

__all__ = [
    "load_tokenizer",
    "stop_ids",
    "tokenizer_kind",
    "vocabulary_size",
    "write_hf_tokenizer",
    "write_meta_tokenizer",
]
FILE = "tokenizer.model"
# What ends a text or a turn of Llama 3's; the last is for calls of tools.
ENDS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
# tiktoken's pattern for Llama 3, which splits a text into what merges never cross.
# Source: the tokenizer of https://github.com/meta-llama/llama3
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE = "\u2581"  # SentencePiece's sign for one
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
    if sidecar is not None and any((sidecar / name).is_file() for name in TOKENIZER_FILES):
        found = _load_hf(sidecar)
    elif tokenizer is None:
        why = "there is no tokenizer.model in the folder or the one above it"
        raise LLMError("the checkpoint has no tokenizer", why, "--tokenizer FILE says where it is")
    elif tokenizer_kind(tokenizer) == "tiktoken":
        found = _from_tiktoken(tokenizer)
    else:
        found = _from_sentencepiece(tokenizer)
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
        eos = _read_json(sidecar / "generation_config.json").get("eos_token_id")
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
    settings = _read_json(path)
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
        Whether there was something to make it of: a tokenizer.model, or a byte-level BPE.

    Raises:
        LLMError: If tokenizer.json is no JSON.
    """
    for source in (hf_folder / FILE, hf_folder / "original" / FILE):
        if source.is_file():
            tokenizer_kind(source)
            shutil.copyfile(source, folder / FILE)
            return True
    source = hf_folder / "tokenizer.json"
    tokens = _byte_level_tokens(_read_json(source)) if source.is_file() else None
    if tokens is None:
        return False
    (folder / FILE).write_bytes(rank_lines(iter(tokens)))
    return True


def _from_sentencepiece(path: Path) -> Any:
    model = read_sentencepiece(path)
    if not (model.is_bpe and model.is_plain):
        why = "it does not merge pairs, or it changes texts before: Llama's does neither"
        raise LLMError(f"{path} is no tokenizer of a Llama", why, "give the model's own")
    from tokenizers import decoders, normalizers
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory(prefix="llm-tokenizer-") as folder:
        shutil.copyfile(path, Path(folder) / FILE)
        try:
            read = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
        except Exception as error:  # for a damaged model, libraries raise what they like
            raise LLMError(f"{path} is damaged", first_line(error), "copy it again") from None
    backend = read.backend_tokenizer
    # LlamaTokenizer leaves the space in front out if a text begins with one: SentencePiece puts it
    # there always, which is here also the case after each BOS or EOS in a chat.
    spaces = [normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *spaces] if model.dummy_prefix else spaces
    )
    backend.pre_tokenizer = None
    shown = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    backend.decoder = decoders.Sequence([*shown, *strip])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=read.bos_token,
        eos_token=read.eos_token,
        unk_token=read.unk_token,
        clean_up_tokenization_spaces=False,
    )


def _from_tiktoken(path: Path) -> Any:
    ranks = read_ranks(path)
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    shown = {token: _shown(token) for token in ranks}
    merges = [(shown[left], shown[right]) for left, right in _merges(ranks)]
    vocabulary = {shown[token]: rank for token, rank in ranks.items()}
    # tiktoken takes a whole word that has a rank without merging.
    backend = Tokenizer(BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    backend.decoder = decoders.ByteLevel()
    names = special_tokens()
    backend.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    begin, end = names[:2]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin}:1 $B:1",
        special_tokens=[(begin, len(ranks))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begin,
        eos_token=end,
        pad_token="<|finetune_right_pad_id|>",
        clean_up_tokenization_spaces=False,
    )


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Pairs that make tokens, in the order in which tiktoken would merge them.

    tiktoken merges any neighbours whose bytes together have a rank, the lowest first.
    """
    return [
        (token[:cut], token[cut:])
        for token in ranks
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]


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


def _byte_level_tokens(settings: dict[str, Any]) -> list[bytes] | None:
    """Tokens of a byte-level BPE tokenizer.json in the order of their ids; None: it is another."""
    model = settings.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return None
    special = {token["id"] for token in settings.get("added_tokens", [])}
    ordered = sorted((i, text) for text, i in vocabulary.items() if i not in special)
    byte_of = {char: byte for byte, char in enumerate(_byte_characters())}
    whole = all(char in byte_of for _, text in ordered for char in text)
    if not whole or [i for i, _ in ordered] != list(range(len(ordered))):
        return None
    tokens = [bytes(byte_of[char] for char in text) for _, text in ordered]
    return tokens if {bytes([byte]) for byte in range(256)} <= set(tokens) else None


def _shown(token: bytes) -> str:
    """A token as a byte-level vocabulary writes it: a printable character for each byte."""
    return token.decode("latin-1").translate(_TRANSLATION)


def _byte_characters() -> list[str]:
    """GPT-2's printable characters for the 256 bytes: itself, or one after those of Latin-1."""
    hidden = 0
    found = []
    for byte in range(256):
        printable = 33 <= byte < 127 or 161 <= byte < 173 or byte > 173
        found.append(chr(byte if printable else 256 + hidden))
        hidden += not printable
    return found


_TRANSLATION = dict(enumerate(_byte_characters()))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LLMError(f"{path} cannot be read", str(error), "copy it again") from None
    if not isinstance(found, dict):
        raise LLMError(f"{path} cannot be read", "it is no JSON object", "copy it again")
    return found
