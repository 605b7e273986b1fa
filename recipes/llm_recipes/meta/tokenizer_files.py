"""The two kinds of tokenizer.model: told apart, counted and checked without a library.

kind = tokenizer_kind(Path("llama/tokenizer.model"))
vocabulary = vocabulary_size(Path("llama/tokenizer.model"))
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.model_folder import LFS_POINTER

Kind = Literal["sentencepiece", "tiktoken"]
SNIFFED_BYTES = 4096
LARGEST_FILE = 1 << 27  # bytes; Llama 3's has 2 MB
RANK_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2})[ \t]+(\d+)\r?")
MOST_LINES_SHOWN = 5
SPECIAL_TOKENS = 256  # that follow the ranks of Llama 3's tokenizer
# Fields and values of sentencepiece_model.proto, and protobuf's encoding of them.
# Source: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
PIECE, TRAINER, NORMALIZER = 1, 2, 3
TEXT, SCORE, TYPE = 1, 2, 3  # of a piece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPE, UNK, BOS, EOS, PAD = 3, 40, 41, 42, 43  # in the trainer's settings
BPE_MODEL = 2
CHARACTER_MAP, DUMMY_PREFIX, EXTRA_SPACES, ESCAPED_SPACES = 2, 3, 4, 5  # in the normalizer's
TRAINER_DEFAULTS: dict[int, int | bytes] = {MODEL_TYPE: 1, UNK: 0, BOS: 1, EOS: 2, PAD: 1 << 63}
NORMALIZER_DEFAULTS: dict[int, int | bytes] = {
    CHARACTER_MAP: b"",
    DUMMY_PREFIX: 1,
    EXTRA_SPACES: 1,
    ESCAPED_SPACES: 1,
}
PLAIN = {CHARACTER_MAP: b"", EXTRA_SPACES: 0, ESCAPED_SPACES: 1}
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """An entry of a SentencePiece vocabulary. The pair of the best score is merged first."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What of a SentencePiece model matters to whoever imitates it.

    dummy_prefix: a space is put in front of a text. is_bpe: it merges pairs. is_plain: texts are
    taken as they are, but for that space. unk, bos, eos, pad: ids; None: there is no such piece.
    """

    pieces: tuple[Piece, ...]
    is_bpe: bool
    is_plain: bool
    dummy_prefix: bool
    unk: int | None
    bos: int | None
    eos: int | None
    pad: int | None


def tokenizer_kind(path: Path) -> Kind:
    """What kind of tokenizer.model a file is, by its first bytes.

    Raises:
        LLMError: If it can't be read or is neither.
    """
    start = _read(path, SNIFFED_BYTES)
    if not start.strip():
        raise LLMError(f"{path} is no tokenizer of Meta's", "it is empty", "copy it again")
    if start.startswith(LFS_POINTER):
        why = "it is a Git LFS pointer: the file itself was not downloaded"
        raise LLMError(f"{path} is no tokenizer of Meta's", why, "git lfs pull")
    if start.lstrip().startswith(b"{"):
        why = "it is JSON, as Hugging Face's tokenizer.json"
        fix = "give a tokenizer.model, or put tokenizer.json into the folder huggingface/"
        raise LLMError(f"{path} is no tokenizer of Meta's", why, fix)
    lines = start.split(b"\n")
    if RANK_LINE.fullmatch(lines[0]):
        return "tiktoken"
    if start[0] == PIECE << 3 | BYTES and b"\n" in start[1:12]:  # a piece, and its text in it
        return "sentencepiece"
    why = "it is neither a SentencePiece model nor lines of `base64 rank`"
    fix = "Meta's download has it as tokenizer.model; copy it again"
    raise LLMError(f"{path} is no tokenizer of Meta's", why, fix)


def vocabulary_size(path: Path) -> int:
    """Rows that embeddings for this tokenizer have: its pieces, or its ranks and special tokens.

    Raises:
        LLMError, ExceptionGroup: If the file is damaged or no tokenizer.
    """
    if tokenizer_kind(path) == "tiktoken":
        return len(read_ranks(path)) + SPECIAL_TOKENS
    return len(read_sentencepiece(path).pieces)


def special_tokens() -> list[str]:
    """Names of the 256 tokens after the ranks, as of Llama 3.1; 3 has other names for unused ones.

    Source: https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1
    """
    named = (
        *("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"),
        *("finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id"),
        *("eom_id", "eot_id", "python_tag"),
    )
    unused = range(3, 3 + SPECIAL_TOKENS - len(named))
    return [f"<|{name}|>" for name in (*named, *(f"reserved_special_token_{n}" for n in unused))]


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens of a tiktoken file and their ids, in the order of the ids.

    Raises:
        LLMError, ExceptionGroup: Lines of another form, ids or tokens twice, gaps, missing bytes.
    """
    ranks: dict[bytes, int] = {}
    faults: list[LLMError] = []
    seen: set[int] = set()
    for number, line in enumerate(_read(path, LARGEST_FILE).split(b"\n"), start=1):
        if not line.strip():
            continue
        entry = _entry(line)
        if entry is None:
            shown = line[:40].decode("ascii", "replace")
            faults.append(_bad_line(path, number, f"{shown!r} is not `base64 rank`"))
        elif entry[0] in ranks or entry[1] in seen:
            what = "the token" if entry[0] in ranks else f"rank {entry[1]}"
            faults.append(_bad_line(path, number, f"{what} was there before"))
        else:
            ranks[entry[0]] = entry[1]
            seen.add(entry[1])
    if len(faults) > MOST_LINES_SHOWN:
        why = f"and {len(faults) - MOST_LINES_SHOWN} more lines are bad"
        faults[MOST_LINES_SHOWN:] = [LLMError(f"{path} is damaged", why, "copy it again")]
    raise_all(faults)
    gaps = [rank for rank in range(len(ranks)) if rank not in seen]
    if gaps:
        why = f"rank {gaps[0]} is missing, though {max(seen)} is there"
        raise LLMError(f"{path} is damaged", why, "copy it again")
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        why = f"{len(absent)} of the 256 single bytes have no rank, such as {absent[0]}"
        raise LLMError(f"{path} is damaged", why, "copy it again")
    return dict(sorted(ranks.items(), key=lambda token: token[1]))


