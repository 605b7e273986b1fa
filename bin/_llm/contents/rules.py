"""The rules of an audit: licences that are allowed, exceptions, advisories that are accepted.

    PYTHONPATH=bin python3 -c 'from _llm.contents.rules import *
    print(judge(["GPL-2.0-only OR MIT"], read_rules(DEFAULT_RULES)))'

docs/image-contents.md explains the file; rules.ini beside this one is the default.
"""

from __future__ import annotations

import datetime
import fnmatch
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from _llm.errors import LLMError
from _llm.images.licences import from_debian
from _llm.images.packages import python_name
from _llm.ini import Entry, read_profile
from _llm.suggest import nearest

DEFAULT_RULES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rules.ini")
KEYS = {"licences": ("allowed", "denied"), "advisories": ("unfixed", "ignored_urgencies")}
SECTIONS = (*KEYS, "exceptions", "accepted")
ALLOWED, UNKNOWN, DENIED = "allowed", "to be looked at", "denied"
DEEPEST = 50  # parentheses


class Accepted(NamedTuple):
    """An advisory that is accepted: until when, and why."""

    until: datetime.date
    reason: str


class Rules(NamedTuple):
    """A rules file.

    allowed, denied: patterns, in lower case. exceptions: (pattern of `deb/SOURCE` or `pypi/NAME`,
    licence patterns, reason). accepted: name of an advisory in lower case -> Accepted. unfixed:
    whether faults without a fixed version are reported. ignored_urgencies: Debian's words.
    """

    allowed: tuple[str, ...]
    denied: tuple[str, ...]
    exceptions: tuple[tuple[str, tuple[str, ...], str], ...]
    accepted: dict[str, Accepted]
    unfixed: bool
    ignored_urgencies: tuple[str, ...]


def read_rules(path: str) -> Rules:
    """Read a rules file. Raises LLMError that names every fault with its line."""
    try:
        profile = read_profile(path)
    except OSError as error:
        raise LLMError(f"the rules {path} cannot be read", error.strerror or str(error),
                       f"RULES names a file; empty, the default is used: {DEFAULT_RULES}") from None
    except UnicodeDecodeError as error:
        raise LLMError(f"the rules {path} are no UTF-8 text", f"{error.reason} at byte "
                       f"{error.start}", "save the file as UTF-8") from None
    faults = list(profile.faults)
    for section, line in profile.sections.items():
        if section not in SECTIONS:
            faults.append((line, f"there is no section [{section}]; the sections are "
                           + ", ".join(SECTIONS)))
    values: dict[str, tuple[str, ...]] = {}
    exceptions: list[tuple[str, tuple[str, ...], str]] = []
    accepted: dict[str, Accepted] = {}
    for entry in profile.entries:
        if entry.section in KEYS:
            if entry.key not in KEYS[entry.section]:
                near = nearest(entry.key, KEYS[entry.section])
                hint = f"; did you mean '{near}'?" if near else ""
                faults.append((entry.line, f"'{entry.key}' is no key of [{entry.section}]{hint}"))
            values[entry.key] = tuple(
                line.strip().lower() for line in entry.value.split("\n") if line.strip())
        elif entry.section == "exceptions":
            _read_exception(entry, exceptions, faults)
        elif entry.section == "accepted":
            _read_accepted(entry, accepted, faults)
    unfixed = values.get("unfixed", ("yes",))
    if unfixed not in (("yes",), ("no",)):
        line = next(e.line for e in profile.entries if e.key == "unfixed")
        faults.append((line, "'unfixed' is yes or no"))
    if faults:
        raise LLMError(f"faults in the rules {path}",
                       "\n       ".join(f"line {line}: {text}" for line, text in sorted(faults)),
                       "correct them; docs/image-contents.md shows the form")
    urgencies = " ".join(values.get("ignored_urgencies", ())).replace(",", " ").split()
    return Rules(values.get("allowed", ()), values.get("denied", ()), tuple(exceptions), accepted,
                 unfixed == ("yes",), tuple(urgencies))


