"""What people and programs get to read."""

from __future__ import annotations

import json

from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.doctor.report import as_json, group, lines, some, summary

BAD = Finding("cache", FAIL, "it is full", "make room\nor go", measured="1 of 2 GiB")


def test_a_line_and_its_fix() -> None:
    first, second, third = lines(BAD, 0, [], False).splitlines()
    assert first == "fail  cache              it is full (1 of 2 GiB)"
    assert second == " " * 25 + "fix: make room"
    assert third == " " * 30 + "or go"


def test_a_fix_of_what_is_fine_is_not_shown() -> None:
    assert "fix" not in lines(Finding("x", OK, "fine", "nothing to do"), 0, [], False)


def test_one_line_whatever_a_path_holds() -> None:
    assert len(lines(Finding("x", OK, "a\nb\tc"), 0, [], False).splitlines()) == 1


def test_colour() -> None:
    assert lines(BAD, 0, [], True).startswith("\033[31;1mfail \033[0m cache")


def test_the_same_on_all_nodes_is_one_line() -> None:
    fine = [Finding("start", OK, "it starts", measured=f"0.{n} s", node=f"n{n}") for n in (1, 2, 3)]
    other = Finding("start", FAIL, "it does not", node="n4")
    (same, nodes), (odd, alone) = group([*fine, other])
    assert nodes == ["n1", "n2", "n3"] and alone == ["n4"]
    assert same.measured == "n1: 0.1 s; n2: 0.2 s; n3: 0.3 s"
    assert lines(same, 4, nodes, False).startswith("ok    start              n1, n2, n3: it starts")
    assert "n4: it does not" in lines(odd, 4, alone, False)
    assert "3 nodes: it starts" in lines(same, 3, nodes, False)


def test_findings_of_a_check_stay_together() -> None:
    found = [
        Finding("a", OK, "1", node="n1"),
        Finding("b", OK, "1", node="n1"),
        Finding("a", WARN, "2", node="n2"),
        Finding("b", OK, "1", node="n2"),
    ]
    assert [finding.check for finding, _ in group(found)] == ["a", "a", "b"]


def test_other_statuses_are_other_lines() -> None:
    found = [Finding("a", OK, "same", node="n1"), Finding("a", WARN, "same", node="n2")]
    assert [(f.status, nodes) for f, nodes in group(found)] == [(OK, ["n1"]), (WARN, ["n2"])]


def test_many_names() -> None:
    assert some([f"n{n}" for n in range(9)]) == "n0, n1, n2, n3 and 5 more"


def test_summary_and_json() -> None:
    found = [BAD, Finding("y", OK, "fine"), Finding("z", SKIP, "not here")]
    assert summary(found, 1, 1.25) == "1 ok, 0 warnings, 1 failed, 1 skipped, 1.2 s"
    assert "on 3 nodes" in summary(found, 3, 1)
    values = json.loads(as_json([*found, Finding("p", OK, "\udcff")], "box", ["n1"]))
    assert values["schema"] == 1 and values["nodes"] == ["n1"]
    assert values["counts"] == {"ok": 2, "warn": 0, "fail": 1, "skip": 1}
    assert values["findings"][0]["fix"] == "make room\nor go"
