"""What an audit reports, accepts and says; the list of software it reads."""

from __future__ import annotations

import datetime
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from _llm.contents import audit, sbom, sizes
from _llm.contents.rules import Accepted, Rules
from _llm.contents.software import components, load_list
from _llm.errors import LLMError

TODAY = datetime.date(2026, 11, 28)


def entry(name: str, kind: str = "pypi", licences: Any = None, **facts: str) -> dict[str, Any]:
    facts = {"llm:installed-bytes": "2048", **{k.replace("_", "-"): v for k, v in facts.items()}}
    found = {"name": name, "version": "1.0", "purl": f"pkg:{kind}/{name}@1.0",
             "properties": [{"name": k, "value": v} for k, v in facts.items()]}
    return found if licences is None else {**found, "licenses": licences}


def listing(*entries: dict[str, Any]) -> dict[str, Any]:
    system = {"type": "operating-system", "name": "debian", "version": "12"}
    return {"bomFormat": "CycloneDX", "components": [system, *entries]}


def rules(**more: Any) -> Rules:
    return Rules(("mit",), (), (), {}, True, ())._replace(**more)


MIT = [{"license": {"id": "MIT"}}]


def test_licences_alone() -> None:
    document = listing(entry("good", licences=MIT), entry("bare"),
                       entry("odd", licences=[{"license": {"name": "Own"}}, *MIT]))
    report = audit.audit(document, rules(), "", TODAY)
    assert [(f.component.name, f.licence) for f in report.licences] == [
        ("bare", audit.NO_LICENCE), ("odd", "Own")]
    text = "\n".join(audit.as_text(report, "x.sif"))
    assert "not checked" in text and "odd 1.0  Own: to be looked at" in text
    assert not audit.as_json(report, "x.sif")["advisories_checked"]


