"""Check an image's software against advisories and licence rules: what `make audit` calls.

    sh bin/_llm/tool.sh audit --image llm --variant cpu --advisories PyPI-all.zip
    sh bin/_llm/tool.sh audit image.sif --rules our-rules.ini --json

Exit status: 0 nothing to report, 1 there is a list, 2 a mistake such as a malformed file. Nothing
is fetched: docs/image-contents.md says where advisory files come from.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from _llm.contents.advisories import Advisories, read_advisories
from _llm.contents.affected import Finding, find_affected, keys_of
from _llm.contents.choose import add_choice, choose
from _llm.contents.rules import (
    ALLOWED,
    DEFAULT_RULES,
    UNKNOWN,
    Accepted,
    Rules,
    exceptions_for,
    judge,
    read_rules,
)
from _llm.contents.software import Component, components, read_software
from _llm.image import end_like_ctrl_c
from _llm.printable import escaped

NO_LICENCE = "none is stated"


class LicenceFault(NamedTuple):
    """A package whose licence is not allowed. verdict: DENIED or UNKNOWN. rule: what decided."""

    component: Component
    licence: str
    verdict: str
    rule: str


class Report(NamedTuple):
    """What an audit found.

    accepted: findings that the rules accept, with the reason. expired: names of those whose day has
    passed, which are in findings too. checked: advisories that were read, None without a file.
    unchecked: what no advisory of the file is about, such as `Debian:12` -> packages.
    """

    findings: list[Finding]
    accepted: list[tuple[Finding, str]]
    expired: dict[str, str]
    licences: list[LicenceFault]
    checked: str | None
    unchecked: dict[str, int]


def main(arguments: Sequence[str]) -> int:
    """Run the program. Raises LLMError for a user's mistake."""
    parser = argparse.ArgumentParser(prog="audit", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_choice(parser)
    parser.add_argument("--advisories", default="", metavar="PATH", help="OSV JSON, JSON Lines, a "
                        "zip, or a folder of those; empty: only licences are checked")
    parser.add_argument("--rules", default="", metavar="FILE", help="rules; empty: the default's")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    rules = read_rules(os.path.expanduser(options.rules) or DEFAULT_RULES)
    image_file = choose(options, "audit")
    document = read_software(image_file, "audit")
    report = audit(document, rules, os.path.expanduser(options.advisories), datetime.date.today())
    if options.json:
        print(json.dumps(as_json(report, image_file), indent=1))
    else:
        print("\n".join(map(escaped, as_text(report, image_file))))
    return 1 if report.findings or report.licences else 0


def audit(
    document: dict[str, Any], rules: Rules, advisories: str, today: datetime.date,
) -> Report:
    """Check a list of software. advisories: path of a file or folder, "" for licences alone."""
    found = components(document)
    licences = check_licences(found, rules)
    if not advisories:
        return Report([], [], {}, licences, None, {})
    release = release_of(document)
    wanted = frozenset(key for component in found for key in keys_of(component, release))
    read = read_advisories(advisories, wanted)
    findings: list[Finding] = []
    accepted: list[tuple[Finding, str]] = []
    expired: dict[str, str] = {}
    for finding in find_affected(found, read, release):
        if finding.severity.lower() in rules.ignored_urgencies:
            accepted.append((finding, f"severity '{finding.severity}'"))
            continue
        if not finding.fixed and not rules.unfixed:
            accepted.append((finding, "there is no fixed version"))
            continue
        rule = acceptance(finding, rules)
        if rule and rule.until >= today:
            accepted.append((finding, f"{rule.reason} (until {rule.until})"))
            continue
        if rule:
            expired[finding.names[0]] = f"accepted until {rule.until}: {rule.reason}"
        findings.append(finding)
    checked = f"{len(read.records)} advisories are about packages of this image"
    if read.newest:
        checked += f", the file's newest is of {read.newest[:10]}"
    return Report(findings, accepted, expired, licences, checked,
                  unchecked_packages(found, read, release))


def acceptance(finding: Finding, rules: Rules) -> Accepted | None:
    """The rule that accepts a finding, the one that lasts longest; None for none.

    An advisory about several faults is accepted by its own name, or if each of them is.
    """
    named = [rules.accepted.get(name.lower()) for name in finding.names]
    own = [rule for rule in named if rule]
    if own:
        return max(own, key=lambda rule: rule.until)
    parts = [rules.accepted.get(name.lower()) for name in finding.parts]
    found = [rule for rule in parts if rule]
    if found and len(found) == len(parts):
        return min(found, key=lambda rule: rule.until)
    return None


def unchecked_packages(
    found: Iterable[Component], read: Advisories, release: str,
) -> dict[str, int]:
    """Ecosystem -> how many packages are of it, where the file has nothing about that ecosystem."""
    counts: dict[str, int] = {}
    for component in found:
        ecosystems = [ecosystem for ecosystem, _ in keys_of(component, release)]
        if ecosystems and not read.ecosystems.intersection(ecosystems):
            counts[ecosystems[0]] = counts.get(ecosystems[0], 0) + 1
    return counts


def release_of(document: dict[str, Any]) -> str:
    """Debian's release, such as `12`, "" where the list names none."""
    for entry in document.get("components", []):
        if isinstance(entry, dict) and entry.get("type") == "operating-system" and (
                entry.get("name") == "debian"):
            return str(entry.get("version", "")).split(".")[0]
    return ""


def check_licences(found: Iterable[Component], rules: Rules) -> list[LicenceFault]:
    """Return every licence of every package that the rules don't allow, by package."""
    faults = []
    for component in found:
        name = component.source if component.kind == "deb" else component.name
        excepted = exceptions_for(component.kind, name, rules)
        for licence in component.licences or (NO_LICENCE,):
            verdict, rule = judge(licence, rules, excepted)
            if verdict != ALLOWED:
                faults.append(LicenceFault(component, licence, verdict, rule))
    return sorted(faults, key=lambda f: (f.component.kind, f.component.name, f.licence))


def as_text(report: Report, image_file: str) -> list[str]:
    """The report as lines for people."""
    lines = [image_file]
    findings = by_source(report.findings)
    for who, finding in findings:
        others = [*finding.names[1:], *finding.parts]
        also = f" ({', '.join(others)})" if others else ""
        fixed = f"fixed in {finding.fixed}" if finding.fixed else "no fixed version"
        doubt = "; its versions can't be compared, look yourself" if finding.undecided else ""
        old = report.expired.get(finding.names[0])
        lines.append(f"advisory  {who}  {finding.names[0]}{also}  "
                     f"{finding.severity or 'severity unknown'}  {fixed}{doubt}")
        if finding.summary:
            lines.append(f"          {' '.join(finding.summary.split())[:160]}")
        if old:
            lines.append(f"          {old}")
    for fault in report.licences:
        component = fault.component
        why = "no rule is about it" if fault.verdict == UNKNOWN else f"rule '{fault.rule}'"
        source = "" if component.source == component.name else f" (source {component.source})"
        lines.append(f"licence   {component.title} {component.version}{source}  "
                     f"{fault.licence}: {fault.verdict}, {why}")
    reasons = dict(report.accepted)
    lines += [f"accepted  {who}  {finding.names[0]}: {reasons[finding]}"
              for who, finding in by_source(reasons)]
    if report.checked is None:
        lines.append("advisories: not checked, no file was given (ADVISORIES=FILE)")
    else:
        lines += [f"advisories: NOT CHECKED are {count} packages, the file has nothing about "
                  f"{ecosystem}" for ecosystem, count in report.unchecked.items()]
        lines.append(f"advisories: {len(findings)} to report; {report.checked}")
    lines.append(f"licences: {len(report.licences)} to report" if report.licences
                 else "licences: every one is allowed")
    return lines


def by_source(findings: Iterable[Finding]) -> list[tuple[str, Finding]]:
    """(who it is about, finding) each; Debian's packages of one source are one line."""
    groups: dict[tuple[str, ...], tuple[Finding, list[str]]] = {}
    for finding in findings:
        c = finding.component
        who = (c.source, c.source_version) if c.kind == "deb" else (c.title, c.version)
        groups.setdefault((c.kind, *who, *finding.names), (finding, []))[1].append(c.name)
    rows = []
    for (kind, name, version, *_), (finding, names) in groups.items():
        binaries = f" ({', '.join(names)})" if kind == "deb" and names != [name] else ""
        rows.append((f"{name} {version}{binaries}", finding))
    return rows


def as_json(report: Report, image_file: str) -> dict[str, Any]:
    """The report as one object."""
    def entry(finding: Finding) -> dict[str, Any]:
        component = finding.component
        return {"package": component.name, "version": component.version,
                "ecosystem": component.ecosystem, "source": component.source,
                "place": component.place, "id": finding.names[0],
                "aliases": list(finding.names[1:]), "parts": list(finding.parts),
                "severity": finding.severity, "fixed": finding.fixed,
                "summary": finding.summary, "undecided": finding.undecided}

    return {
        "image": image_file, "advisories_checked": report.checked is not None,
        "unchecked": report.unchecked,
        "advisories": [entry(finding) | (
            {"expired": report.expired[finding.names[0]]}
            if finding.names[0] in report.expired else {}) for finding in report.findings],
        "accepted": [entry(finding) | {"reason": reason} for finding, reason in report.accepted],
        "licences": [{"package": f.component.name, "version": f.component.version,
                      "source": f.component.source, "licence": f.licence, "verdict": f.verdict,
                      "rule": f.rule} for f in report.licences],
    }
