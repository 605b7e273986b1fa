"""Rows of a dataset's files, each with the place it comes from; bad rows are collected.

JSON Lines, JSON (a list of objects, or one object with such a list under "data"), CSV, Parquet,
and text: a .txt or .md file is one document, or several that lines `<|endoftext|>` separate.

    from llm_recipes.dataset_files import data_files, read_rows
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError

JSON_LINES = (".jsonl", ".ndjson")
DELIMITED = (".csv", ".tsv")
TEXT = (".txt", ".md")
SUFFIXES = (*JSON_LINES, ".json", *DELIMITED, ".parquet", *TEXT)
# The separator of published corpora in one text file, such as TinyStories.
DOCUMENT_ENDS = "<|endoftext|>"
UTF8_FIX = "convert the file: iconv -f latin1 -t utf-8"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Row:
    """One row: its values by column, and its place for messages to the user."""

    where: str
    values: dict[str, Any]


Found = Iterator[Row | LLMError]


def data_files(source: Path) -> list[Path]:
    """The file itself, or all files of a folder that hold data, by name.

    Files with columns go before texts: a folder with a README.md beside its data has no text.

    Raises:
        LLMError: If there is nothing that can be read, or files of several kinds.
    """
    try:
        if source.is_file():
            if source.suffix.lower() not in SUFFIXES:
                raise _unknown_kind(source)
            return [source]
        found = sorted(p for p in source.iterdir() if p.is_file() and p.name[:1] != ".")
    except OSError as error:
        raise _unreadable(source, error) from None
    tables = [p for p in found if p.suffix.lower() in SUFFIXES and p.suffix.lower() not in TEXT]
    chosen = tables or [p for p in found if p.suffix.lower() in TEXT]
    kinds = sorted({p.suffix.lower() for p in chosen})
    if not chosen:
        what = f"the folder {source} holds no data"
        raise LLMError(what, f"no file ends in {', '.join(SUFFIXES)}", "name a file")
    if len(kinds) > 1:
        why = f"it has {', '.join(kinds)}"
        raise LLMError(f"the folder {source} holds several kinds of data", why, "name one file")
    return chosen


def missing_source(name: str) -> LLMError:
    """The fault of a path that is not there, with its nearest neighbours."""
    path = Path(name).expanduser()
    try:
        siblings = [p.name for p in path.parent.iterdir()]
    except OSError:
        siblings = []
    nearest = difflib.get_close_matches(path.name, siblings, n=3)
    fix = "give a file, a folder, or a hub's dataset (OWNER/NAME)"
    if nearest:
        fix = f"did you mean {' or '.join(str(path.parent / n) for n in nearest)}?"
    return LLMError(f"the data {name} does not exist", fix=fix)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        LLMError: If it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def read_rows(path: Path) -> Found:
    """Rows of a file in their order, and in the place of each bad one what is wrong with it.

    Raises:
        LLMError: If nothing of the file can be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if data.startswith(UTF16_MARKS):
        fix = "convert the file: iconv -f utf-16 -t utf-8"
        raise LLMError(f"{path} is not UTF-8", "it begins as UTF-16 does", fix)
    data = data.removeprefix(b"\xef\xbb\xbf")
    if suffix in JSON_LINES:
        return _json_lines(path, data)
    if suffix == ".json":
        return _json_rows(path, data)
    return _delimited_rows(path, data) if suffix in DELIMITED else _documents(path, data)


def _json_lines(path: Path, data: bytes) -> Found:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield LLMError(f"{where} is not UTF-8", f"byte {error.start + 1}", UTF8_FIX)
        except (ValueError, RecursionError) as error:
            yield LLMError(f"{where} is not JSON", str(error))
        else:
            yield _row(where, value)


