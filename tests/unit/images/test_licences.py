"""Licences become SPDX only where that is certain."""

from __future__ import annotations

import pytest

from _llm.images.licences import (
    as_cyclonedx,
    debian_licences,
    from_debian,
    from_python,
    spdx_expression,
)


@pytest.mark.parametrize("text, expected", [
    ("MIT", "MIT"), ("mit and apache-2.0", "MIT AND Apache-2.0"),
    ("(MIT OR Apache-2.0) AND BSD-3-Clause", "(MIT OR Apache-2.0) AND BSD-3-Clause"),
    ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
    ("LicenseRef-Own-1.0", "LicenseRef-Own-1.0"),
    ("", ""), ("MIT AND", ""), ("AND MIT", ""), ("(MIT", ""), ("MIT)", ""), ("MIT MIT", ""),
    ("MIT WITH Apache-2.0", ""), ("WITH", ""), ("MIT WITH LLVM-exception WITH LLVM-exception", ""),
    ("LLVM-exception", ""), ("Nobody-1.0", ""), ("MIT AND ()", ""),
    ("(" * 60 + "MIT" + ")" * 60, ""),
    ("MIT OR " * 600 + "MIT", ""), ("MIT; rm -rf /", ""),
])
def test_expressions(text: str, expected: str) -> None:
    assert spdx_expression(text) == expected


@pytest.mark.parametrize("name, expected", [
    ("GPL-2", "GPL-2.0-only"), ("GPL-2+", "GPL-2.0-or-later"), ("GPL-3.0+", "GPL-3.0-or-later"),
    ("LGPL-2.1+", "LGPL-2.1-or-later"), ("Expat", "MIT"), ("BSD-3-clause", "BSD-3-Clause"),
    ("GPL-2+ or Expat", "GPL-2.0-or-later OR MIT"),
    ("GPL-2+ or Expat, and ISC", "(GPL-2.0-or-later OR MIT) AND ISC"),
    ("GFDL-NIV-1.3", "GFDL-1.3-no-invariants-only"),
    # What may mean several things, or a version that there isn't, stays a name.
    ("GPL", ""), ("Artistic", ""), ("BSD", ""), ("X11", ""), ("GPL-4", ""), ("GPL-2.1", ""),
    ("GPL-2+ or Artistic", ""), ("GPL-3+ with Bison exception", ""), ("", ""),
])
def test_debians_short_names(name: str, expected: str) -> None:
    assert from_debian(name) == expected


def test_copyright_file() -> None:
    text = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: x

Files: *
Copyright: somebody
License: GPL-2+
 the text
 .
 more of it

# a comment
Files: debian/*
License:  Expat  or
 Artistic

License: unused-text
 words
"""
    assert debian_licences(text) == ["GPL-2+", "Expat or"]
    assert debian_licences("This package is free.\n\nLicense: GPL-2\n") is None
    assert debian_licences("") is None
    assert debian_licences("Format: copyright-format/1.0\n\nLicense: ISC\n text\n") == ["ISC"]


@pytest.mark.parametrize("expression, text, classifiers, expected", [
    ("MIT", "other", ["License :: OSI Approved :: BSD License"], ["MIT"]),
    ("Some-New-1.0", "", [], ["Some-New-1.0"]),
    ("", "", ["License :: OSI Approved :: MIT License"], ["MIT"]),
    ("", "BSD-2-Clause", ["License :: OSI Approved :: BSD License"], ["BSD-2-Clause"]),
    ("", "Copyright 2020", ["License :: OSI Approved :: BSD License"], ["BSD License"]),
    ("", "MIT License", ["License :: OSI Approved :: MIT License",
                         "License :: OSI Approved :: Academic Free License (AFL)"],
     ["MIT", "Academic Free License (AFL)"]),
    ("", "Apache License, Version 2.0", [], ["Apache-2.0"]),
    ("", "Apache 2.0", ["License :: Other/Proprietary License"],
     ["Apache-2.0", "Other/Proprietary License"]),
    ("", "\n\n======\nOwn words\nmore", [], [""]), ("", "", [], []),
    ("", "x" * 5000, [], ["x" * 200]), ("", "Own words\nmore", ["License :: OSI Approved"],
                                        ["Own words"]),
])
def test_pythons_fields(
    expression: str, text: str, classifiers: list[str], expected: list[str],
) -> None:
    found = from_python(expression, text, classifiers)
    assert [licence for licence in found if licence] == [e for e in expected if e]


def test_one_expression_or_a_list() -> None:
    assert as_cyclonedx([]) == []
    assert as_cyclonedx(["MIT"]) == [{"license": {"id": "MIT"}}]
    assert as_cyclonedx(["MIT", "ISC", "MIT AND ISC"]) == [{"expression": "MIT AND ISC"}]
    assert as_cyclonedx(["MIT OR ISC", "Zlib"]) == [{"expression": "(MIT OR ISC) AND Zlib"}]
    assert as_cyclonedx(["MIT", "own words"]) == [
        {"license": {"id": "MIT"}}, {"license": {"name": "own words"}}]
