"""Say which of an image's packages advisories are about.

The rules are those of "Evaluation" in https://ossf.github.io/osv-schema/ . Where versions can't be
compared a package counts as affected: better one look too many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from _llm.contents.advisories import EVENTS, Advisories, package_of
from _llm.contents.software import Component
from _llm.contents.versions import debian_key, python_key, without_local
from _llm.images.packages import python_name

# Debian's word for a fault that nobody has judged yet.
NOT_JUDGED = "not yet assigned"


class Finding(NamedTuple):
    """An advisory about one package of the image.

    names: the advisory's id, then its other names. parts: the faults that it reports together
    (Debian's DSA-…), empty for one that is about one fault. severity: as its publisher gives it, or
    "". fixed: versions with the fix, "" for none known. undecided: its versions can't be compared.
    """

    component: Component
    names: tuple[str, ...]
    parts: tuple[str, ...]
    severity: str
    fixed: str
    summary: str
    undecided: bool


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
    for record in advisories.records:
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
    """Return the finding if an advisory is about this version of a package, else None."""
    is_python = component.kind == "pypi"
    version = without_local(component.version) if is_python else component.source_version
    listed = (version, component.version) if is_python else (version,)
    compare = python_key if is_python else debian_key
    affected, undecided, fixed, severity = False, False, [], ""
    for entry in record.get("affected") or []:
        if package_of(entry) != key:
            continue
        hit = any(in_versions(mine, entry.get("versions") or [], compare) for mine in listed)
        for one in entry.get("ranges") or []:
            if one.get("type") == "GIT":
                continue
            try:
                hit = in_range(version, one["events"], compare) or hit
            except ValueError:
                undecided = True
        if hit or undecided:
            fixed += fixes_after(version, entry.get("ranges") or [], compare)
            severity = severity or severity_of(record, entry)
        affected = affected or hit
    if not affected and not undecided:
        return None
    # One upstream fault is this one by its other name; several are faults of their own.
    upstream = list(dict.fromkeys(str(name) for name in record.get("upstream") or []))
    names = [record["id"], *map(str, record.get("aliases") or [])]
    if len(upstream) == 1:
        names += upstream
    return Finding(component, tuple(dict.fromkeys(names)),
                   tuple(upstream) if len(upstream) > 1 else (), severity,
                   ", ".join(dict.fromkeys(fixed)), str(record.get("summary") or ""), not affected)


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

    It has to stand before one of the limits, where there are any. Raises ValueError for a version
    that can't be compared.
    """
    mine, events = compare(version), list(events)
    limits = [event["limit"] for event in events if "limit" in event]
    if limits and not any("*" in limit or mine < compare(limit) for limit in limits):
        return False
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


def severity_of(record: dict[str, Any], entry: dict[str, Any]) -> str:
    """A fault's severity: its publisher's word, else Debian's, else the CVSS vector, "" for none.

    entry: what the advisory says about the package, which may have a vector of its own.
    """
    word = _text(record, "database_specific", "severity")
    urgency = _text(entry, "ecosystem_specific", "urgency")
    lists = [part["severity"] for part in (entry, record) if isinstance(part.get("severity"), list)]
    scores = [item["score"] for found in lists for item in found
              if isinstance(item, dict) and isinstance(item.get("score"), str)]
    return word or (urgency if urgency != NOT_JUDGED else "") or next(iter(scores), urgency)


def _text(record: dict[str, Any], part: str, name: str) -> str:
    inside = record.get(part)
    value = inside.get(name) if isinstance(inside, dict) else None
    return value if isinstance(value, str) else ""


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of one package without those that only say the same under another name.

    Aliases are transitive. An advisory about several faults goes where each of them is listed.
    """
    merged: list[Finding] = []
    for finding in sorted(findings, key=lambda f: (f.undecided, f.names)):
        same = [other for other in merged if set(other.names) & set(finding.names)]
        merged = [other for other in merged if other not in same]
        merged.append(_joined([*same, finding]))
    single = {name for finding in merged if not finding.parts for name in finding.names}
    return [f for f in merged if not f.parts or not set(f.parts) <= single]


def _joined(findings: list[Finding]) -> Finding:
    """One finding of several about the same fault, named as the first."""
    def first(texts: Iterable[str]) -> str:
        return next(filter(None, texts), "")

    severities = [finding.severity for finding in findings]
    words = (text for text in severities if re.fullmatch(r"[A-Za-z]+", text))
    return findings[0]._replace(
        names=tuple(dict.fromkeys(name for finding in findings for name in finding.names)),
        parts=tuple(dict.fromkeys(part for finding in findings for part in finding.parts)),
        # A word that people read, rather than a vector or nothing.
        severity=first(words) or first(severities),
        fixed=first(finding.fixed for finding in findings),
        summary=first(finding.summary for finding in findings),
        undecided=all(finding.undecided for finding in findings))
