"""What llm-doctor prints: aligned lines, the same findings of several nodes as one, or JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from _llm.doctor.finding import FAIL, OK, SKIP, STATUSES, WARN, Finding

COLORS = {OK: "32", WARN: "33", FAIL: "31;1", SKIP: "2"}
CHECK_WIDTH = 18
MOST_NAMES = 4


def lines(finding: Finding, node_count: int, nodes: Sequence[str], color: bool) -> str:
    """One finding for people, of all the nodes that made the same one.

    node_count: nodes of the job, 0 outside of one. nodes: those that this finding is from.
    """
    who = ""
    if node_count:
        who = f"{len(nodes)} nodes: " if 1 < len(nodes) == node_count else f"{some(nodes)}: "
    status = f"{finding.status:<5}"
    if color:
        status = f"\033[{COLORS[finding.status]}m{status}\033[0m"
    text = f"{finding.text} ({finding.measured})" if finding.measured else finding.text
    shown = f"{status} {finding.check:<{CHECK_WIDTH}} {who}{_one_line(text)}"
    if "text" in finding.data:
        shown += "\n" + str(finding.data["text"]).rstrip()
    if finding.fix and finding.status in (WARN, FAIL):
        indent = " " * (6 + CHECK_WIDTH + 1)
        rest = finding.fix.strip().replace("\n", "\n" + indent + "     ")
        shown += f"\n{indent}fix: {rest}"
    return shown


def group(findings: Sequence[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings that say the same, each with the names of its nodes, in the order of the checks."""
    order = list(dict.fromkeys(finding.check for finding in findings))
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: order.index(finding.check)):
        key = (finding.check, finding.status, finding.text, finding.fix)
        groups.setdefault(key, []).append(finding)
    return [(_joined(same), [finding.node for finding in same]) for same in groups.values()]


def _joined(same: Sequence[Finding]) -> Finding:
    first = same[0]
    measured = list(dict.fromkeys(finding.measured for finding in same))
    if len(measured) == 1:
        return first
    shown = [f"{finding.node}: {finding.measured}" for finding in same[:MOST_NAMES]]
    more = f"; and {len(same) - MOST_NAMES} more" if len(same) > MOST_NAMES else ""
    return replace(first, measured="; ".join(shown) + more)


def wants_color(env: Mapping[str, str]) -> bool:
    """Whether to colour what is printed: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not env.get("NO_COLOR") and env.get("TERM") != "dumb"


def some(names: Sequence[str]) -> str:
    """The names, or the first of them and how many more there are."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return ", ".join(names[:MOST_NAMES]) + f" and {len(names) - MOST_NAMES} more"


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings have each status."""
    found = Counter(finding.status for finding in findings)
    return {status: found[status] for status in STATUSES}


def summary(findings: Sequence[Finding], node_count: int, seconds: float) -> str:
    """The last line."""
    found = counts(findings)
    words = [f"{found[OK]} ok", f"{found[WARN]} warnings", f"{found[FAIL]} failed"]
    words += [f"{found[SKIP]} skipped"]
    where = f" on {node_count} nodes" if node_count > 1 else ""
    return f"{', '.join(words)}{where}, {seconds:.1f} s"


def as_json(findings: Sequence[Finding], site: str, nodes: Sequence[str]) -> str:
    """Everything for programs."""
    values = {
        "schema": 1,
        "site": site,
        "nodes": list(nodes),
        "counts": counts(findings),
        "findings": [finding.as_dict() for finding in findings],
    }
    return json.dumps(values, indent=1)


def _one_line(text: str) -> str:
    return " ".join(text.split())
