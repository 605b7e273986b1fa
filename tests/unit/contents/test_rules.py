"""Licence rules, exceptions and accepted advisories."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.contents.rules import (
    ALLOWED,
    DEFAULT_RULES,
    DENIED,
    UNKNOWN,
    Rules,
    exceptions_for,
    judge,
    read_rules,
)
from _llm.errors import LLMError

CONTAINERS = Path(__file__).parents[3] / "containers"
RULES = Rules(("mit", "gpl-2.0-*", "artistic", "odd, and mit", "isc"), ("*proprietary*", "agpl-*"),
              (("pypi/own-*", ("own words*", "proprietary x"), "read"),), {}, True, ())


@pytest.mark.parametrize("licence, expected", [
    ("MIT", ALLOWED), ("mit", ALLOWED), ("GPL-2.0-only", ALLOWED), ("GPL-2+", ALLOWED),
    ("Expat", ALLOWED), ("GPL-3.0-only", UNKNOWN), ("AGPL-3.0-only", DENIED),
    ("Some Proprietary License", DENIED), ("", UNKNOWN),
    ("MIT AND Unknown-1", UNKNOWN), ("MIT OR Unknown-1", ALLOWED),
    ("Unknown-1 OR AGPL-3.0-only", UNKNOWN), ("MIT OR AGPL-3.0-only", ALLOWED),
    ("MIT AND AGPL-3.0-only", DENIED), ("(MIT OR AGPL-3.0-only) AND ISC", ALLOWED),
    ("(MIT AND AGPL-3.0-only) OR (ISC)", ALLOWED), ("((MIT))", ALLOWED),
    ("(MIT) AND (AGPL-3.0-only)", DENIED), ("GPL-1+ or Artistic", ALLOWED),
    ("GPL-1+ or Artistic, and Odd", UNKNOWN), ("Odd, and MIT", ALLOWED),
    ("MIT or", UNKNOWN), (" or MIT", UNKNOWN), ("(" * 60 + "MIT", UNKNOWN),
    ("corporation and MIT", UNKNOWN), ("MIT OR " * 200 + "ISC", ALLOWED),
])
def test_judgement(licence: str, expected: str) -> None:
    assert judge(licence, RULES)[0] == expected


def test_exceptions_are_for_one_package_and_its_licence() -> None:
    excepted = exceptions_for("pypi", "Own-Pkg", RULES)
    assert judge("Own words, and more", RULES, excepted)[0] == ALLOWED
    assert judge("Proprietary X", RULES, excepted)[0] == ALLOWED
    assert judge("Proprietary Y", RULES, excepted)[0] == DENIED
    assert exceptions_for("deb", "own-pkg", RULES) == ()


def test_the_default_has_a_reason_for_each_exception() -> None:
    rules = read_rules(DEFAULT_RULES)
    assert rules.exceptions and all(reason for _, _, reason in rules.exceptions)
    assert judge("GPL-3+ with Bison exception", rules)[0] == ALLOWED
    assert judge("AGPL-3.0-or-later", rules)[0] == DENIED
    assert judge("LicenseRef-NVIDIA-Proprietary", rules)[0] == DENIED
    assert rules.unfixed and rules.ignored_urgencies == ("unimportant",)


def test_the_default_lets_each_of_nvidias_packages_in_the_locks_through() -> None:
    rules = read_rules(DEFAULT_RULES)
    names = {line.partition("==")[0] for lock in CONTAINERS.glob("*/requirements-cuda*.lock")
             for line in lock.read_text().splitlines() if line.startswith("nvidia-")}
    assert "nvidia-cublas" in names
    for name in names:
        excepted = exceptions_for("pypi", name.replace("-", "_"), rules)
        for licence in ("LicenseRef-NVIDIA-Proprietary", "Other/Proprietary License"):
            assert judge(licence, rules, excepted)[0] == ALLOWED
        assert judge("Another Proprietary License", rules, excepted)[0] == DENIED


def test_the_manuals_example(tmp_path: Path) -> None:
    manual = Path(__file__).parents[3] / "docs" / "image-contents.md"
    text = manual.read_text(encoding="utf-8")
    example = text.split("```text\n[licences]")[1].split("```")[0]
    (tmp_path / "r.ini").write_text("[licences]" + example)
    rules = read_rules(str(tmp_path / "r.ini"))
    assert rules.exceptions and rules.accepted and rules.allowed and rules.denied


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "the rules; 'x'.ini"
    file.write_text("[licences]\nallowed =\n    MIT\n    # a comment\n    ISC\n[exceptions]\n"
                    "deb/x = a | b c\n    because\n    of this\n[accepted]\nCVE-1 = 2027-01-31\n"
                    "    nobody runs it\n[advisories]\nunfixed = no\nignored_urgencies = low, x\n")
    rules = read_rules(str(file))
    assert rules.allowed == ("mit", "isc")
    assert rules.exceptions == (("deb/x", ("a", "b c"), "because of this"),)
    assert rules.accepted["cve-1"].until.isoformat() == "2027-01-31"
    assert (rules.unfixed, rules.ignored_urgencies) == (False, ("low", "x"))


@pytest.mark.parametrize("text, words", [
    ("[licence]\nallowed = MIT\n", "line 1: there is no section [licence]"),
    ("[licences]\nalowed = MIT\n", "did you mean 'allowed'"),
    ("[exceptions]\nx = MIT\n    r\n", "line 2: 'x' is no deb/SOURCE"),
    ("[exceptions]\ndeb/x = MIT\n", "needs licences, and a reason"),
    ("[accepted]\nCVE-1 = soon\n    r\n", "needs the day"),
    ("[accepted]\nCVE-1 = 2027-01-31\n", "needs a reason"),
    ("[advisories]\nunfixed = maybe\n", "yes or no"),
    ("allowed = MIT\n", "before the first [section]"), ("[licences]\nMIT\n", "no 'key = value'"),
])
def test_faults_name_their_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.ini").write_text(text)
    with pytest.raises(LLMError) as caught:
        read_rules(str(tmp_path / "r.ini"))
    assert words in caught.value.why


def test_all_faults_at_once(tmp_path: Path) -> None:
    (tmp_path / "r.ini").write_text("[x]\n[licences]\ny = 1\n[accepted]\nz = 2\n")
    with pytest.raises(LLMError) as caught:
        read_rules(str(tmp_path / "r.ini"))
    assert caught.value.why.count("line ") == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="cannot be read"):
        read_rules(str(tmp_path / "none.ini"))
    (tmp_path / "r.ini").write_bytes(b"\xff\xfe")
    with pytest.raises(LLMError, match="no UTF-8"):
        read_rules(str(tmp_path / "r.ini"))
