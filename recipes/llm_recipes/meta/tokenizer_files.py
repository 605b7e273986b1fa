"""The two kinds of tokenizer.model: told apart, counted and checked without a library.

kind = tokenizer_kind(Path("llama/tokenizer.model"))
vocabulary = vocabulary_size(Path("llama/tokenizer.model"))
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.model_folder import LFS_POINTER

Kind = Literal["sentencepiece", "tiktoken"]
SNIFFED_BYTES = 4096
LARGEST_FILE = 1 << 27  # bytes; Llama 3's has 2 MB
RANK_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2})[ \t]+(\d+)\r?")
MOST_LINES_SHOWN = 5
SPECIAL_TOKENS = 256  # that follow the ranks of Llama 3's tokenizer
# Fields and wire types of sentencepiece_model.proto, and protobuf's encoding of them.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
MODEL_TYPE, BPE_MODEL = 3, 2  # in the trainer's settings
CHARACTER_MAP, DUMMY_PREFIX, EXTRA_SPACES, ESCAPED_SPACES = 2, 3, 4, 5  # in the normalizer's
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


@dataclass(frozen=True)
class SentencePieceModel:
    """What of a SentencePiece model matters to whoever imitates it.

    pieces: entries of the vocabulary. dummy_prefix: a space is put in front of a text. is_bpe: it
    merges pairs. is_plain: texts are taken as they are, but for that space.
    """

    pieces: int
    is_bpe: bool
    is_plain: bool
    dummy_prefix: bool


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
    if start[0] == PIECES << 3 | BYTES and b"\n" in start[1:12]:  # a piece, and its text in it
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
    return read_sentencepiece(path).pieces


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
        why = f"{len(absent)} of the 256 single bytes have no rank: {bytes(absent[:1])!r} and others"
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
    data = _read(path, LARGEST_FILE)
    pieces, trainer, normalizer = 0, None, None
    try:
        for field, value in _fields(data):
            pieces += field == PIECES
            trainer = dict(_fields(value)) if field == TRAINER else trainer
            normalizer = dict(_fields(value)) if field == NORMALIZER else normalizer
    except (ValueError, IndexError):
        why = f"it ends or goes wrong in the middle of a piece, after {pieces} pieces"
        raise LLMError(f"{path} is damaged", why, "copy it again") from None
    if trainer is None or normalizer is None:
        why = f"it ends after {pieces} pieces, without the model's settings"
        raise LLMError(f"{path} is damaged", why, "copy it again")
    return SentencePieceModel(
        pieces,
        is_bpe=trainer.get(MODEL_TYPE) == _varint(BPE_MODEL),
        is_plain=not normalizer.get(CHARACTER_MAP)
        and normalizer.get(EXTRA_SPACES) == _varint(0)
        and normalizer.get(ESCAPED_SPACES, _varint(1)) == _varint(1),
        dummy_prefix=normalizer.get(DUMMY_PREFIX, _varint(1)) == _varint(1),
    )


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


def _varint(value: int) -> bytes:
    assert value < 128
    return bytes([value])


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Fields of a protobuf message: number and content, a varint's as its bytes.

    Raises:
        ValueError, IndexError: If it is cut off or no such message.
    """
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        kind = tag & 7
        end = at
        if kind == VARINT:
            _, end = _number(data, at)
        elif kind == BYTES:
            length, at = _number(data, at)
            end = at + length
        elif kind in (FIXED_32, FIXED_64):
            end = at + (4 if kind == FIXED_32 else 8)
        else:
            raise ValueError("no such wire type")
        if end > len(data):
            raise ValueError("cut off")
        yield tag >> 3, data[at:end]
        at = end


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