def _json_rows(path: Path, data: bytes) -> Found:
    """A list of objects; one object; or JSON Lines that are named .json, as many are."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        if data.lstrip().startswith(b"["):
            raise _not_utf8(path, data) from None
        yield from _json_lines(path, data)  # each bad line by its number
        return
    if text.lstrip().startswith("["):
        yield from _json_items(path, text)
        return
    try:
        value = json.loads(text) if text.strip() else {}
    except RecursionError as error:
        raise LLMError(f"{path} is not JSON", str(error)) from None
    except ValueError:
        yield from _json_lines(path, data)
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        for number, item in enumerate(value["data"], start=1):
            yield _row(f"{path}, item {number}", item)
    elif value != {}:
        yield _row(f"{path}, line 1", value)


def _json_items(path: Path, text: str) -> Found:
    """Items of a JSON list one by one, so that each has its line and those before a fault count."""
    decoder = json.JSONDecoder()
    position, line, counted, number = text.index("[") + 1, 1, 0, 0
    while True:
        position = _skip(text, position, " \t\r\n")
        if text[position : position + 1] == "]" and number == 0:
            return
        line += text.count("\n", counted, position)
        counted, number = position, number + 1
        where = f"{path}, item {number} (line {line})"
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield LLMError(f"{where} is not JSON, nor can be what follows", str(error))
            return
        yield _row(where, value)
        position = _skip(text, position, " \t\r\n")
        if text[position : position + 1] == "]":
            return
        if text[position : position + 1] != ",":
            found = repr(text[position : position + 1]) if position < len(text) else "the end"
            yield LLMError(f"{where} is not followed by , or ]", f"but by {found}: is it cut off?")
            return
        position += 1


def _delimited_rows(path: Path, data: bytes) -> Found:
    # Bytes of another encoding become half characters, which `_row` finds in their rows.
    text = data.decode("utf-8", "surrogateescape")
    header = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter not in header:
        delimiter = next((d for d in ";\t" if d in header), delimiter)
    csv.field_size_limit(sys.maxsize)  # 131,072 characters otherwise
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    start = 1
    try:
        for fields in reader:
            where, start = f"{path}, line {start}", reader.line_num + 1
            if names is None:
                names = _header(path, fields)
            elif len(fields) == len(names):
                yield _row(where, dict(zip(names, fields, strict=True)))
            elif fields:
                why = f"the first line names {len(names)}: {', '.join(names[:8])}"
                yield LLMError(f"{where} has {len(fields)} fields", why, "quote fields with commas")
    except csv.Error as error:
        fix = "is a quotation mark never closed?"
        yield LLMError(f"{path}, line {start} and what follows are no CSV", str(error), fix)


def _header(path: Path, names: list[str]) -> list[str]:
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        why = f"the first line has {', '.join(map(repr, names[:8]))}"
        raise LLMError(f"{path} does not name its columns", why, "give each a name of its own")
    return names


def _parquet_rows(path: Path) -> Found:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield _row(f"{path}, row {number}", values)
    except OSError as error:
        raise _unreadable(path, error) from None
    except Exception as error:  # Arrow's own types, for files that are damaged
        raise LLMError(f"{path} is no whole Parquet file", _one_line(error)) from None


def _documents(path: Path, data: bytes) -> Found:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _not_utf8(path, data) from None
    lines = text.replace("\r\n", "\n").split("\n")
    start = 0
    for number in range(len(lines) + 1):
        if number == len(lines) or lines[number].strip() == DOCUMENT_ENDS:
            document = "\n".join(lines[start:number]).strip("\n")
            if document.strip():
                yield Row(f"{path}, line {start + 1}", {"text": document})
            start = number + 1


def _row(where: str, value: object) -> Row | LLMError:
    if not isinstance(value, dict):
        return LLMError(f"{where} is no JSON object", 'expected {"column": "value", …}')
    if not _is_unicode(value):
        why = "it has bytes of another encoding, or half of a UTF-16 surrogate pair"
        return LLMError(f"{where} is not UTF-8", why, UTF8_FIX)
    return Row(where, value)


def _is_unicode(value: object) -> bool:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, dict):
        return all(_is_unicode(key) and _is_unicode(inner) for key, inner in value.items())
    return all(map(_is_unicode, value)) if isinstance(value, list) else True


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _not_utf8(path: Path, data: bytes) -> LLMError:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return LLMError(f"{path} is not UTF-8", f"line {line}, byte {error.start + 1}", UTF8_FIX)
    raise AssertionError("called for a file that is not UTF-8")


def _unknown_kind(path: Path) -> LLMError:
    fix = f"give the file an ending that says what it holds: {', '.join(SUFFIXES)}"
    if path.suffix.lower() in (".gz", ".xz", ".bz2", ".zst", ".zip"):
        fix = "unpack it first"
    return LLMError(f"{path} is of no known kind", f"its name ends in {path.suffix!r}", fix)


def _unreadable(path: Path, error: OSError) -> LLMError:
    fix = "" if os.path.exists(path) else "look at --data"
    return LLMError(f"cannot read {path}", error.strerror or str(error), fix)


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
