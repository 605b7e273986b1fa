"""One model over several hosts: who meets, who gets which layers, and that all end with one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import RECIPES, convert, make_model, recipe_environment

from llm_recipes.errors import LLMError
from llm_recipes.gguf import host_leader, remote_hosts, rpc
from llm_recipes.gguf.channel import Channel, PeerLost, Stranger, admit, introduce
from llm_recipes.gguf.file import read_gguf
from llm_recipes.gguf.host_gathering import Worker
from llm_recipes.gguf.hosts import Meeting, read_meeting
from llm_recipes.gguf.model import ContextSettings
from llm_recipes.gguf.remote_hosts import (
    RemoteHost,
    place_on_hosts,
    share_layers,
    verify_layers,
)
from llm_recipes.gguf.server_address import free_port

WAITS = [str(Path(__file__).with_name("hosts_recipe.py"))]
GENERATE = [str(RECIPES / "quantized" / "generate.py")]
SLOW = 300.0


class Party:
    """The tasks of a step on this machine, as srun would start them; all of them end with it."""

    def __init__(self, folder: Path, command: Sequence[object], tasks: int = 3) -> None:
        self.folder, self.command = folder, [str(word) for word in command]
        self.secret = os.urandom(8).hex()
        self.tasks: list[subprocess.Popen[bytes]] = []
        self.count = tasks
        self.port = free_port("127.0.0.1")

    def start(self, task: int, **env: str) -> None:
        """Start a task."""
        variables = {
            **recipe_environment(),
            "LLM_RENDEZVOUS": f"127.0.0.1:{self.port}",
            "LLM_RENDEZVOUS_TOKEN": self.secret,
            "LLM_HOSTS_WAIT": "120",
            "SLURM_PROCID": str(task),
            "SLURM_NTASKS": str(self.count),
            "SLURM_CPUS_PER_TASK": "1",
            "PARTY": self.secret,
        }
        with open(self.folder / f"task{task}", "wb") as output:
            self.tasks.append(
                subprocess.Popen(
                    [sys.executable, *self.command],
                    env={**variables, **env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                )
            )

    def start_all(self) -> Party:
        """Start every task."""
        for task in range(self.count):
            self.start(task)
        return self

    def said(self, task: int = 0) -> str:
        """What a task has said so far."""
        return (self.folder / f"task{task}").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str, task: int = 0) -> None:
        """Wait until a task says something."""
        until = time.monotonic() + SLOW
        while words not in self.said(task):
            assert time.monotonic() < until, self.said(task)
            assert self.tasks[task].poll() is None, self.said(task)
            time.sleep(0.05)

    def statuses(self) -> list[int]:
        """Each task's exit status, when all have ended."""
        return [task.wait(SLOW) for task in self.tasks]

    def processes(self, name: str = "") -> list[int]:
        """All processes of the step that are there, the tasks' own children included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                mark = f"PARTY={self.secret}".encode()
                words = (folder / "cmdline").read_text(errors="replace")
                if name in words and mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return sorted(found)

    def assert_gone(self, seconds: float = 30.0) -> None:
        """Nothing of it is left."""
        until = time.monotonic() + seconds
        while self.processes():
            assert time.monotonic() < until, self.processes()
            time.sleep(0.05)

    def end(self) -> None:
        """End what is left."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for task in self.tasks:
            task.wait()


@pytest.fixture
def party(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Party]:
    """Tasks that wait."""
    if shutil.which("ggml-rpc-server") is None:
        pytest.skip("llama.cpp's programs are not here")
    tasks = Party(tmp_path, [*WAITS, "--seconds", "60"])
    yield tasks
    tasks.end()


# --- who meets whom ---

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NTASKS": "9",
    "SLURM_PROCID": "2",
    "LLM_RENDEZVOUS": "n1:20007",
    "LLM_RENDEZVOUS_TOKEN": "secret",
    "LLM_STEP_NODES": "n1,n2,n3",
    "LLM_NETWORK_INTERFACE": "ib0",
}


