"""Read advisories from the files that the OSV project gives out; affected.py compares them.

One advisory as JSON, a list of them, JSON Lines, a zip of an ecosystem, or a folder with such files
in it and below. Nothing is fetched.

Format: https://ossf.github.io/osv-schema/
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from _llm.errors import LLMError
from _llm.files import raise_error
from _llm.images.packages import python_name

ENDINGS = (".json", ".jsonl", ".ndjson", ".zip")
MOST_FAULTS = 20
LARGEST_RECORD = 64 << 20
EVENTS = ("introduced", "fixed", "last_affected", "limit")


class Advisories(NamedTuple):
    """What was read.

    records: the advisories about the wanted packages. newest: the newest change of any advisory,
    `2026-11-20T…`, "" where none says. ecosystems: what any advisory is about, `PyPI`, `Debian:12`.
    """

    records: list[dict[str, Any]]
    newest: str
    ecosystems: frozenset[str]


def read_advisories(path: str, wanted: frozenset[tuple[str, str]]) -> Advisories:
    """Read a file or folder of advisories and keep those about wanted (ecosystem, package).

    Those that were withdrawn are left out.
    Raises LLMError that names every record that is malformed (the first 20).
    """
    kept: list[dict[str, Any]] = []
    faults: list[str] = []
    ecosystems: set[str] = set()
    newest, count = "", 0
    for where, record in read_records(path, faults):
        fault = fault_of(record)
        if fault:
            faults.append(f"{where}: {fault}")
            if len(faults) > MOST_FAULTS:
                break
            continue
        count += 1
        if record.get("withdrawn"):
            continue
        modified = record.get("modified")
        newest = max(newest, modified if isinstance(modified, str) else "")
        packages = {package_of(affected) for affected in record.get("affected") or []}
        ecosystems.update(ecosystem for ecosystem, _ in packages)
        if packages & wanted:
            kept.append(record)
    if faults:
        rest = ["… and more"] if len(faults) > MOST_FAULTS else []
        raise LLMError(f"{path} is no file of advisories",
                       "\n       ".join([*faults[:MOST_FAULTS], *rest]),
                       "take the file from the OSV project again; its format is OSV JSON")
    if not count:
        raise LLMError(f"{path} holds no advisories", "nothing would be checked",
                       "take the file from the OSV project again (PyPI, Debian:12)")
    return Advisories(kept, newest, frozenset(ecosystems))


def read_records(path: str, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """Give (where, record) of each advisory in a file or folder; append what can't be parsed.

    Raises LLMError for a file that can't be read.
    """
    try:
        if os.path.isdir(path):
            for folder, folders, names in os.walk(path, onerror=raise_error):
                folders.sort()
                for name in sorted(name for name in names if name.endswith(ENDINGS)):
                    yield from read_records(os.path.join(folder, name), faults)
            return
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            data = b"" if is_zip else file.read()
        if is_zip:
            yield from _read_zip(path, faults)
        else:
            yield from _read_text(data, os.path.basename(path), faults)
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise LLMError(f"the advisories {path} cannot be read",
                       getattr(error, "strerror", None) or str(error) or "it is cut off",
                       "ADVISORIES names a .json, .jsonl or .zip file, or a folder of them"
                       ) from None


def _read_zip(path: str, faults: list[str]) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if item.is_dir() or not item.filename.endswith(ENDINGS[:3]):
                continue
            name = item.filename
            if item.file_size > LARGEST_RECORD:
                faults.append(f"{name}: {item.file_size} bytes, which no advisory has")
                continue
            try:
                with archive.open(item) as member:
                    data = member.read(LARGEST_RECORD + 1)
            except (zipfile.BadZipFile, EOFError, ValueError, OSError) as error:
                faults.append(f"{name}: {error}")
                continue
            yield from _read_text(data, name, faults)


def _read_text(data: bytes, name: str, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """Records of one text: a JSON object, a list, `{"vulns": [...]}`, or an object a line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.append(f"{name}: it is no UTF-8 text ({error.reason} at byte {error.start})")
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        first = _parse(lines[0][1]) if len(lines) > 1 else None
        if not isinstance(first, dict):
            faults.append(f"{name}: {error}")
            return
        for number, line in lines:
            record = _parse(line)
            if record is None:
                faults.append(f"{name}: line {number} is no JSON object")
            else:
                yield f"{name}: line {number}", record
        return
    if isinstance(document, dict) and isinstance(document.get("vulns"), list):
        document = document["vulns"]
    if isinstance(document, list):
        for number, record in enumerate(document, 1):
            yield f"{name}: record {number}", record
    else:
        yield name, document


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def fault_of(record: Any) -> str:
    """What keeps a record from being an advisory, "" for nothing."""
    if not isinstance(record, dict):
        return "it is no JSON object"
    if not isinstance(record.get("id"), str) or not record["id"]:
        return "it has no id"
    for name in ("affected", "aliases", "upstream", "severity"):
        if not isinstance(record.get(name), (list, type(None))):
            return f"{record['id']}: '{name}' is no list"
    for affected in record.get("affected") or []:
        fault = _fault_of_affected(affected)
        if fault:
            return f"{record['id']}: {fault}"
    return ""


def _fault_of_affected(affected: Any) -> str:
    if not isinstance(affected, dict):
        return "an entry of 'affected' is no object"
    package = affected.get("package")
    if package is not None and not (isinstance(package, dict) and all(
            isinstance(package.get(key), str) for key in ("name", "ecosystem"))):
        return "'package' has no name and ecosystem"
    versions, ranges = affected.get("versions") or [], affected.get("ranges") or []
    if not isinstance(versions, list) or not all(isinstance(v, str) for v in versions):
        return "'versions' is no list of texts"
    if not isinstance(ranges, list):
        return "'ranges' is no list"
    for one in ranges:
        events = one.get("events") if isinstance(one, dict) else None
        if not isinstance(events, list):
            return "a range has no list of events"
        for event in events:
            if not isinstance(event, dict) or not all(
                    isinstance(event[key], str) for key in event if key in EVENTS):
                return "an event is no object of texts"
    return ""


def package_of(affected: dict[str, Any]) -> tuple[str, str]:
    """(ecosystem, package) of an entry, as key_of has it; ("", "") for an entry without one."""
    package = affected.get("package")
    if not package:
        return "", ""
    ecosystem, name = package["ecosystem"], package["name"]
    return ecosystem, python_name(name) if ecosystem == "PyPI" else name
