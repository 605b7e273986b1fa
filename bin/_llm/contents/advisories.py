"""Read advisories from a file and say which of an image's packages they are about.

Files are those that the OSV project gives out: one advisory as JSON, a list of them, JSON Lines, a
zip of an ecosystem, or a folder of such files. Nothing is fetched.

Format: https://ossf.github.io/osv-schema/
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from _llm.contents.software import Component
from _llm.contents.versions import debian_key, python_key, without_local
from _llm.errors import LLMError
from _llm.images.packages import python_name

ENDINGS = (".json", ".jsonl", ".ndjson", ".zip")
MOST_FAULTS = 20
LARGEST_RECORD = 64 << 20
EVENTS = ("introduced", "fixed", "last_affected", "limit")


class Finding(NamedTuple):
    """An advisory about one package of the image.

    names: the advisory's id, then its other names. severity: as its publisher gives it, or "".
    fixed: versions with the fix, "" for none known. undecided: its versions can't be compared.
    """

    component: Component
    names: tuple[str, ...]
    severity: str
    fixed: str
    summary: str
    undecided: bool


class Advisories(NamedTuple):
    """What was read: (where it stands, advisory) each, the newest change, those of no use here.

    newest: `2026-11-20T…`, "" where none says. withdrawn: how many were.
    """

    records: list[tuple[str, dict[str, Any]]]
    newest: str
    withdrawn: int


def read_advisories(path: str, wanted: frozenset[tuple[str, str]]) -> Advisories:
    """Read a file or folder of advisories and keep those about wanted (ecosystem, package).

    Raises LLMError that names every record that is malformed (the first 20).
    """
    kept: list[tuple[str, dict[str, Any]]] = []
    faults: list[str] = []
    newest, withdrawn, count = "", 0, 0
    for where, record in read_records(path, faults):
        fault = fault_of(record)
        if fault:
            faults.append(f"{where}: {fault}")
            if len(faults) > MOST_FAULTS:
                break
            continue
        count += 1
        if record.get("withdrawn"):
            withdrawn += 1
            continue
        modified = record.get("modified")
        newest = max(newest, modified if isinstance(modified, str) else "")
        if any(package_of(affected) in wanted for affected in record.get("affected") or []):
            kept.append((where, record))
    if faults:
        rest = ["… and more"] if len(faults) > MOST_FAULTS else []
        raise LLMError(f"{path} is no file of advisories",
                       "\n       ".join([*faults[:MOST_FAULTS], *rest]),
                       "take the file from the OSV project again; its format is OSV JSON")
    if not count:
        raise LLMError(f"{path} holds no advisories", "nothing would be checked",
                       "take the file from the OSV project again (PyPI, Debian:12)")
    return Advisories(kept, newest, withdrawn)


def read_records(path: str, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """Give (where, record) of each advisory in a file or folder; append what can't be parsed.

    Raises LLMError for a file that can't be read.
    """
    try:
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(ENDINGS))
            for name in names:
                yield from read_records(os.path.join(path, name), faults)
            return
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip:
            yield from _read_zip(path, faults)
        else:
            with open(path, "rb") as file:
                yield from _read_text(file.read(), os.path.basename(path), faults)
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise LLMError(f"the advisories {path} cannot be read", str(error) or "it is cut off",
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


def keys_of(component: Component, release: str) -> list[tuple[str, str]]:
    """The names under which advisories know a package.

    release: Debian's, such as `12`. Debian's advisories go by source package.
    """
    if component.kind == "pypi":
        return [("PyPI", python_name(component.name))]
    if component.kind == "deb":
        plain = [("Debian", component.source)]
        return [(f"Debian:{release}", component.source), *plain] if release else plain
    return []


def find_affected(
    found: Iterable[Component], advisories: Advisories, release: str,
) -> list[Finding]:
    """Return which packages the advisories are about, by package; the same fault is listed once."""
    by_key: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _, record in advisories.records:
        keys = dict.fromkeys(package_of(affected) for affected in record.get("affected") or [])
        for key in keys:
            by_key.setdefault(key, []).append(record)
    findings = []
    for component in found:
        mine: list[Finding] = []
        for key in keys_of(component, release):
            for record in by_key.get(key, []):
                finding = examine(component, record, key)
                if finding:
                    mine.append(finding)
        findings += merge(mine)
    return sorted(findings, key=lambda f: (f.component.kind, f.component.name,
                                           f.component.version, f.component.place, f.names))


def examine(
    component: Component, record: dict[str, Any], key: tuple[str, str],
) -> Finding | None:
    """Return the finding if an advisory is about this version of a package.

    Where versions can't be compared the package counts as affected: better one look too many.
    """
    is_python = component.kind == "pypi"
    version = without_local(component.version) if is_python else component.source_version
    compare = python_key if is_python else debian_key
    affected, undecided, fixed, urgency = False, False, [], ""
    for entry in record.get("affected") or []:
        if package_of(entry) != key:
            continue
        hit = in_versions(version, entry.get("versions") or [], compare)
        for one in entry.get("ranges") or []:
            if one.get("type") == "GIT":
                continue
            try:
                hit = in_range(version, one["events"], compare) or hit
            except ValueError:
                undecided = True
        if hit or undecided:
            fixed += fixes_after(version, entry.get("ranges") or [], compare)
            urgency = urgency or _text(entry, "ecosystem_specific", "urgency")
        affected = affected or hit
    if not affected and not undecided:
        return None
    names = [record["id"], *(record.get("aliases") or []), *(record.get("upstream") or [])]
    return Finding(component, tuple(dict.fromkeys(str(name) for name in names)),
                   severity_of(record) or urgency, ", ".join(dict.fromkeys(fixed)),
                   str(record.get("summary") or ""), not affected)


def in_versions(version: str, versions: Iterable[str], compare: Callable[[str], Any]) -> bool:
    """Whether a version is one of a list, as they compare or as they are written."""
    try:
        mine = compare(version)
    except ValueError:
        return version in versions
    for other in versions:
        try:
            if compare(other) == mine:
                return True
        except ValueError:
            if other == version:
                return True
    return False


def in_range(version: str, events: Iterable[dict[str, str]], compare: Callable[[str], Any]) -> bool:
    """Whether a version lies in a range of OSV: events in the order of their versions decide.

    Raises ValueError for a version that can't be compared.
    """
    mine = compare(version)
    rows = []
    for event in events:
        for kind in EVENTS[:3]:
            if kind in event:
                # `0` stands before every version.
                key = () if kind == "introduced" and event[kind] == "0" else compare(event[kind])
                rows.append((key, EVENTS.index(kind), kind))
    inside = False
    for key, _, kind in sorted(rows, key=lambda row: row[:2]):
        if kind == "introduced" and mine >= key:
            inside = True
        elif (kind == "fixed" and mine >= key) or (kind == "last_affected" and mine > key):
            inside = False
    return inside


def fixes_after(
    version: str, ranges: Iterable[dict[str, Any]], compare: Callable[[str], Any],
) -> list[str]:
    """Versions with the fix that are newer than this one, oldest first."""
    found = []
    for one in ranges:
        if one.get("type") == "GIT":
            continue
        for event in one["events"]:
            try:
                if "fixed" in event and compare(event["fixed"]) > compare(version):
                    found.append((compare(event["fixed"]), event["fixed"]))
            except ValueError:
                found.append(((), event["fixed"]))
    return [text for _, text in sorted(found)]


def severity_of(record: dict[str, Any]) -> str:
    """An advisory's severity: its publisher's word, else the CVSS vector, "" for none."""
    word = _text(record, "database_specific", "severity")
    scores = [entry.get("score") for entry in record.get("severity") or []
              if isinstance(entry, dict) and isinstance(entry.get("score"), str)]
    return word or next((str(score) for score in scores), "")


def _text(record: dict[str, Any], part: str, name: str) -> str:
    inside = record.get(part)
    value = inside.get(name) if isinstance(inside, dict) else None
    return value if isinstance(value, str) else ""


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of one package without those that only say the same under another name."""
    merged: list[Finding] = []
    for finding in sorted(findings, key=lambda f: (f.undecided, f.names)):
        for number, other in enumerate(merged):
            if set(finding.names) & set(other.names):
                names = tuple(dict.fromkeys((*other.names, *finding.names)))
                merged[number] = other._replace(
                    names=names, fixed=other.fixed or finding.fixed,
                    severity=_better(other.severity, finding.severity),
                    summary=other.summary or finding.summary)
                break
        else:
            merged.append(finding)
    return merged


def _better(one: str, other: str) -> str:
    """A word that people read, rather than a vector or nothing."""
    return next((text for text in (one, other) if re.fullmatch(r"[A-Za-z]+", text)), one or other)