def test_a_task_knows_where_it_belongs() -> None:
    meeting = read_meeting(JOB)
    assert meeting == Meeting("n1", 20007, "secret", 2, 3, ("n1", "n2", "n3"), "ib0")
    assert meeting.name(2) == "n3"


def test_a_job_of_one_node_needs_nobody() -> None:
    assert read_meeting({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"LLM_RENDEZVOUS": ""}, "needs a job with several nodes"),
        ({"LLM_RENDEZVOUS": "", "SLURM_JOB_ID": None}, "needs a job with several nodes"),
        ({"SLURM_STEP_NUM_TASKS": "6"}, "one task a node, and this step has 6 on 3 nodes"),
        ({"LLM_RENDEZVOUS_TOKEN": ""}, "share no secret"),
        ({"LLM_RENDEZVOUS": "n1"}, "is not HOST:PORT"),
    ],
)
def test_where_hosts_cannot_be(change: dict[str, str | None], words: str) -> None:
    env = {name: value for name, value in {**JOB, **change}.items() if value is not None}
    with pytest.raises(LLMError, match=words) as found:
        read_meeting(env)
    assert "salloc --nodes=3 llm-run" in found.value.fix


def meet(listener_secret: str, caller_secret: str) -> list[object]:
    """What becomes of both sides of a channel: the channel, or what was raised."""
    ends = socket.socketpair()
    found: list[object] = [None, None]

    def take(index: int, work: object, secret: str) -> None:
        try:
            found[index] = work(ends[index], secret)  # type: ignore[operator]
        except Exception as error:
            found[index] = error
            ends[index].close()

    other = threading.Thread(target=take, args=(0, admit, listener_secret))
    other.start()
    take(1, introduce, caller_secret)
    other.join()
    return found