def _read_exception(
    entry: Entry, exceptions: list[tuple[str, tuple[str, ...], str]], faults: list[tuple[int, str]],
) -> None:
    """`deb/SOURCE = licence | licence` and, on the lines that follow, the reason."""
    first, _, reason = entry.value.partition("\n")
    patterns = tuple(part.strip().lower() for part in first.split(" | ") if part.strip())
    if not re.match(r"(deb|pypi|generic)/.", entry.key):
        faults.append((entry.line, f"'{entry.key}' is no deb/SOURCE, pypi/NAME or generic/NAME"))
    if not patterns or not reason.strip():
        faults.append((entry.line, f"'{entry.key}' needs licences, and a reason on the next line"))
    exceptions.append((entry.key, patterns, " ".join(reason.split())))


def _read_accepted(
    entry: Entry, accepted: dict[str, Accepted], faults: list[tuple[int, str]],
) -> None:
    """`CVE-2024-1 = 2027-01-31` and, on the lines that follow, the reason."""
    first, _, reason = entry.value.partition("\n")
    try:
        until = datetime.date.fromisoformat(first.strip())
    except ValueError:
        faults.append((entry.line, f"'{entry.key}' needs the day on which it is looked at again, "
                       "as 2027-01-31"))
        return
    if not reason.strip():
        faults.append((entry.line, f"'{entry.key}' needs a reason on the next line"))
    accepted[entry.key] = Accepted(until, " ".join(reason.split()))


def matches(text: str, patterns: Iterable[str]) -> str:
    """The first pattern (`*` stands for anything) that a text matches, "" for none."""
    text = text.lower()
    return next((pattern for pattern in patterns if fnmatch.fnmatchcase(text, pattern)), "")


def judge(licence: str, rules: Rules, excepted: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return (ALLOWED, DENIED or UNKNOWN, the part or pattern that decided) for one licence.

    Of `A or B` one has to be allowed, of `A and B` both. A licence that no rule knows is UNKNOWN.
    A rule that names the whole, without `*`, goes before what is said about its parts.
    excepted: patterns that are allowed for this package, whatever the other rules say.
    """
    if matches(licence.strip(), excepted):
        return ALLOWED, licence
    for verdict, patterns in ((DENIED, rules.denied), (ALLOWED, rules.allowed)):
        if licence.lower() in patterns:
            return verdict, licence
    inner = licence.strip()
    if inner.count("(") > DEEPEST:
        return UNKNOWN, licence
    if _is_enclosed(inner):
        return judge(inner[1:-1], rules, excepted)
    for operator, order in ((r",\s+and", (DENIED, UNKNOWN, ALLOWED)),
                            (r",\s+or", (ALLOWED, UNKNOWN, DENIED)),
                            (r"or", (ALLOWED, UNKNOWN, DENIED)),
                            (r"and", (DENIED, UNKNOWN, ALLOWED))):
        parts = _split(inner, operator)
        if len(parts) > 1:
            found = [judge(part, rules, excepted) for part in parts]
            return min(found, key=lambda verdict: order.index(verdict[0]))
    denied = matches(inner, rules.denied)
    if denied:
        return DENIED, denied
    if matches(inner, rules.allowed):
        return ALLOWED, inner
    translated = from_debian(inner)
    if translated and translated != inner:
        return judge(translated, rules, excepted)
    return UNKNOWN, inner


def _split(text: str, operator: str) -> list[str]:
    """Split at an operator that stands outside of parentheses, and is a word of its own."""
    pattern = rf"\s*{operator}\s+" if operator.startswith(",") else rf"\s+{operator}\s+"
    parts, depth, begin, position = [], 0, 0, 0
    while position < len(text):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        found = re.compile(pattern, re.IGNORECASE).match(text, position) if depth == 0 else None
        if found and position > begin:
            parts.append(text[begin:position])
            begin = position = found.end()
        else:
            position += 1
    return [*parts, text[begin:]]


def _is_enclosed(text: str) -> bool:
    """Whether one pair of parentheses goes around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return False
    depth = 0
    for number, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return number == len(text) - 1
    return False


def exceptions_for(kind: str, name: str, rules: Rules) -> tuple[str, ...]:
    """Patterns of the licences that one package may have besides.

    name: of the source package for Debian's.
    """
    package = f"{kind}/{python_name(name) if kind == 'pypi' else name}".lower()
    return tuple(licence for pattern, licences, _ in rules.exceptions
                 if fnmatch.fnmatchcase(package, pattern) for licence in licences)
