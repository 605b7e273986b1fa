"""Read a site profile: sections, `key = value`, comments, indented continuation lines.

    python3 -c 'from _llm.ini import read_profile; print(read_profile("sites/default.ini"))'

The language is the subset of Python's configparser without interpolation, so any tool that reads
INI files reads these (tests/unit/test_ini.py compares the two). Not configparser itself, for two
reasons: it forgets on which line a key stood, and it stops at the first fault; its import would
also take a quarter of the time that llm-run may add to the start of a program.
"""

from __future__ import annotations


class Entry:
    """One `key = value` of a profile and the line (from 1) on which it stands."""

    __slots__ = ("key", "line", "section", "value")

    def __init__(self, section: str, key: str, value: str, line: int) -> None:
        self.section = section
        self.key = key
        self.value = value
        self.line = line


class Profile:
    """What a file holds: entries, the lines of its section headings, what could not be read.

    faults: (line, sentence) each.
    """

    __slots__ = ("entries", "faults", "sections")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.sections: dict[str, int] = {}
        self.faults: list[tuple[int, str]] = []


def read_profile(path: str) -> Profile:
    """Read the INI file `path` (UTF-8) and keep going after a fault.

    Raises OSError when it cannot be read and UnicodeDecodeError when it is not UTF-8.
    """
    with open(path, encoding="utf-8-sig") as file:
        lines = file.read().split("\n")
    profile = Profile()
    section = ""
    entry: Entry | None = None
    for number, raw in enumerate(lines, start=1):
        text = raw.strip()
        if text.startswith(("#", ";")):
            continue
        if not text:
            entry = None
        elif raw[0] in " \t" and entry is not None:
            entry.value = f"{entry.value}\n{text}" if entry.value else text
        elif text.startswith("["):
            entry = None
            section = _read_heading(profile, text, number)
        else:
            entry = _read_entry(profile, section, text, number)
    return profile


def _read_heading(profile: Profile, text: str, number: int) -> str:
    name = text[1:-1].strip() if text.endswith("]") else ""
    if not name:
        profile.faults.append((number, f"'{text}' is no section heading; write [name]"))
    elif name in profile.sections:
        first = profile.sections[name]
        profile.faults.append((number, f"section [{name}] was already opened on line {first}"))
    else:
        profile.sections[name] = number
    return name


def _read_entry(profile: Profile, section: str, text: str, number: int) -> Entry | None:
    key, equals, value = text.partition("=")
    key = key.strip().lower()
    if not equals or not key:
        profile.faults.append((number, f"'{text}' is no 'key = value'"))
        return None
    if not section:
        profile.faults.append((number, f"'{key}' stands before the first [section]"))
        return None
    for other in profile.entries:
        if other.section == section and other.key == key:
            message = f"'{key}' in [{section}] was already set on line {other.line}"
            profile.faults.append((number, message))
    entry = Entry(section, key, value.strip(), number)
    profile.entries.append(entry)
    return entry
