"""Which versions an OSV advisory is about, and which advisories say the same."""

from __future__ import annotations

from typing import Any

import pytest

from _llm.contents.advisories import Advisories
from _llm.contents.affected import find_affected, in_range, keys_of
from _llm.contents.software import Component
from _llm.contents.versions import debian_key, python_key


def package(kind: str = "pypi", name: str = "Torch", version: str = "2.13.0+cpu") -> Component:
    source = "glibc" if kind == "deb" else name
    return Component(kind, name, version, source, version, (), 0, "")


def advisory(ranges: Any = (), versions: Any = (), **more: Any) -> dict[str, Any]:
    entry = {"package": {"ecosystem": "PyPI", "name": "torch"}, "versions": list(versions),
             "ranges": [{"type": "ECOSYSTEM", "events": list(events)} for events in ranges]}
    return {"id": "X-1", "affected": [entry], **more}


def found(record: dict[str, Any], component: Component | None = None) -> list[Any]:
    read = Advisories([record], "", frozenset())
    return find_affected([component or package()], read, "12")


@pytest.mark.parametrize("events, version, expected", [
    ([{"introduced": "0"}], "0.0.dev1", True),
    ([{"introduced": "1"}, {"fixed": "2"}], "1", True),
    ([{"introduced": "1"}, {"fixed": "2"}], "2", False),
    ([{"introduced": "1"}, {"fixed": "2"}], "2rc1", True),
    ([{"introduced": "1"}, {"fixed": "2"}], "0.9", False),
    ([{"introduced": "1"}, {"last_affected": "2"}], "2", True),
    ([{"introduced": "1"}, {"last_affected": "2"}], "2.0.1", False),
    # Events in any order, several ranges in one.
    ([{"fixed": "4"}, {"introduced": "3"}, {"fixed": "2"}, {"introduced": "0"}], "2.5", False),
    ([{"fixed": "4"}, {"introduced": "3"}, {"fixed": "2"}, {"introduced": "0"}], "3.5", True),
    ([{"introduced": "2", "fixed": "3"}], "2.1", True),
    ([{"introduced": "2"}], "1!1", True), ([{"introduced": "1!0"}], "2", False),
    ([{"introduced": "0"}, {"limit": "2"}], "1.9", True),
    ([{"introduced": "0"}, {"limit": "2"}], "2", False),
    ([{"introduced": "0"}, {"limit": "2"}, {"limit": "3"}], "2", True),
    ([{"introduced": "0"}, {"limit": "2"}, {"limit": "*"}], "9", True),
    ([], "1", False),
])
def test_ranges(events: list[dict[str, str]], version: str, expected: bool) -> None:
    assert in_range(version, events, python_key) is expected


def test_debian_ranges() -> None:
    events = [{"introduced": "0"}, {"fixed": "2.36-9+deb12u11"}]
    assert in_range("2.36-9+deb12u9", events, debian_key)
    assert not in_range("2.36-9+deb12u11", events, debian_key)
    assert not in_range("1:1", events, debian_key)
    assert in_range("2.36-9+deb12u11~bpo1", events, debian_key)
    assert in_range("0~git2020-1", events, debian_key), "0 stands before `~` too"
    assert not in_range("5.2", [{"introduced": "1:0"}, {"fixed": "1:5.3"}], debian_key)
    assert in_range("1:5.2", [{"introduced": "1:0"}, {"fixed": "1:5.3"}], debian_key)


