"""llm-doctor --job without a cluster: a step played by a script, and what is said in it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from _llm.doctor import collective, job
from _llm.doctor import conversation as conversation_module
from _llm.doctor.context import Context
from _llm.doctor.conversation import Conversation, talk
from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.doctor.options import Options
from _llm.errors import LLMError
from _llm.settings import load_settings

REPOSITORY = Path(__file__).resolve().parents[3]
# A step of two nodes that do what node.py does, without checks.
STEP = """
import sys, time
sys.path.insert(0, sys.argv[1])
from _llm.doctor.messages import Inbox, pack
def tell(sender, **message):
    print(pack(sender, {"node": f"n{sender + 1}", **message}), end="", flush=True)
print("srun: a word of srun's\\nsrun: error: n2: task 1: Killed", file=sys.stderr)
inbox = Inbox(0)
for sender in range(2):
    tell(sender, port=1, address="", rendezvous=5, gpus=sender)
peers = inbox.wait(time.monotonic() + 60)["peers"]
assert [peer["node"] for peer in peers] == ["n1", "n2"]
for sender in range(2):
    tell(sender, seen={"names": {}, "reached": {}})
    tell(sender, findings=[{"check": "torch", "status": "ok", "text": "x", "data": {"a": 1}}])
    tell(sender, finished=True)
"""


def converse(tmp_path: Path, script: str, seconds: float = 60) -> tuple[Conversation, list[str]]:
    path = tmp_path / "step.py"
    path.write_text(script, encoding="utf-8")
    conversation = Conversation(["n1", "n2"])
    command = [sys.executable, str(path), str(REPOSITORY / "bin")]
    return conversation, talk(command, {}, conversation, time.monotonic() + seconds)


def test_a_conversation(tmp_path: Path) -> None:
    end = (
        'wanted = inbox.wait(time.monotonic() + 60)["collective"]\n'
        'assert wanted["url"] == "tcp://n1:5" and wanted["ranks"] == {"n1": 0, "n2": 1}\n'
        "for sender in range(2):\n"
        "    tell(sender, summed={'status': 0, 'seconds': 1, 'bytes': 1, 'lines': []})\n"
        'assert inbox.wait(time.monotonic() + 60) == {"stop": True}\n'
    )
    conversation, said = converse(tmp_path, STEP + end)
    assert conversation.stopped and set(conversation.summed) == {"n1", "n2"}
    assert [f.node for f in conversation.findings] == ["n1", "n2"]
    assert said == ["srun: a word of srun's"]
    assert not list(job._silent(conversation, ["n1", "n2"], said, 1))
    found = {f.check: f for f in job._between(conversation, 2)}
    assert found["gpus"].status == WARN and "n1: 0, n2: 1" in found["gpus"].text


def test_a_step_that_goes_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The time is over as soon as the step says no more, however long it took to get there.
    silent = tmp_path / "silent"
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * silent.exists())
    monkeypatch.setattr(conversation_module, "time", clock)
    script = STEP.replace("finished=True", "x=1")
    script += f"open({str(silent)!r}, 'w').close()\ntime.sleep(99)"
    begin = time.monotonic()
    conversation, said = converse(tmp_path, script)
    assert silent.exists() and time.monotonic() - begin < 60
    found = list(job._silent(conversation, ["n1", "n2", "n3"], said, 2))
    assert [(f.node, f.status) for f in found] == [("", FAIL), ("n1", FAIL), ("n2", FAIL)]
    assert found[0].text.startswith("n3 did not answer within 2 s")
    assert job._between(conversation, 2)[-1].status == SKIP


def test_a_step_that_could_not_start(tmp_path: Path) -> None:
    script = "import sys; sys.exit('srun: error: Unable to create step')"
    conversation, said = converse(tmp_path, script)
    (found,) = job._silent(conversation, ["n1", "n2"], said, 0)
    assert "Unable to create step" in found.text and found.data["nodes"] == ["n1", "n2"]


def test_nodes_that_srun_gives_up() -> None:
    line = "srun: error: Task launch for StepId=5.0 failed on node n3: Communication failure"
    assert job._not_launched(["x", line], ["n1", "n3"]) == {"n3": "Communication failure"}
    assert job._not_launched([line], ["n1"]) == {}


def test_outside_of_a_job(home: Path, env: dict[str, str]) -> None:
    context = Context(load_settings(env, str(home)), env, str(home), "t")
    with pytest.raises(LLMError) as caught:
        job.run(Options(), context, 0)
    assert "salloc" in caught.value.fix


def test_the_step(home: Path, env: dict[str, str]) -> None:
    context = Context(load_settings(env, str(home)), env, str(home), "t")
    words = job._command("/srun", ["n1", "n2"], Options(), context, time.monotonic() + 100)
    before = words[: words.index(f"{home}/bin/llm-doctor")]
    # The last of two of srun's options counts.
    assert [w for w in before if "bad-exit" in w][-1] == "--kill-on-bad-exit=0"
    assert {"--nodelist=n1,n2", "--overlap", "--nodes=2", "--ntasks=2"} <= set(before)


def summed(**changes: Any) -> dict[str, Any]:
    return {"status": 0, "last": "", "bytes": 16 << 20, "seconds": 0.01, "lines": [], **changes}


def test_the_sum_of_all_nodes() -> None:
    torch = [Finding("torch", OK, "x", data={"a": 1}, node=n) for n in ("n1", "n2")]
    hello = {"n1": {"rendezvous": 20000}, "n2": {"rendezvous": 20001}}
    wanted = collective.offer(["n1", "n2"], hello, torch)
    assert wanted is not None and wanted["backend"] == "gloo"
    assert collective.offer(["n1", "n2"], hello, torch[:1]) is None
    gpus = [Finding("gpu 0", OK, "x", node=n) for n in ("n1", "n2")]
    with_gpus = collective.offer(["n1", "n2"], hello, torch + gpus)
    assert with_gpus is not None and with_gpus["backend"] == "nccl"
    (found,) = collective.judge(wanted, {"n1": summed(), "n2": summed(seconds=0.02)})
    assert found.status == OK and found.measured == "16 MiB in 20.0 ms, 0.84 GB/s a link"
    lines = ["n1 NCCL INFO Using network IB"]
    (found,) = collective.judge(with_gpus, {"n1": summed(lines=lines), "n2": summed()})
    assert "by nccl over IB" in found.text
    (found,) = collective.judge(wanted, {"n1": summed(status=1, last="no route")})
    assert found.status == FAIL and "n1: no route" in found.text and "n2: no answer" in found.text
