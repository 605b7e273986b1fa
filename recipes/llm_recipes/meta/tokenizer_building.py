"""Tokenizers of the library tokenizers that give the ids of Meta's two kinds of tokenizer.model.

tokenizer = from_tiktoken(Path("llama/tokenizer.model"))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.meta.tokenizer_files import (
    CONTROL,
    NORMAL,
    SPECIAL_TOKENS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    read_ranks,
    read_sentencepiece,
    special_tokens,
)

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
# tiktoken's pattern for Llama 3, which splits a text into what merges never cross.
# Source: the tokenizer of https://github.com/meta-llama/llama3
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE = "\u2581"  # SentencePiece's sign for one


def from_sentencepiece(path: Path) -> Any:
    """transformers' tokenizer with the ids that SentencePiece gives.

    Raises:
        LLMError: If the file is damaged or its model not as a Llama's.
    """
    model = read_sentencepiece(path)
    if not (model.is_bpe and model.is_plain) or None in (model.bos, model.eos, model.unk):
        why = "it merges no pairs, changes texts before, or has no BOS, EOS or unknown piece"
        raise LLMError(f"{path} is no tokenizer of a Llama", why, "give the model's own")
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
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
    # Pieces that the user has defined are cut out first, the longest where several fit, and kept
    # as they are.
    given = [piece.text for piece in model.pieces if piece.type == USER_DEFINED]
    options: dict[str, Any] = {"unk_token": unk, "fuse_unk": True, "byte_fallback": True}
    backend = Tokenizer(BPE(vocabulary, merges, **options, ignore_merges=bool(given)))
    if given:
        longest_first = "|".join(re.escape(text) for text in sorted(given, key=len, reverse=True))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(longest_first), behavior="isolated")
    spaces: list[Any] = [normalizers.Replace(" ", SPACE)]
    shown: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:  # of each text between BOS and EOS in a chat, as with Meta's code
        spaces = [normalizers.Prepend(SPACE), *spaces]
        shown = [*shown, decoders.Strip(" ", 1, 0)]
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(shown)
    marks = [piece.text for piece in model.pieces if piece.type in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in marks])
    return _wrapped(backend, bos_token=bos, eos_token=eos, unk_token=unk, pad_token=pad)


def from_tiktoken(path: Path) -> Any:
    """transformers' tokenizer with the ids that tiktoken gives with Llama 3's pattern.

    Raises:
        LLMError, ExceptionGroup: If the file is damaged.
    """
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
    return _wrapped(backend, bos_token=BEGIN, eos_token=END, pad_token="<|finetune_right_pad_id|>")


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


def llama_3_tokens(settings: dict[str, Any]) -> list[bytes] | None:
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
            and special.get(END) == len(plain) + 1
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