def test_findings() -> None:
    hit, = found(advisory([[{"introduced": "0"}, {"fixed": "2.14"}]], aliases=["CVE-1"],
                          database_specific={"severity": "HIGH"}, summary="s"))
    assert (hit.names, hit.fixed, hit.severity) == (("X-1", "CVE-1"), "2.14", "HIGH")
    assert found(advisory([[{"introduced": "0"}, {"fixed": "2.13.0"}]])) == []
    # The local part of a version is no reason to be outside.
    assert found(advisory([[{"introduced": "0"}, {"last_affected": "2.13"}]]))
    assert found(advisory(versions=["2.13"]))
    assert found(advisory(versions=["2.13.0+cpu"]))
    assert found(advisory(versions=["2.12"])) == []
    # Within any one of several ranges, or in the list.
    several = [[{"introduced": "0"}, {"fixed": "1"}], [{"introduced": "2.13"}, {"fixed": "2.14"}]]
    assert found(advisory(several))[0].fixed == "2.14"
    assert found(advisory(several[:1])) == []
    assert found(advisory(several[:1], versions=["2.13.0"]))
    assert found(advisory([[{"introduced": "0"}]]), package(name="torchvision")) == []
    git = advisory([[{"introduced": "0"}]])
    git["affected"][0]["ranges"][0]["type"] = "GIT"
    assert found(git) == []


def test_versions_that_cannot_be_compared_count_as_affected() -> None:
    hit, = found(advisory([[{"introduced": "0"}, {"fixed": "no version"}]]))
    assert hit.undecided
    hit, = found(advisory([[{"introduced": "0"}]]), package(version="local build"))
    assert hit.undecided


def test_the_same_fault_by_two_names_is_one() -> None:
    one = advisory([[{"introduced": "0"}, {"fixed": "3"}]], aliases=["CVE-1"])
    other = advisory([[{"introduced": "0"}]], aliases=["CVE-1"]) | {"id": "Y-2"}
    third = advisory([[{"introduced": "0"}]]) | {"id": "Z-3"}
    read = Advisories([one, other, third], "", frozenset())
    names = [f.names for f in find_affected([package()], read, "")]
    assert names == [("X-1", "CVE-1", "Y-2"), ("Z-3",)]


def test_debian_goes_by_source_package_and_release() -> None:
    libc = package("deb", "libc6", "2.36-9+deb12u14")
    record = advisory([[{"introduced": "0"}]])
    record["affected"][0]["package"] = {"ecosystem": "Debian:12", "name": "glibc"}
    assert found(record, libc)
    record["affected"][0]["package"]["ecosystem"] = "Debian:13"
    assert found(record, libc) == []
    record["affected"][0]["package"]["ecosystem"] = "Debian"
    assert found(record, libc)
    assert keys_of(package("generic", "llama.cpp"), "12") == []


def test_aliases_are_transitive() -> None:
    ranges = [[{"introduced": "0"}, {"fixed": "3"}]]
    one, other = advisory(ranges) | {"id": "A-1"}, advisory(ranges) | {"id": "C-1"}
    between = advisory(ranges, aliases=["A-1", "C-1"]) | {"id": "Z-1"}
    read = Advisories([one, other, between], "", frozenset())
    assert [f.names for f in find_affected([package()], read, "")] == [("A-1", "C-1", "Z-1")]


def test_an_advisory_of_several_faults_makes_them_no_single_one() -> None:
    ranges = [[{"introduced": "0"}, {"fixed": "3"}]]
    dsa = advisory(ranges, upstream=["CVE-1", "CVE-2"]) | {"id": "DSA-1"}
    cves = [advisory(ranges, upstream=[f"CVE-{n}"]) | {"id": f"DEBIAN-CVE-{n}"} for n in (1, 2)]
    for records, expected in (
        ([dsa, *cves], [("DEBIAN-CVE-1", "CVE-1"), ("DEBIAN-CVE-2", "CVE-2")]),
        ([dsa, cves[0]], [("DEBIAN-CVE-1", "CVE-1"), ("DSA-1",)]),
        ([dsa], [("DSA-1",)]),
    ):
        found = find_affected([package()], Advisories(records, "", frozenset()), "")
        assert [f.names for f in found] == expected


