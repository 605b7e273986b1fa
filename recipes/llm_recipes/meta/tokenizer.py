"""Meta's tokenizers as transformers' ones, with the same ids, and back.

tokenizer = load_tokenizer(Path("llama/tokenizer.model"), sidecar=None, chat=False)
write_hf_tokenizer(Path("llama/tokenizer.model"), Path("llama-hf"), chat=False)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.meta.chat_templates import LLAMA_2, LLAMA_3
from llm_recipes.meta.tokenizer_files import (
    CONTROL,
    NORMAL,
    SPECIAL_TOKENS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    rank_lines,
    read_ranks,
    read_sentencepiece,
    special_tokens,
    tokenizer_kind,
    vocabulary_size,
)
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
BEGIN = "<|begin_of_text|>"
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
    if tokenizer is None and sidecar is not None and (sidecar / FILE).is_file():
        tokenizer = sidecar / FILE
    if sidecar is not None and (sidecar / HF_FILE).is_file():
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
    tokens = _llama_3_tokens(_read_json(source)) if source.is_file() else None
    if tokens is None:
        return False
    (folder / FILE).write_bytes(rank_lines(iter(tokens)))
    return True


def _from_sentencepiece(path: Path) -> Any:
    model = read_sentencepiece(path)
    if not (model.is_bpe and model.is_plain) or None in (model.bos, model.eos, model.unk):
        why = "it merges no pairs, changes texts before, or has no BOS, EOS or unknown piece"
        raise LLMError(f"{path} is no tokenizer of a Llama", why, "give the model's own")
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    # transformers' own way is not taken: it merges in the order of the ids where SentencePiece goes
    # by the scores, which differ for runs of spaces, and it leaves the space in front out where a
    # text begins with one.
    vocabulary = {piece.text: number for number, piece in enumerate(model.pieces)}
    unk, bos, eos, pad = (
        None if number is None else model.pieces[number].text
        for number in (model.unk, model.bos, model.eos, model.pad)
    )
    merges = _scored_merges(model.pieces)
    backend = Tokenizer(BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Replace(" ", SPACE)]
    shown = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:  # of each text between BOS and EOS in a chat, as with Meta's code
        spaces = [normalizers.Prepend(SPACE), *spaces]
        shown = [*shown, decoders.Strip(" ", 1, 0)]
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(shown)
    marks = [piece.text for piece in model.pieces if piece.type in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in marks])
    given = [piece.text for piece in model.pieces if piece.type == USER_DEFINED]
    backend.add_tokens([AddedToken(text, normalized=False) for text in given])
    return _wrapped(backend, bos_token=bos, eos_token=eos, unk_token=unk, pad_token=pad)


def _from_tiktoken(path: Path) -> Any:
    ranks = read_ranks(path)
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

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
    return _wrapped(
        backend, bos_token=BEGIN, eos_token=ENDS[0], pad_token="<|finetune_right_pad_id|>"
    )


def _wrapped(backend: Any, bos_token: str | None, **tokens: str | None) -> Any:
    """transformers' tokenizer, which puts BOS in front."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend.post_processor = TemplateProcessing(
        single=f"{bos_token} $A",
        pair=f"{bos_token} $A {bos_token}:1 $B:1",
        special_tokens=[(bos_token, backend.token_to_id(bos_token))],
    )
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(
        tokenizer_object=backend,
        bos_token=bos_token,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in tokens.items() if token is not None},
    )


def _scored_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Pairs that make pieces, in the order in which SentencePiece would merge them.

    The best score goes first, then what stands further left. Llama's runs of spaces share one
    score: the longest left part first makes each run grow from the left, as there.
    """
    mergeable = {piece.text: piece.score for piece in pieces if piece.type in (NORMAL, UNUSED)}
    pairs = [
        (-score, -cut, text[:cut], text[cut:])
        for text, score in mergeable.items()
        for cut in range(1, len(text))
        if text[:cut] in mergeable and text[cut:] in mergeable
    ]
    return [(left, right) for _, _, left, right in sorted(pairs)]


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


def _llama_3_tokens(settings: dict[str, Any]) -> list[bytes] | None:
    """Tokens of a tokenizer.json in the order of their ids; None: it doesn't work as Llama 3's.

    A file of ranks says nothing of how texts are split before, nor of what special tokens there
    are: programs that read one take Llama 3's.
    """
    try:
        vocabulary: dict[str, int] = settings["model"]["vocab"]
        special = {token["content"]: token["id"] for token in settings["added_tokens"]}
        plain = {text: number for text, number in vocabulary.items() if text not in special}
        ordered = sorted(plain, key=lambda text: plain[text])
        fits = (
            settings.get("normalizer") is None
            and PATTERN in _patterns(settings["pre_tokenizer"])
            and [plain[text] for text in ordered] == list(range(len(plain)))
            and special.get(BEGIN) == len(plain)
            and special.get(ENDS[0]) == len(plain) + 1
            and max(special.values()) < len(plain) + SPECIAL_TOKENS
        )
        byte_of = {char: byte for byte, char in enumerate(_byte_characters())}
        tokens = [bytes(byte_of[char] for char in text) for text in ordered] if fits else []
    except (KeyError, TypeError, AttributeError):
        return None
    return tokens if {bytes([byte]) for byte in range(256)} <= set(tokens) else None


def _patterns(splitting: dict[str, Any]) -> list[str]:
    """Expressions by which a pre-tokenizer splits a text."""
    parts = splitting.get("pretokenizers", [splitting])
    return [part["pattern"]["Regex"] for part in parts if part.get("type") == "Split"]


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
