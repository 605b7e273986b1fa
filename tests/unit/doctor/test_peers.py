"""Nodes that reach each other, on this one's loopback; what their reports mean."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from _llm.doctor import peers
from _llm.doctor.finding import FAIL, OK, SKIP, WARN


@pytest.fixture
def port() -> Iterator[int]:
    """A port that answers as another node would, with a clock 90 seconds ahead."""
    listener = peers.listen()
    # For longer than a slow name service takes to say that there is no such host.
    process = peers.serve(listener, 300, lambda: time.time() + 90)
    yield int(listener.getsockname()[1])
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    listener.close()


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_look(port: int) -> None:
    others = [
        {"node": "localhost", "port": port, "address": "127.0.0.1"},
        {"node": "no-such-host.invalid", "port": port, "address": ""},
        {"node": "127.0.0.1", "port": closed_port(), "address": ""},
        {"node": "me", "port": 1, "address": ""},
    ]
    seen = peers.look("me", others)
    assert not seen["names"]["no-such-host.invalid"]["addresses"]
    reached = seen["reached"]
    assert "me" not in reached and 89 < reached["localhost"]["offset_s"] < 91
    assert reached["localhost"]["ms"] < 1000 and "errors" not in reached["localhost"]
    assert reached["no-such-host.invalid"] == {}
    assert "refused" in reached["127.0.0.1"]["errors"]["name"]


def report(names: dict[str, str], offsets: dict[str, float], **errors: str) -> dict[str, Any]:
    reached: dict[str, Any] = {n: {"ms": 0.1, "offset_s": o} for n, o in offsets.items()}
    for node, reason in errors.items():
        reached[node] = {"errors": {"name": reason}}
    return {
        "names": {n: {"addresses": [a] if a else []} for n, a in names.items()},
        "reached": reached,
    }


NAMES = {"n1": "10.0.0.1", "n2": "10.0.0.2", "n3": "10.0.0.3"}


def test_all_well() -> None:
    found = peers.judge(
        {
            "n1": report(NAMES, {"n2": 0.01, "n3": 0.02}),
            "n2": report(NAMES, {"n1": -0.01, "n3": 0.01}),
            "n3": report(NAMES, {"n1": -0.02, "n2": -0.01}),
        }
    )
    assert [(f.check, f.status) for f in found] == [
        ("names", OK),
        ("connections", OK),
        ("clocks", OK),
    ]
    assert found[2].measured == "within 10 ms"


def test_names_that_mean_the_loopback_or_nothing() -> None:
    found = peers.judge(
        {
            "n1": report({**NAMES, "n2": "127.0.1.1", "n1": "127.0.1.1"}, {"n2": 0, "n3": 0}),
            "n2": report(NAMES, {"n1": 0, "n3": 0}),
            "n3": report({**NAMES, "n1": ""}, {"n1": 0, "n2": 0}),
        }
    )
    names = [f for f in found if f.check == "names"]
    assert [f.status for f in names] == [FAIL, FAIL]
    assert names[0].text == "the name n1 can't be resolved on n3"
    assert names[1].text.startswith("n2 means 127.0.1.1 on n1")


def test_one_that_nobody_reaches_is_one_line() -> None:
    found = peers.judge(
        {
            "n1": report(NAMES, {"n2": 0}, n3="n3: no answer"),
            "n2": report(NAMES, {"n1": 0}, n3="n3: no answer"),
            "n3": report(NAMES, {"n1": 0, "n2": 0}),
        }
    )
    (bad,) = [f for f in found if f.check == "connections"]
    assert bad.status == FAIL
    assert bad.text == "n3 can't be reached from n1, n2 by name n3: no answer"


@pytest.mark.parametrize(("skew", "status"), [(0.5, OK), (3.0, WARN), (-90.0, FAIL)])
def test_clocks(skew: float, status: str) -> None:
    found = peers.judge(
        {
            "n1": report(NAMES, {"n2": 0.0, "n3": skew}),
            "n2": report(NAMES, {"n1": 0.0, "n3": skew}),
            "n3": report(NAMES, {"n1": -skew, "n2": -skew}),
        }
    )
    (clocks,) = [f for f in found if f.check == "clocks"]
    assert clocks.status == status
    if status != OK:
        assert "n3" in clocks.text and ("ahead" in clocks.text) == (skew > 0)


def test_a_single_report() -> None:
    assert [f.status for f in peers.judge({"n1": report(NAMES, {})})] == [SKIP]


def test_large_jobs_try_near_and_far_nodes() -> None:
    nodes = [f"n{number}" for number in range(1000)]
    tried = peers.chosen("n999", nodes)
    assert {"n0", "n1", "n3", "n511"} <= set(tried) and "n999" not in tried and len(tried) < 12
    assert peers.chosen("n1", nodes[:3]) == ["n0", "n2"]