@pytest.fixture
def advisories(tmp_path: Path) -> str:
    file = tmp_path / "adv.json"
    file.write_text(json.dumps([{
        "id": "X-1", "aliases": ["CVE-1"], "modified": "2026-11-01T00:00:00Z",
        "affected": [{"package": {"ecosystem": "PyPI", "name": "good"},
                      "ecosystem_specific": {"urgency": "Unimportant"},
                      "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}]}]))
    return str(file)


def test_accepted_until_a_day(advisories: str) -> None:
    document = listing(entry("good", licences=MIT))
    assert len(audit.audit(document, rules(), advisories, TODAY).findings) == 1
    accepted = rules(accepted={"cve-1": Accepted(TODAY, "harmless")})
    report = audit.audit(document, accepted, advisories, TODAY)
    assert (report.findings, len(report.accepted)) == ([], 1)
    assert "harmless" in "\n".join(audit.as_text(report, ""))
    later = audit.audit(document, accepted, advisories, TODAY + datetime.timedelta(1))
    assert len(later.findings) == 1
    assert "accepted until 2026-11-28" in "\n".join(audit.as_text(later, ""))
    assert audit.as_json(later, "")["advisories"][0]["expired"].startswith("accepted until")


def test_what_no_advisory_of_the_file_is_about_is_not_called_clean(advisories: str) -> None:
    document = listing(entry("other", licences=MIT), entry("libc6", "deb", MIT))
    report = audit.audit(document, rules(), advisories, TODAY)
    assert (report.findings, report.unchecked) == ([], {"Debian:12": 1})
    assert "NOT CHECKED are 1 packages" in "\n".join(audit.as_text(report, ""))
    assert audit.as_json(report, "")["unchecked"] == {"Debian:12": 1}


def test_debians_packages_of_one_source_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "adv.json"
    file.write_text(json.dumps({"id": "D-1", "upstream": ["CVE-1", "CVE-2"], "affected": [{
        "package": {"ecosystem": "Debian:12", "name": "glibc"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}]}))
    facts = {"llm:source-package": "glibc", "llm:source-version": "2.36"}
    document = listing(entry("libc6", "deb", MIT, **facts), entry("libc-bin", "deb", MIT, **facts))
    report = audit.audit(document, rules(), str(file), TODAY)
    assert len(report.findings) == 2
    lines = [line for line in audit.as_text(report, "") if line.startswith("advisory")]
    assert len(lines) == 1
    assert lines[0].startswith("advisory  glibc 2.36 (libc-bin, libc6)  D-1 (CVE-1, CVE-2)")
    # Whoever accepts one of its faults has not accepted the other.
    day = Accepted(TODAY, "harmless")
    one = audit.audit(document, rules(accepted={"cve-1": day}), str(file), TODAY)
    assert len(one.findings) == 2
    both = audit.audit(document, rules(accepted={"cve-1": day, "cve-2": day}), str(file), TODAY)
    assert (both.findings, len(both.accepted)) == ([], 2)
    assert audit.audit(document, rules(accepted={"d-1": day}), str(file), TODAY).findings == []


def test_unfixed_and_unimportant(advisories: str) -> None:
    document = listing(entry("good", licences=MIT))
    assert not audit.audit(document, rules(unfixed=False), advisories, TODAY).findings
    quiet = rules(ignored_urgencies=("unimportant",))
    assert not audit.audit(document, quiet, advisories, TODAY).findings


def test_exit_status(tmp_path: Path, advisories: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "image.cdx.json"
    file.write_text(json.dumps(listing(entry("good", licences=MIT))))
    own = tmp_path / "rules.ini"
    own.write_text("[licences]\nallowed = MIT\n")
    assert audit.main([str(file), "--rules", str(own)]) == 0
    assert audit.main([str(file), "--rules", str(own), "--advisories", advisories, "--json"]) == 1
    report = json.loads(capsys.readouterr().out.split("allowed\n", 1)[1])
    assert report["advisories"][0]["id"] == "X-1"
    own.write_text("[licences]\nallowed = ISC\n")
    assert audit.main([str(file), "--rules", str(own)]) == 1
    with pytest.raises(LLMError):
        audit.main([str(file), "--rules", str(tmp_path / "none")])


@pytest.mark.parametrize("data", [
    b"", b"[]", b"{}", b"\xff", b'{"bomFormat": "SPDX"}', b"[" * 100_000,
    b'{"bomFormat": "CycloneDX", "components": 3}',
])
def test_lists_that_are_none(data: bytes) -> None:
    with pytest.raises(LLMError, match="can't be read"):
        load_list(data, "x.sif")


def test_a_hostile_list_breaks_nothing() -> None:
    document = listing({"purl": "pkg:pypi/x"}, {"purl": 3}, {"name": "no url"}, 7,  # type: ignore[arg-type]
                       {"purl": "pkg:pypi/y", "properties": 3, "licenses": [3, {"license": 4}]},
                       entry("z", **{"llm:installed-bytes": "-5"}))
    found = components(document)
    assert [(c.kind, c.name, c.size) for c in found] == [("pypi", "", 0), ("pypi", "", 0),
                                                         ("pypi", "z", 0)]


def test_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "image.cdx.json"
    document = listing(entry("small"), entry("big", **{"llm:installed-bytes": "5000000"}),
                       entry("libc6", "deb", **{"llm:installed-bytes": "3000000"}))
    document["metadata"] = {"component": {"properties": [{"name": "llm:unowned-bytes",
                                                          "value": "100"}]}}
    file.write_text(json.dumps(document))
    assert sizes.main([str(file), "--json", "--top", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["name"] for p in found["packages"]] == ["big", "libc6"]
    assert found["bytes"] == 5000000 + 3000000 + 2048 + 100
    assert [e["name"] for e in found["ecosystems"]] == ["Python", "Debian"]
    assert sizes.main([str(file), "--top", "1"]) == 0
    assert "2 more" in capsys.readouterr().out
    with pytest.raises(LLMError):
        sizes.main([str(file), "--top", "-1"])
    assert [sizes.human(n) for n in (0, 1023, 1024, -1048576, 5 << 30)] == [
        "0 B", "1023 B", "1.0 KiB", "-1.0 MiB", "5.00 GiB"]


def test_where_a_list_may_be_written(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="is a folder"):
        sbom.check_output(str(tmp_path))
    with pytest.raises(LLMError, match="there is no folder"):
        sbom.check_output(str(tmp_path / "none" / "x.json"))
    sbom.check_output(str(tmp_path / "x.json"))
    os.mkfifo(tmp_path / "pipe")
    for place in (str(tmp_path / "pipe"), "/dev/null", "/dev/stdout", "/dev/none"):
        with pytest.raises(LLMError, match="no place for a file"):
            sbom.check_output(place)


def test_a_folder_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".x.json.tmp"))

    monkeypatch.setattr(sbom, "end_like_ctrl_c", lambda: None)
    monkeypatch.setattr(sbom, "choose", lambda options, program: str(tmp_path / "image.sif"))
    monkeypatch.setattr(sbom, "list_of", lambda image, program: json.dumps(listing()).encode())
    monkeypatch.setattr(sbom, "write_text", refuse)
    with pytest.raises(LLMError) as raised:
        sbom.main(["--output", str(tmp_path / "x.json")])
    assert raised.value.what == f"'{tmp_path}/x.json' can't be written"
    assert raised.value.why == "Permission denied"