@pytest.fixture
def unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of sockets has no TCP options."""
    monkeypatch.setattr("llm_recipes.gguf.channel._prepared", lambda c: Channel(c, 4096))


@pytest.mark.usefixtures("unix_sockets")
def test_those_who_know_the_secret_talk() -> None:
    ours, theirs = meet("s", "s")
    assert isinstance(ours, Channel) and isinstance(theirs, Channel)
    theirs.send({"n": 1})
    theirs.send({"n": 2})
    assert [ours.receive(1)["n"], ours.receive(1)["n"]] == [1, 2]
    theirs.close()
    with pytest.raises(PeerLost, match="its process ended"):
        ours.receive(1)


@pytest.mark.usefixtures("unix_sockets")
def test_those_who_do_not_are_sent_away() -> None:
    ours, theirs = meet("s", "other")
    assert isinstance(theirs, Stranger) and isinstance(ours, PeerLost)


@pytest.mark.usefixtures("unix_sockets")
@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"{}\n", b"x" * 9000])
def test_other_protocols_are_sent_away(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(said)
    with pytest.raises(Stranger):
        admit(ours, "s")


def test_a_public_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "source_towards", lambda host: "8.8.8.8")
    with pytest.raises(LLMError, match=r"public address 8\.8\.8\.8") as found:
        rpc.choose_address("n1")
    assert "lo 127.0.0.1" in found.value.why and "LLM_NETWORK_INTERFACE=" in found.value.fix
    assert rpc.choose_address("n1", "lo") == "127.0.0.1"
    for address in ("0.0.0.0", "203.0.113.7", "100.64.0.1", "10.1.2.3", "169.254.1.1"):
        monkeypatch.setattr(rpc, "source_towards", lambda host, a=address: a)
        refused = address == "0.0.0.0"
        with pytest.raises(LLMError) if refused else contextlib.nullcontext():
            rpc.choose_address("n1")


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(LLMError, match="interface ib7 has no IPv4 address here") as found:
        rpc.choose_address("n1", "ib7")
    assert "lo 127.0.0.1" in found.value.why


# --- who gets which layers ---


@pytest.mark.parametrize(
    ("sizes", "rooms", "counts"),
    [
        ([1] * 9, [5, 5, 5], [3, 3, 3]),
        ([1] * 9, [0, 5, 10], [0, 3, 6]),
        ([1, 1, 1, 1, 4], [4, 4, 4], [3, 1, 1]),  # a large output layer
        ([1] * 4, [1000, 1, 1], [2, 1, 1]),  # each host at least one
        ([1] * 2, [9, 9, 9], [0, 1, 1]),
    ],
)
def test_layers_go_where_the_memory_is(
    sizes: list[int], rooms: list[int], counts: list[int]
) -> None:
    assert share_layers(sizes, rooms) == counts


def test_more_hosts_than_layers() -> None:
    with pytest.raises(LLMError, match="2 layers for the devices of other hosts, and 3 devices"):
        share_layers([1, 1], [5, 5, 5, 5])


def host(name: str, port: int, resident: int = 100) -> RemoteHost:
    return RemoteHost(name, f"10.0.0.1:{port}", ("CPU",), (10**9,), 2, 10**9, resident)


@pytest.mark.parametrize(
    ("layers", "of_n3", "words"),
    [
        ({0: "CPU", 1: "RPC0", 2: "RPC1"}, 950, ""),
        ({0: "CPU", 1: "RPC0", 2: "RPC1"}, 800, "n3 does not hold the layers that it was given"),
        ({0: "CPU", 1: "RPC0", 2: "RPC0"}, 950, "n3 holds no layer"),
    ],
)
def test_layers_are_looked_for_where_they_should_be(
    layers: dict[int, str],
    of_n3: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hosts = [host("n2", 1), host("n3", 2)]
    grown = zip(hosts, (950, of_n3), strict=True)
    answer = [{"endpoint": h.endpoint, "resident_bytes": 100 + more} for h, more in grown]
    monkeypatch.setattr(remote_hosts, "_ask", lambda question: answer)
    monkeypatch.setattr(remote_hosts, "ARRIVED_S", 0.1)
    sizes = {"CPU_Mapped": 500, "RPC0[10.0.0.1:1]": 1000, "RPC0[10.0.0.1:2]": 1000}
    with pytest.raises(LLMError, match=words) if words else contextlib.nullcontext():
        held = verify_layers(hosts, layers, sizes)
        assert [(h.layers, h.said, h.measured) for h in held] == [
            ((1,), 1000, 950),
            ((2,), 1000, 950),
        ]
    assert "hosts: n2 (CPU) at 10.0.0.1:1: layer" in capsys.readouterr().err


# --- who ends with whom ---


def test_the_leaders_status_is_the_recipes(party: Party) -> None:
    party.command = [*WAITS, "--status", "7"]
    assert party.start_all().statuses() == [7, 0, 0]
    said = party.said()
    assert "not encrypted, not authenticated" in said and said.count(" lends ") == 2
    assert "at work on 127.0.0.1:" in said
    party.assert_gone()


def test_a_killed_leader_leaves_nothing_behind(party: Party) -> None:
    party.start_all().wait_for("at work")
    assert len(party.processes("ggml-rpc-server")) == 2
    party.tasks[0].kill()
    assert party.statuses() == [-signal.SIGKILL, 1, 1]
    assert "the leader on 127.0.0.1 is gone" in party.said(1)
    party.assert_gone()


def test_a_signal_to_all_lets_the_recipe_save(party: Party) -> None:
    """As scancel and a preemption send it: to every process, the servers too."""
    party.start_all().wait_for("at work")
    everyone = party.processes()
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):  # all are told before one ends
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    assert party.statuses() == [143, 143, 143]
    assert "saved" in party.said() and "has left the run" not in party.said()
    party.assert_gone()


def test_a_task_that_is_told_to_end_ends_the_run(party: Party) -> None:
    party.start_all().wait_for("at work")
    party.tasks[2].send_signal(signal.SIGTERM)
    assert party.statuses() == [2, 0, 143]
    assert "saved" in party.said() and "it was told to end" in party.said()
    party.assert_gone()


def test_a_host_that_leaves_while_it_is_measured() -> None:
    ours, theirs = socket.socketpair()
    with Channel(ours) as channel, Channel(theirs) as host:
        worker = Worker(1, "n2", channel, {"endpoint": "10.0.0.1:1"})
        host.send({"leaving": True})
        host.send({"resident_bytes": 7})
        assert host_leader._measure(worker)["resident_bytes"] == 7
        assert host_leader._listen(worker)


@pytest.mark.parametrize("look", [host_leader._listen, host_leader._measure])
def test_a_host_that_says_nonsense_is_lost(look: Callable[[Worker], object]) -> None:
    ours, theirs = socket.socketpair()
    with Channel(ours) as channel, theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(LLMError, match="host n2 has left the run"):
            look(Worker(1, "n2", channel))


def test_a_recipe_that_waits_for_others_is_told_to_leave_at_once() -> None:
    """As serve.py does, whose requests a lost host keeps from ending."""
    script = (
        "import signal, sys, time\n"
        "def drain(*_):\n"
        "    print('drains', flush=True)\n"
        # Where both have come before it got to either, Python would take the second first.
        "    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "signal.signal(signal.SIGTERM, drain)\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit('at once')); print('up', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None and child.stdout.readline() == b"up\n"
    host_leader._end_child(child, signal.SIGTERM, 0.5)
    assert (child.stdout.read(), child.returncode) == (b"drains\n", 1)
    child.stdout.close()


def test_hosts_that_do_not_come_are_named(party: Party) -> None:
    names = {"LLM_STEP_NODES": "n1,n2,n3"}
    party.start(0, **names, LLM_HOSTS_WAIT="10")  # enough for n2 on a busy machine, too
    party.start(1, **names)
    # n3 knows another secret: it is of another step.
    party.start(2, **names, LLM_HOSTS_WAIT="3", LLM_RENDEZVOUS_TOKEN="other")
    assert party.statuses() == [2, 0, 2]
    assert "have not come within 10 s: n3" in party.said()
    assert "does not answer at 127.0.0.1" in party.said(2)
    party.assert_gone()


def test_a_host_that_cannot_lend_says_why(party: Party) -> None:
    party.start(0)
    party.start(1)
    party.start(2, LLM_NETWORK_INTERFACE="ib7")
    assert party.statuses() == [2, 0, 2]
    assert "cannot lend its memory: the network interface ib7 has no IPv4" in party.said()
    party.assert_gone()


def test_a_port_in_use_is_named(party: Party) -> None:
    with socket.create_server(("", party.port)):
        party.start(0)
        assert party.statuses() == [2]
    assert f"port {party.port} of this node cannot be used" in party.said()


# --- a model over three hosts ---


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of six layers."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
    folder = make_model(tmp_path_factory.mktemp("hosts") / "six", **sizes)
    return convert(folder, folder.with_name("six layers; ü.gguf"))


PROMPTS = ["--prompt", "Once upon a time", "--prompt", "def f(x):", "--prompt-style", "raw"]
SHORT = ["--max-new-tokens", "16", "--threads", "1", "--parallel", "2"]


def answers(path: Path) -> dict[tuple[str, int], str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["id"], row["sample"]): row["completion"] for row in rows}


def test_three_hosts_say_what_one_says(tmp_path: Path, six_layers: Path) -> None:
    common = ["--model", six_layers, *PROMPTS, *SHORT]
    alone = [sys.executable, *GENERATE, *map(str, common), "--output", "alone.jsonl"]
    done = subprocess.run(
        alone, cwd=tmp_path, env=recipe_environment(), capture_output=True, text=True, timeout=SLOW
    )
    assert done.returncode == 0, done.stderr
    party = Party(tmp_path, [*GENERATE, *common, "--hosts", "--output", "together.jsonl"])
    try:
        statuses = party.start_all().statuses()
    finally:
        party.end()
    said = party.said()
    assert statuses == [0, 0, 0], said
    assert answers(tmp_path / "together.jsonl") == answers(tmp_path / "alone.jsonl")
    placed = [line for line in said.splitlines() if " MB measured" in line]
    assert len(placed) == 2 and all("layers " in line for line in placed), said
    record = json.loads((tmp_path / "together.run.json").read_text())
    buffers = record["metrics"]["weight_buffer_bytes"]
    remote = {name: size for name, size in buffers.items() if "[127.0.0.1:" in name}
    assert len(remote) == 2 and all(size > 4e6 for size in remote.values())


def test_a_server_killed_on_the_way_is_named(tmp_path: Path, six_layers: Path) -> None:
    long = ["--samples", "2000", "--temperature", "1", "--max-new-tokens", "100", "--ignore-eos"]
    words = ["--model", six_layers, *PROMPTS, *long, "--threads", "1", "--parallel", "2"]
    party = Party(tmp_path, [*GENERATE, *words, "--hosts", "--output", "answers.jsonl"])
    try:
        party.start_all()
        until = time.monotonic() + SLOW
        # The first line holds no answer.
        while sum(p.read_text().count("\n") for p in tmp_path.glob("answers.jsonl*")) < 3:
            assert time.monotonic() < until and party.tasks[0].poll() is None, party.said()
            time.sleep(0.05)
        began = time.monotonic()
        os.kill(party.processes("ggml-rpc-server")[0], signal.SIGKILL)
        assert sorted(party.statuses()) == [0, 2, 2]
        assert time.monotonic() - began < 60
        party.assert_gone()
    finally:
        party.end()
    assert "has left the run" in party.said()
    assert "ggml-rpc-server was killed, as when memory runs out" in party.said()


def lender(name: str, offers: tuple[str, ...], memory: int) -> RemoteHost:
    return RemoteHost(name, f"{name}:1", offers, (memory,) * len(offers), 2, memory, 0)


def test_layers_are_placed_by_memory_and_gpus(
    six_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, room = read_gguf(six_layers), ContextSettings(tokens=256)
    monkeypatch.setattr(remote_hosts, "free_host_bytes", lambda: 4 * 10**9)
    cpus = [lender("n2", ("CPU",), 4 * 10**9), lender("n3", ("CPU",), 4 * 10**9)]
    placed = place_on_hosts(cpus, file, room)
    assert placed.devices == ("RPC0", "RPC1") and placed.gpu_layers == sum(placed.shares)
    assert 4 <= placed.gpu_layers <= 5 and min(placed.shares) >= 2
    # With GPUs anywhere nothing stays on a CPU, and each GPU of a host is a device.
    gpus = [lender("n2", ("CUDA0", "CUDA1"), 4 * 10**9), cpus[1]]
    placed = place_on_hosts(gpus, file, room)
    assert placed.gpu_layers == 7 and placed.devices == ("RPC0", "RPC1", "RPC2")
    assert place_on_hosts(cpus, file, room, 3, (2, 1)).shares == (2, 1)
    with pytest.raises(LLMError, match="--shares has 3 numbers for 2 devices") as found:
        place_on_hosts(cpus, file, room, "auto", (1, 1, 1))
    assert "n2, n3" in found.value.why
    full = [cpus[0], lender("n3", ("CPU",), 10**6)]
    with pytest.raises(LLMError, match="does not fit on these hosts") as found:
        place_on_hosts(full, file, room)
    assert "n3 needs" in found.value.why and "n2 needs" not in found.value.why
