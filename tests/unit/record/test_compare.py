"""What counts as the same: bytes where they are promised, numbers elsewhere, never a clock."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from _llm.record.compare import CLOSE, MISSING, NEW, OTHER, SAME, SHOWN, compare, compare_metrics
from _llm.record.reading import Record


def record(**data: Any) -> Record:
    whole = {"deterministic": True, "results": {"a": "1"}, "metrics": {"loss": 0.5}, **data}
    return Record("/runs/x.run.json", whole, "sha256:0")


def states(then: dict[str, Any], now: dict[str, Any], tolerance: float = 0.0) -> dict[str, str]:
    return {row.name: row.state for row in compare_metrics(then, now, tolerance)}


@pytest.mark.parametrize("name", [
    "load_s", "train_s", "step_s", "tokens_per_s", "tokens_per_min", "tokens_per_s_per_process",
    "peak_gpu_bytes", "peak_host_bytes", "mfu", "decode_mbu", "longest_save_s", "bytes_read_per_s",
    "peak_flop_per_s", "rows.0.speed.new.mean", "host_bytes_before", "port", "uptime_s",
])
def test_clocks_and_meters_decide_nothing(name: str) -> None:
    assert states({name: 1.0}, {name: 900.0}) == {name: SHOWN}
    assert states({name: 1.0}, {}) == {name: SHOWN}


@pytest.mark.parametrize("name", [
    "loss", "steps", "questions", "exact_match", "results.say.bleu,none", "file_bytes",
    "prompt_tokens", "rows_per_step", "weight_bytes_per_step", "first_loss", "parameters", "f1",
])
def test_counts_and_scores_decide(name: str) -> None:
    assert states({name: 2}, {name: 3}) == {name: OTHER}


def test_the_tolerance_is_for_losses_and_not_for_counts() -> None:
    then = {"loss": 1.0, "steps": 1000, "generated_tokens": 1000, "far": 1.0, "zero": 0.0,
            "b": True}
    now = {"loss": 1.005, "steps": 1001, "generated_tokens": 1001, "far": 1.2, "zero": 1e-12,
           "b": False}
    found = states(then, now, 0.01)
    assert found["loss"] == found["generated_tokens"] == found["zero"] == CLOSE
    assert found["steps"] == found["far"] == found["b"] == OTHER
    assert states({"loss": 1.0}, {"loss": 1.0 + 1e-12}) == {"loss": OTHER}
    assert states({"x": math.nan, "y": None}, {"x": math.nan, "y": None}, 0.01) == {"x": SAME}
    assert states({"x": math.nan}, {"x": 1.0}, 0.01) == {"x": OTHER}
    assert states({"x": 1.0}, {"x": "1.0"}, 0.01) == {"x": OTHER}  # no text stands for a number
    assert states({"x": 10**400, "y": 1.5}, {"x": 1.5, "y": 10**400}, 0.01) == {
        "x": OTHER, "y": OTHER}


def test_what_is_missing_or_new_is_found_at_any_depth() -> None:
    then = {"tasks": {"a": {"f1": 1.0}}, "rows": [{"n": 1}, {"n": 2}], "note": "old"}
    now = {"tasks": {"a": {"f1": 1.0}, "b": {"f1": 1.0}}, "rows": [{"n": 1}], "note": "new"}
    assert states(then, now) == {
        "tasks.a.f1": SAME, "rows.0.n": SAME, "rows.1.n": MISSING, "note": SHOWN,
        "tasks.b.f1": NEW}


def test_where_bytes_are_promised_they_decide() -> None:
    assert compare(record(), record(), 0.01).is_same
    found = compare(record(), record(results={"a": "2"}), 0.01)
    assert not found.is_same and found.verdict().startswith("different: 0 of 1 files")
    assert "different  a" in found.lines() and json.loads(json.dumps(found.as_json()))
    for results in ({}, {"a": None}, {"a": "1", "b": "2"}, []):
        assert not compare(record(), record(results=results), 0.01).is_same
    assert compare(record(results={"a": None}), record(), 0.01).is_same  # unknown then
    assert not compare(record(), record(metrics={"loss": 0.501}), 0.01).is_same


def test_elsewhere_numbers_decide() -> None:
    then = record(deterministic=False)
    now = record(deterministic=True, results={"a": "2"}, metrics={"loss": 0.501})
    found = compare(then, now, 0.01)
    assert found.is_same and "1 within 0.01" in found.verdict()
    assert "does not promise" in found.lines()
    assert not compare(then, now, 0.0001).is_same


def test_records_with_nothing_to_compare_are_not_the_same() -> None:
    empty = record(results={}, metrics={"load_s": 1.0})
    assert not compare(empty, empty, 0.01).is_same
    assert "nothing in common" in compare(empty, empty, 0.01).verdict()


def test_an_older_records_output_digest_counts() -> None:
    then = record(results=None, output_digest="x")
    assert compare(then, record(output_digest="x"), 0.01).is_same
    assert not compare(then, record(output_digest="y"), 0.01).is_same


def test_causes_are_named() -> None:
    def made(**data: Any) -> Record:
        return record(**data)

    then = made(image={"digest": "sha256:1"}, code={"commit": "a", "recipe": {"sha256": "r"}},
                model={"path": "m", "content": "sha256:5"}, host={"cpus": 1})
    now = made(image={"digest": "sha256:2"}, code={"commit": "b", "recipe": {"sha256": "s"}},
               model={"path": "m", "content": "sha256:6"}, host={"cpus": 2})
    found = compare(then, now, 0.01)
    assert found.causes == ["image: sha256:1 -> sha256:2", "recipe: r -> s", "commit: a -> b",
                            "model m: sha256:5 -> sha256:6"]
    assert found.hardware == ["cpus: 1 -> 2"] and found.is_same
    assert compare(then, then, 0.01).causes == []
    same_files = [made(code={"commit": name, "files_sha256": "f"}) for name in "ab"]
    assert compare(*same_files, 0.01).causes == []
