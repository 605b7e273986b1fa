"""Compare versions as Python packages (PEP 440) and as Debian packages are compared.

    PYTHONPATH=bin python3 -c 'from _llm.contents.versions import debian_key, python_key
    print(python_key("1.0rc1") < python_key("1.0"), debian_key("1.0~rc1") < debian_key("1.0"))'

Sources: https://peps.python.org/pep-0440/ , deb-version(7) and section 5.6.12 of Debian's policy.
"""

from __future__ import annotations

import re
from typing import Any

PYTHON = re.compile(
    r"v?(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)"
    r"(?:[-_.]?(?P<pre>alpha|beta|preview|pre|a|b|c|rc)[-_.]?(?P<pre_number>[0-9]*))?"
    r"(?:-(?P<post_bare>[0-9]+)|(?P<post>[-_.]?(?:post|rev|r)[-_.]?(?P<post_number>[0-9]*)))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_number>[0-9]*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?", re.IGNORECASE | re.ASCII)
PRE = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
# Before and after everything.
FIRST, LAST = (-1,), (9,)
DEBIAN = re.compile(r"(?:([0-9]+):)?([0-9A-Za-z.+~:-]+?)(?:-([0-9A-Za-z.+~]+))?", re.ASCII)
LONGEST = 500


def python_key(version: str) -> tuple[Any, ...]:
    """Return what orders a Python version among others. Raises ValueError for what is none."""
    found = PYTHON.fullmatch(version.strip()) if len(version) <= LONGEST else None
    if not found:
        raise ValueError(f"'{version[:60]}' is no version of a Python package")
    release = [int(number) for number in found["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    is_post = found["post"] is not None or found["post_bare"] is not None
    post = (0, int(found["post_bare"] or found["post_number"] or 0)) if is_post else FIRST
    dev = (0, int(found["dev_number"] or 0)) if found["dev"] is not None else LAST
    if found["pre"] is not None:
        pre: tuple[int, ...] = (PRE[found["pre"].lower()], int(found["pre_number"] or 0))
    else:
        # 1.0.dev1 stands before 1.0a1, 1.0.post1.dev1 behind 1.0.
        pre = FIRST if dev != LAST and not is_post else LAST
    # A local part that is a number stands behind one that is a word.
    local = tuple((1, int(part), "") if part.isdecimal() else (0, 0, part)
                  for part in re.split(r"[-_.]", (found["local"] or "").lower()) if part)
    return int(found["epoch"] or 0), tuple(release), pre, post, dev, local


def without_local(version: str) -> str:
    """A Python version without its local part: `2.13.0` of `2.13.0+cpu`."""
    return version.partition("+")[0]


def debian_key(version: str) -> tuple[Any, ...]:
    """Return what orders a Debian version among others. Raises ValueError for what is none."""
    found = DEBIAN.fullmatch(version.strip()) if len(version) <= LONGEST else None
    # Without an epoch a colon has no place.
    if not found or (found[1] is None and ":" in found[2]):
        raise ValueError(f"'{version[:60]}' is no version of a Debian package")
    epoch, upstream, revision = found.groups()
    return int(epoch or 0), _debian_part(upstream), _debian_part(revision or "")


def _debian_part(text: str) -> tuple[Any, ...]:
    """Words and numbers in turn, a word first; no number is 0, and so is no revision."""
    key: list[Any] = []
    for word, number in re.findall(r"([^0-9]*)([0-9]*)", text or "0"):
        if word or number:
            # The end of a word, and of the version, stands behind `~` and before everything else.
            key += [(*(_weight(letter) for letter in word), 0), int(number or 0)]
    return (*key, (0,))


def _weight(letter: str) -> int:
    if letter == "~":
        return -1
    return ord(letter) if letter.isalpha() else ord(letter) + 256