# As the OSV project gives them out, shortened: one of GitHub's, one of PyPI's, two of Debian's.
GITHUB = {
    "schema_version": "1.4.0", "id": "GHSA-aaaa-bbbb-cccc", "modified": "2026-02-01T00:00:00Z",
    "aliases": ["CVE-2026-1", "PYSEC-2026-7"], "related": ["CVE-2025-9"], "summary": "Overflow",
    "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}],
    "affected": [
        {"package": {"ecosystem": "PyPI", "name": "Torch", "purl": "pkg:pypi/torch"},
         "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.14.0"}]}],
         "database_specific": {"last_known_affected_version_range": "<= 2.13"}},
        {"package": {"ecosystem": "npm", "name": "torch"},
         "ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}]}]}],
    "database_specific": {"severity": "CRITICAL", "cwe_ids": ["CWE-787"]}, "references": []}
PYPI = {
    "id": "PYSEC-2026-7", "modified": "2026-02-02T00:00:00Z", "details": "…",
    "aliases": ["CVE-2026-1", "GHSA-aaaa-bbbb-cccc"],
    "affected": [{
        "package": {"ecosystem": "PyPI", "name": "torch", "purl": "pkg:pypi/torch"},
        "ranges": [{"type": "GIT", "repo": "r", "events": [{"introduced": "0"}, {"fixed": "ab"}]},
                   {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.14.0"}]}],
        "versions": ["2.12.0", "2.13.0"]}]}
DEBIAN = {
    "id": "DEBIAN-CVE-2026-2", "modified": "2026-02-03T00:00:00Z", "upstream": ["CVE-2026-2"],
    "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:L/AC:L/PR:L/UI:N/S:U/C:N/I:N/A:L"}],
    "affected": [
        {"package": {"ecosystem": f"Debian:{release}", "name": "glibc",
                     "purl": "pkg:deb/debian/glibc?arch=source"},
         "ranges": [{"type": "ECOSYSTEM", "events": events}], "versions": versions,
         "ecosystem_specific": {"urgency": urgency}}
        for release, urgency, versions, events in (
            ("11", "not yet assigned", [], [{"introduced": "0"}]),
            ("12", "unimportant", ["2.36-9", "2.36-9+deb12u13"], [{"introduced": "0"}]),
            ("13", "unimportant", [], [{"introduced": "0"}, {"fixed": "2.41-5"}]))]}
DSA = {
    "id": "DSA-6000-1", "modified": "2026-02-04T00:00:00Z",
    "upstream": ["CVE-2026-3", "CVE-2026-4"],
    "affected": [{
        "package": {"ecosystem": "Debian:12", "name": "glibc"},
        "ranges": [{"type": "ECOSYSTEM",
                    "events": [{"introduced": "0"}, {"fixed": "2.36-9+deb12u14"}]}],
        "versions": ["2.36-9"], "ecosystem_specific": {"urgency": "not yet assigned"}}]}


def test_records_of_each_kind() -> None:
    libc = package("deb", "libc6", "2.36-9+deb12u13")
    records = Advisories([GITHUB, PYPI, DEBIAN, DSA], "", frozenset())
    found = find_affected([package(), libc], records, "12")
    assert [(f.component.name, f.names, f.severity, f.fixed) for f in found] == [
        ("libc6", ("DEBIAN-CVE-2026-2", "CVE-2026-2"), "unimportant", ""),
        ("libc6", ("DSA-6000-1",), "not yet assigned", "2.36-9+deb12u14"),
        ("Torch", ("GHSA-aaaa-bbbb-cccc", "CVE-2026-1", "PYSEC-2026-7"), "CRITICAL", "2.14.0")]
    fixed = [package(version="2.14.0+cu130"), package("deb", "libc6", "2.36-9+deb12u14")]
    assert [f.names[0] for f in find_affected(fixed, records, "12")] == ["DEBIAN-CVE-2026-2"]


def test_the_vector_of_a_package_counts() -> None:
    record = advisory([[{"introduced": "0"}]])
    record["affected"][0]["severity"] = [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:P"}]
    assert found(record)[0].severity == "CVSS:3.1/AV:P"