def rank_lines(tokens: Iterator[bytes]) -> bytes:
    """The content of a tiktoken file: tokens in the order of their ids."""
    return b"".join(base64.b64encode(t) + f" {i}\n".encode() for i, t in enumerate(tokens))


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Look through a SentencePiece model.

    Raises:
        LLMError: If it is cut off or no such model.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(_read(path, LARGEST_FILE)):
            if field == PIECE:
                pieces.append(_piece(value))
            elif field == TRAINER:
                trainer = TRAINER_DEFAULTS | dict(_fields(value))
            elif field == NORMALIZER:
                normalizer = NORMALIZER_DEFAULTS | dict(_fields(value))
    except (ValueError, LookupError, TypeError, struct.error):
        why = f"it ends or goes wrong in the middle of a piece, after {len(pieces)} pieces"
        raise LLMError(f"{path} is damaged", why, "copy it again") from None
    if not (trainer and normalizer):
        why = f"it ends after {len(pieces)} pieces, without the model's settings"
        raise LLMError(f"{path} is damaged", why, "copy it again")
    ids = [trainer[field] for field in (UNK, BOS, EOS, PAD)]  # of none: 2**64 - 1, for -1
    unk, bos, eos, pad = (i if isinstance(i, int) and i < len(pieces) else None for i in ids)
    return SentencePieceModel(
        tuple(pieces),
        is_bpe=trainer[MODEL_TYPE] == BPE_MODEL,
        is_plain=all(normalizer[field] == value for field, value in PLAIN.items()),
        dummy_prefix=normalizer[DUMMY_PREFIX] == 1,
        unk=unk,
        bos=bos,
        eos=eos,
        pad=pad,
    )


def _piece(data: int | bytes) -> Piece:
    found: dict[int, Any] = {TYPE: NORMAL, SCORE: bytes(4), **dict(_fields(data))}
    (score,) = struct.unpack("<f", found[SCORE])
    return Piece(found[TEXT].decode(), score, found[TYPE])


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        why = error.strerror or str(error)
        raise LLMError(f"cannot read the tokenizer {path}", why, "--tokenizer FILE") from None


def _entry(line: bytes) -> tuple[bytes, int] | None:
    found = RANK_LINE.fullmatch(line)
    try:
        return None if found is None else (base64.b64decode(found[1], validate=True), int(found[2]))
    except (binascii.Error, ValueError):
        return None


def _bad_line(path: Path, number: int, why: str) -> LLMError:
    return LLMError(f"{path} is damaged", f"line {number}: {why}", "copy it again")


def _fields(data: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protobuf message: number and content.

    Raises:
        ValueError, IndexError, TypeError: If it is cut off or no such message.
    """
    if isinstance(data, int):
        raise TypeError("a number is no message")
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        kind = tag & 7
        if kind == VARINT:
            number, at = _number(data, at)
            yield tag >> 3, number
            continue
        if kind == BYTES:
            length, at = _number(data, at)
        elif kind in (FIXED_32, FIXED_64):
            length = 4 if kind == FIXED_32 else 8
        else:
            raise ValueError("no such wire type")
        if at + length > len(data):
            raise ValueError("cut off")
        yield tag >> 3, data[at : at + length]
        at += length


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("no varint")
