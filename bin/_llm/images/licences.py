"""Licences as SPDX writes them, from what Debian's copyright files and Python's metadata say.

A name is translated only where it can mean one licence; anything else stays as it was written:

    PYTHONPATH=bin python3 -c 'from _llm.images.licences import from_debian
    print(from_debian("GPL-2+ or Expat"))'

Formats: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/ ,
https://spdx.org/licenses/ , https://peps.python.org/pep-0639/ (which classifiers are ambiguous).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from _llm.images.control import stanzas

# The ids of SPDX's list that are known here; `A WITH B` needs B among the exceptions.
IDS = frozenset((
    "0BSD", "AFL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-1.0", "Apache-1.1",
    "Apache-2.0", "Artistic-2.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-2-Clause-Patent",
    "BSD-3-Clause", "BSD-3-Clause-Clear", "BSD-3-Clause-LBNL", "BSD-4-Clause", "BSD-4-Clause-UC",
    "BSD-Source-Code", "BSL-1.0", "Beerware", "BlueOak-1.0.0", "CC-BY-3.0", "CC-BY-4.0",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "CDDL-1.0", "CNRI-Python", "ClArtistic", "EPL-1.0",
    "EPL-2.0", "EUPL-1.2", "FSFAP", "FSFUL", "FSFULLR", "FTL", "GFDL-1.2-only",
    "GFDL-1.2-or-later", "GFDL-1.3-only", "GFDL-1.3-or-later", "GFDL-1.3-no-invariants-only",
    "GFDL-1.3-no-invariants-or-later", "GPL-1.0-only", "GPL-1.0-or-later", "GPL-2.0-only",
    "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "HPND", "ISC", "Latex2e",
    "LGPL-2.0-only", "LGPL-2.0-or-later", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only",
    "LGPL-3.0-or-later", "Libpng", "MIT", "MIT-0", "MIT-CMU", "MPL-1.1", "MPL-2.0", "MS-PL",
    "MulanPSL-2.0", "NCSA", "OFL-1.1", "OpenSSL", "PSF-2.0", "PostgreSQL", "Python-2.0",
    "Python-2.0.1", "SSPL-1.0", "Sleepycat", "TCL", "Unicode-3.0", "Unicode-DFS-2016",
    "Unlicense", "W3C", "WTFPL", "X11", "ZPL-2.1", "Zlib", "bzip2-1.0.6", "curl", "libtiff",
    "zlib-acknowledgement",
))
EXCEPTIONS = frozenset((
    "Autoconf-exception-2.0", "Autoconf-exception-3.0", "Bison-exception-2.2",
    "Classpath-exception-2.0", "GCC-exception-3.1", "LLVM-exception", "Libtool-exception",
    "Linux-syscall-note", "OpenSSL-exception",
))
_CANONICAL = {word.lower(): word for word in (*IDS, *EXCEPTIONS)}

# Short names of Debian's format besides the families below, in lower case.
DEBIAN = {
    "expat": "MIT", "mit": "MIT", "isc": "ISC", "zlib": "Zlib", "apache-1.0": "Apache-1.0",
    "apache-1.1": "Apache-1.1", "apache-2": "Apache-2.0", "apache-2.0": "Apache-2.0",
    "artistic-2": "Artistic-2.0", "artistic-2.0": "Artistic-2.0", "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause", "bsd-4-clause": "BSD-4-Clause",
    "bsd-4-clause-uc": "BSD-4-Clause-UC", "mpl-1.1": "MPL-1.1", "mpl-2.0": "MPL-2.0",
    "cc0-1.0": "CC0-1.0", "cc0": "CC0-1.0", "cc-by-3.0": "CC-BY-3.0", "cc-by-4.0": "CC-BY-4.0",
    "ms-pl": "MS-PL", "fsfap": "FSFAP", "fsfullr": "FSFULLR", "latex2e": "Latex2e",
    "openssl": "OpenSSL", "bsl-1.0": "BSL-1.0", "gfdl-niv-1.3": "GFDL-1.3-no-invariants-only",
    "gfdl-niv-1.3+": "GFDL-1.3-no-invariants-or-later", "psf-2": "PSF-2.0",
    "gpl-2 with linux-syscall-note exception": "GPL-2.0-only WITH Linux-syscall-note",
    "gpl-3+ with bison-2.2 exception": "GPL-3.0-or-later WITH Bison-exception-2.2",
}
# GNU's families and the versions that there are of each.
GNU = {"gpl": ("1", "2", "3"), "lgpl": ("2", "2.1", "3"), "agpl": ("3",), "gfdl": ("1.2", "1.3")}
# Ways to write a licence in the free field `License` that can mean one licence only.
TEXTS = {
    "mit license": "MIT", "the mit license": "MIT", "the mit license (mit)": "MIT",
    "apache 2.0": "Apache-2.0", "apache-2": "Apache-2.0", "apache 2": "Apache-2.0",
    "apache license 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache software license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0", "apache-2.0 license": "Apache-2.0",
    "bsd 3-clause license": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause", "bsd-3-clause license": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause", "bsd 2-clause license": "BSD-2-Clause",
    "2-clause bsd license": "BSD-2-Clause", "simplified bsd license": "BSD-2-Clause",
    "isc license": "ISC", "isc license (iscl)": "ISC", "mpl 2.0": "MPL-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "the unlicense (unlicense)": "Unlicense",
    "gnu lesser general public license v2 or later (lgplv2+)": "LGPL-2.0-or-later",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
    "gnu lesser general public license v3 or later (lgplv3+)": "LGPL-3.0-or-later",
    "gnu general public license v2 (gplv2)": "GPL-2.0-only",
    "gnu general public license v2 or later (gplv2+)": "GPL-2.0-or-later",
    "gnu general public license v3 (gplv3)": "GPL-3.0-only",
    "gnu general public license v3 or later (gplv3+)": "GPL-3.0-or-later",
    "gnu affero general public license v3": "AGPL-3.0-only",
    "gnu affero general public license v3 or later (agplv3+)": "AGPL-3.0-or-later",
    "boost software license 1.0 (bsl-1.0)": "BSL-1.0", "zero-clause bsd (0bsd)": "0BSD",
    "cc0 1.0 universal (cc0 1.0) public domain dedication": "CC0-1.0",
}
LONGEST_NAME = 200
DEEPEST = 50


def spdx_expression(text: str) -> str:
    """Return an SPDX expression in its canonical spelling, "" where the text is none.

    Ids that are not known here make it none, except `LicenseRef-…`.
    """
    words = re.findall(r"[()]|[^\s()]+", text)
    if not words or len(words) > 500:
        return ""
    result: list[str] = []
    depth, want_id = 0, True
    for word in words:
        upper = word.upper()
        after_with = bool(result) and result[-1] == "WITH"
        if word == "(" and want_id and not after_with:
            depth += 1
            result.append(word)
        elif word == ")" and not want_id and depth:
            depth -= 1
            result.append(word)
        elif not want_id and (upper in ("AND", "OR") or (
                upper == "WITH" and _is_id(result[-1]) and result[-2:-1] != ["WITH"])):
            result.append(upper)
            want_id = True
        elif want_id and after_with and _CANONICAL.get(word.lower(), "") in EXCEPTIONS:
            result.append(_CANONICAL[word.lower()])
            want_id = False
        elif want_id and not after_with and _is_id(_CANONICAL.get(word.lower(), word)):
            result.append(_CANONICAL.get(word.lower(), word))
            want_id = False
        else:
            return ""
        if depth > DEEPEST:
            return ""
    if want_id or depth:
        return ""
    return " ".join(result).replace("( ", "(").replace(" )", ")")


def _is_id(word: str) -> bool:
    return word in IDS or bool(re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", word))


def from_debian(name: str) -> str:
    """Return a short name of Debian's format as an SPDX expression, "" where that isn't certain.

    name: such as `GPL-2+ or Expat`; `and` binds closer than `or`, a comma before either ends what
    stands in front of it.
    """
    name = _spaces(name)
    whole = _debian_licence(name)
    if whole:
        return whole
    for pattern, operator in ((r", and ", "AND"), (r", or ", "OR"), (r" or ", "OR"),
                              (r" and ", "AND")):
        parts = re.split(pattern, name, flags=re.IGNORECASE)
        if len(parts) > 1:
            found = [from_debian(part) for part in parts]
            if not all(found):
                return ""
            return f" {operator} ".join(f"({p})" if " AND " in p or " OR " in p else p
                                        for p in dict.fromkeys(found))
    return ""


def _debian_licence(name: str) -> str:
    low = name.lower()
    if low in DEBIAN:
        return DEBIAN[low]
    found = re.fullmatch(r"([al]?gpl|gfdl)-([0-9.]+?)(?:\.0)?(\+|-only|-or-later)?", low)
    if found and found.group(2) in GNU[found.group(1)]:
        family, version, later = found.groups()
        number = version if "." in version else f"{version}.0"
        return f"{family.upper()}-{number}-{'or-later' if later in ('+', '-or-later') else 'only'}"
    return ""


def debian_licences(copyright_file: str) -> list[str] | None:
    """Return the short names of a copyright file's licences in order, each once.

    None where the file is not of the machine-readable format. Only paragraphs that say what they
    are about count (`Files`, and the header); stand-alone ones hold the texts.
    """
    paragraphs = list(stanzas(copyright_file))
    if not paragraphs or "copyright-format" not in paragraphs[0].get("format", ""):
        return None
    used = [p["license"] for number, p in enumerate(paragraphs)
            if "license" in p and ("files" in p or number == 0)]
    used = used or [p["license"] for p in paragraphs if "license" in p]
    names = (_spaces(text.strip("\n").split("\n")[0])[:LONGEST_NAME] for text in used)
    return [name for name in dict.fromkeys(names) if name]


def from_python(expression: str, text: str, classifiers: Sequence[str]) -> list[str]:
    """Return the licences of a Python package: SPDX expressions where certain, else names.

    expression, text: its fields License-Expression and License. classifiers: those that begin with
    `License ::`. Several classifiers are several licences; the free text decides between them only
    where a single classifier is ambiguous ("BSD License"). "Other/Proprietary License" stays, with
    what the text says.
    """
    if expression.strip():
        return [spdx_expression(expression) or _spaces(expression)[:LONGEST_NAME]]
    names = [c.split("::")[-1].strip() for c in classifiers if c.split("::")[-1].strip()]
    names = [name for name in dict.fromkeys(names) if name != "OSI Approved"]
    first = next((_spaces(line) for line in text.split("\n") if line.strip()), "")[:LONGEST_NAME]
    if "\n" in text.strip() and not from_text(first):
        # A whole licence text: what stands in its first line is a heading or a name, not more.
        first = first.strip("=-* ")
    if len(names) == 1 and "proprietary" in names[0].lower() and first:
        names = [first, *names]
    if len(names) > 1:
        return list(dict.fromkeys(from_text(name) or name for name in names))
    if names:
        return [from_text(names[0]) or from_text(first) or names[0]]
    return [from_text(first) or first] if first else []


def from_text(text: str) -> str:
    """Return a licence's usual name as an SPDX expression, "" where that isn't certain."""
    return spdx_expression(text) or TEXTS.get(_spaces(text).lower(), "")


def as_cyclonedx(licences: Iterable[str]) -> list[dict[str, object]]:
    """Return the value of a component's `licenses`: one expression, or a list of ids and names.

    The format allows an expression only alone; where a name stands beside, the list is of names.
    """
    found = [licence for licence in dict.fromkeys(licences) if licence]
    if found and all(spdx_expression(licence) for licence in found):
        parts = list(dict.fromkeys(part for licence in found for part in _conjuncts(licence)))
        if len(parts) == 1 and parts[0] in IDS:
            return [{"license": {"id": parts[0]}}]
        return [{"expression": parts[0] if len(parts) == 1 else " AND ".join(
            f"({part})" if " OR " in part else part for part in parts)}]
    return [{"license": {"id" if licence in IDS else "name": licence}} for licence in found]


def _conjuncts(expression: str) -> list[str]:
    """What an expression joins by AND, where that is easily seen, else the expression."""
    return [expression] if " OR " in expression else re.split(" AND ", expression)


def _spaces(text: str) -> str:
    return " ".join(text.split())
