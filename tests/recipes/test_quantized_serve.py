"""serve.py with the real llama-server: keys, answers, draining, and that nothing stays behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import importlib.util
import inspect
import json
import os
import pickle
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import RECIPES, recipe_environment

from llm_recipes import stop_signals
from llm_recipes.errors import LLMError, leaves
from llm_recipes.gguf import server_address, server_process
from llm_recipes.gguf.server_plan import Wanted, plan_apart, plan_server

_spec = importlib.util.spec_from_file_location("serve_recipe", RECIPES / "quantized" / "serve.py")
assert _spec is not None and _spec.loader is not None
serve = sys.modules["serve_recipe"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(serve)

LONG = 200  # tokens; the tiny model sees 256
MANY = 24  # clients at once
DIARY = "dear diary, nobody may read this"
READY_S = 240.0


@dataclass
class Served:
    """A running serve.py. said: its lines on standard error so far."""

    process: subprocess.Popen[str]
    file: Path
    said: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    @property
    def server_pid(self) -> int:
        """The process of llama-server."""
        return next(pid for pid in children(self.process.pid) if name_of(pid) == "llama-server")

    def ask(self, path: str, body: Any = None, key: str | None = None, **headers: str) -> Any:
        """A request, with the right key if no other is given; its answer."""
        url = self.values["OPENAI_BASE_URL"].removesuffix("/v1") + path
        headers["Authorization"] = f"Bearer {key or self.values['OPENAI_API_KEY']}"
        data = None if body is None else json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
        request = urllib.request.Request(url, data, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.loads(answer.read() or "{}")

    def complete(self, prompt: str, tokens: int = 16) -> str:
        """The likeliest continuation."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return str(self.ask("/v1/completions", body)["choices"][0]["text"])

    def refusal(self, path: str, body: Any = None, key: str | None = None) -> int:
        """The status of a request that is refused."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self.ask(path, body, key)
        return error.value.code

    def wait_for(self, words: str, after: int = 0) -> None:
        """Wait until it says something, after so many lines."""
        deadline = time.monotonic() + 60
        while words not in "\n".join(self.said[after:]):
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def wait(self, timeout: float = 30) -> int:
        status = self.process.wait(timeout)
        deadline = time.monotonic() + 30
        while self.process.stderr and not self.process.stderr.closed:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return status

    def record(self) -> dict[str, Any]:
        return dict(json.loads(self.file.with_suffix(".run.json").read_text()))


def values_of(file: Path) -> dict[str, str]:
    """The variables of a connection file."""
    lines = [line for line in file.read_text().splitlines() if line.startswith("export ")]
    pairs = [shlex.split(line)[1].partition("=") for line in lines]
    return {name: value for name, _, value in pairs}


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def is_gone(pid: int, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while name_of(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not name_of(pid)


def command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, str(RECIPES / "quantized" / "serve.py"), *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """No job around, and a home that is none of the user's."""
    kept = {k: v for k, v in recipe_environment().items() if not k.startswith(("SLURM_", "LLM_"))}
    return {**kept, **changes}


@contextlib.contextmanager
def serving(file: Path, model: Path, *options: object, **env: str) -> Iterator[Served]:
    """serve.py, ready; it is ended when the block ends, if it is still there."""
    arguments = ["--model", model, "--connection", file, "--threads", 1, *options]
    process = subprocess.Popen(
        command(arguments),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
        start_new_session=True,
    )
    served = Served(process, file)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            served.said.append(line.rstrip("\n"))
        process.stderr.close()

    threading.Thread(target=read, daemon=True).start()
    try:
        deadline = time.monotonic() + READY_S
        while not file.exists():
            assert process.poll() is None and time.monotonic() < deadline, served.text
            time.sleep(0.05)
        served.values = values_of(file)
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def model(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in a place such as users have."""
    folder = tmp_path_factory.mktemp("it's; ü model")
    return Path(shutil.copy(tiny_gguf, folder / 'tiny "1", F32.gguf'))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for many questions; what a user's environment says of llama.cpp is hostile."""
    file = tmp_path_factory.mktemp("it's; ü") / "connection of a server.env"
    hostile = {
        "LLAMA_ARG_TOOLS": "all",
        "LLAMA_API_KEY": "another",
        "LLAMA_ARG_HOST": "0.0.0.0",
        "LLAMA_SERVER_SLOTS_DEBUG": "1",
        "http_proxy": "http://127.0.0.1:1",
    }
    with serving(file, model, "--parallel", 2, **hostile) as served:
        yield served


# Answers


def greedy(model: Path, prompt: str, chat: bool, tokens: int) -> str:
    """The same from the library, token by token."""
    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.model import ContextSettings, GgufModel

    with (
        GgufModel.load(read_gguf(model)) as loaded,
        loaded.context(ContextSettings(tokens=256)) as context,
    ):
        tokenizer = loaded.tokenizer
        if chat:
            messages = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        ids = list(tokenizer(prompt, add_special_tokens=not chat)["input_ids"])
        first = len(ids)
        pending, start = ids[:], 0
        while len(ids) < first + tokens:
            count = len(pending)
            wanted = [False] * (count - 1) + [True]
            places = range(start, start + count)
            logits = context.decode(pending, list(places), [0] * count, wanted)
            start += count
            pending = [int(logits[0].argmax())]
            ids += pending
        return str(tokenizer.decode(ids[first:], skip_special_tokens=True))


def test_a_base_models_answer_is_the_librarys(server: Served, model: Path) -> None:
    prompt = "The for statement is used to"
    assert server.complete(prompt, 12) == greedy(model, prompt, False, 12)


def test_a_chat_is_rendered_by_the_models_template(server: Served, model: Path) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is a list?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    answer = server.ask("/v1/chat/completions", body)
    text = answer["choices"][0]["message"]["content"]
    expected = greedy(model, "What is a list?", True, answer["usage"]["completion_tokens"])
    assert text.strip() == expected.strip()


def test_the_models_name(server: Served) -> None:
    assert server.values["OPENAI_MODEL"] == 'tiny "1"_ F32'
    names = [entry["id"] for entry in server.ask("/v1/models")["data"]]
    assert names == ['tiny "1"_ F32']


def test_slots_have_room_of_their_own(server: Served) -> None:
    """Two requests at once, each as long as the model's context."""
    props = server.ask("/props")
    assert props["total_slots"] == 2
    assert props["default_generation_settings"]["n_ctx"] == 256
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda start: server.complete(start, LONG), ["A", "A"]))
    assert texts[0] == texts[1] != ""


# Who may ask for what


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/props", "/v1/completions"])
def test_without_the_key_nothing_is_told(server: Served, path: str) -> None:
    body = {"prompt": "a"} if path == "/v1/completions" else None
    assert server.refusal(path, body, key="wrong") == 401
    assert server.refusal(path, body, key="another") == 401, "LLAMA_API_KEY of the user"


def test_what_llama_server_could_do_more_is_off(server: Served) -> None:
    assert server.refusal("/slots") == 501
    assert server.refusal("/props", {"chat_template": "x"}) == 501
    assert server.refusal("/tools") == 403
    assert server.refusal("/cors-proxy?url=http://127.0.0.1:1") == 403
    assert server.refusal("/v1/embeddings", {"input": "a"}) in (400, 501)
    assert server.refusal("/slots/0?action=save", {"filename": "x"}) == 501


def test_it_listens_on_loopback_alone(server: Served) -> None:
    assert server.values["OPENAI_BASE_URL"].startswith("http://127.0.0.1:")
    port = int(server.values["OPENAI_BASE_URL"].rsplit(":", 1)[1].split("/")[0])
    with socket.socket(socket.AF_INET) as probe, pytest.raises(OSError):
        probe.settimeout(5)
        probe.connect(("127.0.0.2", port))


def test_nobody_else_sees_the_key(server: Served) -> None:
    key = server.values["OPENAI_API_KEY"]
    assert server.file.stat().st_mode & 0o777 == 0o600
    for pid in (server.process.pid, server.server_pid):
        assert key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    server.wait_for("Requests travel by http")  # what is said last, after the file was written
    assert key not in server.text and key[-4:] not in server.text
    assert shlex.quote(str(server.file)) in server.text and "ssh -N -L 8080:" in server.text


def test_no_words_of_requests_are_in_the_log(server: Served) -> None:
    server.complete(DIARY)
    assert server.refusal("/v1/completions", {"prompt": DIARY, "grammar": f"root ::= {DIARY}"})
    assert server.refusal("/v1/chat/completions", {"messages": [{"role": DIARY}]})
    before = len(server.said)
    assert server.refusal("/v1/models", key="wrong") == 401
    server.wait_for("llama-server: unauthorized: Invalid API Key", before)  # warnings are shown
    assert "diary" not in server.text


# How it ends


def test_two_servers_and_a_sudden_death(server: Served, model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "2.env", model) as second:
        assert second.values["OPENAI_BASE_URL"] != server.values["OPENAI_BASE_URL"]
        orphan = second.server_pid
        second.process.kill()
        assert is_gone(orphan), "llama-server must not outlive the recipe"
    assert server.complete("a") != ""


def test_running_and_waiting_requests_are_answered(server: Served) -> None:
    """SIGTERM goes to all processes of a step, and Slurm repeats it. The end of this server."""
    pid = server.server_pid
    first, enough = threading.Event(), threading.Event()

    def ask_on(start: str) -> int:
        """However fast the machine is, some requests are always waiting; returns the answers."""
        answers = 0
        while not enough.is_set():
            assert server.complete(start, LONG)
            answers += 1
            first.set()
        return answers

    with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
        clients = [pool.submit(ask_on, f"{i} is") for i in range(MANY)]
        try:
            assert first.wait(60)
            os.kill(pid, signal.SIGSTOP)  # the signals are there before any of them is answered
            enough.set()
            for _ in range(2):
                os.killpg(server.process.pid, signal.SIGTERM)
                os.kill(pid, signal.SIGTERM)
                time.sleep(0.2)
            assert sum(not client.done() for client in clients) > 5
        finally:
            enough.set()
            os.kill(pid, signal.SIGCONT)
        answers = sum(client.result(60) for client in clients)
    assert server.wait() == 0
    assert not server.file.exists() and is_gone(pid)
    assert "ending: SIGTERM" in server.text and "not answered" not in server.text
    record = server.record()
    assert record["status"] == "complete" and record["metrics"]["unanswered"] == 0
    assert record["metrics"]["requests"] >= answers > 5
    assert record["metrics"]["completion_tokens"] >= answers * LONG
    assert record["metrics"]["request_tokens_per_s"] > 0
    assert server.values["OPENAI_API_KEY"] not in json.dumps(record)


@dataclass
class Play:
    """serve.py in this process, so that not every test has to import torch anew."""

    model: Path
    folder: Path
    capsys: pytest.CaptureFixture[str]
    text: str = ""

    @property
    def file(self) -> Path:
        return self.folder / "c.env"

    def run(self, scenario: Callable[[Served], object], **options: Any) -> int:
        """Serve, let the scenario play when it is ready, and return the exit status."""
        parameters = inspect.signature(serve.serve).parameters.values()
        settings = {p.name: p.default for p in parameters}
        settings |= {"model": self.model, "connection": self.file, "threads": 1, **options}
        failed: list[BaseException] = []
        over = threading.Event()

        def play() -> None:
            try:
                while not self.file.exists():
                    if over.wait(0.02):
                        return
                scenario(Served(None, self.file, values=values_of(self.file)))  # type: ignore[arg-type]
            except BaseException as error:
                failed.append(error)
                for _ in range(0 if over.is_set() else 2):
                    os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        try:
            status = serve.run(serve.checked(settings))
        finally:
            over.set()
            thread.join(30)
            self.text = self.capsys.readouterr().err
        if failed:
            raise failed[0]
        return status

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "c.run.json").read_text()))


@pytest.fixture
def here(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Play:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "LLM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(stop_signals, "_installed", True)
    return Play(model, tmp_path, capsys)


def llama_server() -> int:
    """The process of llama-server that this process has started."""
    return next(pid for pid in children(os.getpid()) if name_of(pid) == "llama-server")


def test_a_second_ctrl_c_waits_for_nobody(here: Play) -> None:
    began: list[float] = []

    def scenario(served: Served) -> None:
        assert served.values["OPENAI_API_KEY"] == "none"
        first = threading.Event()

        def ask_on(start: str) -> None:
            """However fast the machine is, some requests are always waiting."""
            with contextlib.suppress(OSError, http.client.HTTPException):
                while served.complete(start, LONG):
                    first.set()

        with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
            for i in range(MANY):
                pool.submit(ask_on, f"{i} is")
            assert first.wait(30)
            began.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    log = here.folder / "server.log"
    assert here.run(scenario, parallel=1, api_key=False, server_log=log, drain=600.0) == 0
    assert time.monotonic() - began[0] < 20
    assert here.record()["metrics"]["unanswered"] > 0
    assert "every user of this machine" in here.text
    assert "not answered to their end" in here.text
    assert log.stat().st_mode & 0o777 == 0o600 and "n_ctx_slot = 256" in log.read_text()


def test_a_server_that_dies(here: Play) -> None:
    with pytest.raises(LLMError, match="was ended by SIGKILL") as error:
        here.run(lambda served: os.kill(llama_server(), signal.SIGKILL))
    assert "--mem" in error.value.fix
    assert here.record()["status"] == "failed" and not here.file.exists()


def test_a_server_that_nobody_asks_ends(here: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    logs: list[server_process.ServerLog] = []
    skipped = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + skipped[0], sleep=time.sleep)
    plain = server_process.ServerLog

    def log(*arguments: Any) -> server_process.ServerLog:
        logs.append(plain(*arguments))
        return logs[-1]

    monkeypatch.setattr(server_process, "ServerLog", log)
    monkeypatch.setattr(server_process, "time", clock)
    monkeypatch.setattr(serve, "time", clock)

    def scenario(served: Served) -> None:
        for answered in range(4):
            served.complete("a", 4)
            deadline = time.monotonic() + 30
            while logs[-1].ended <= answered:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            skipped[0] += 6 * 60  # minutes without a request, together longer than the limit
            time.sleep(0.5)  # in which it looks
        skipped[0] += 6 * 60

    assert here.run(scenario, idle_minutes=10.0) == 0
    assert "nobody has asked for 10 minutes" in here.text
    assert here.record()["metrics"]["requests"] == 4


def test_the_jobs_time_is_over(here: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """`llm-run --requeue` serves on, and on the node's address others see it."""
    unfinished = here.folder / "unfinished"
    monkeypatch.setenv("LLM_UNFINISHED_FILE", str(unfinished))

    def scenario(served: Served) -> None:
        assert served.complete("a") != ""
        monkeypatch.setenv("LLM_DEADLINE", str(time.time() + 25))

    assert here.run(scenario, drain=20.0) == 0
    assert "time is nearly over" in here.text and unfinished.exists()


def test_an_own_key(here: Play) -> None:
    key = here.folder / "it's; ü key"
    key.write_text("# mine\nfirst-key\nsecond-key\n")
    key.chmod(0o600)

    def scenario(served: Served) -> None:
        assert served.values["OPENAI_API_KEY"] == "first-key"
        assert served.ask("/v1/models", key="second-key")
        assert served.refusal("/v1/models", key="third") == 401
        os.kill(os.getpid(), signal.SIGINT)

    assert here.run(scenario, api_key_file=key, alias="named") == 0
    assert "first-key" not in here.text and "model: named" in here.text


# What is refused


def test_a_port_that_is_taken(here: Play) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(LLMError, match="is taken"),
    ):
        here.run(lambda served: None, port=taken.getsockname()[1])
    assert not here.file.exists() and here.record()["status"] == "failed"


def test_a_model_that_cannot_be_loaded(here: Play, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(
        here.model.read_bytes().replace(b"output_norm.weight", b"xutput_norm.weight")
    )
    with pytest.raises(LLMError, match="status 1") as error:
        here.run(lambda served: None, model=broken)
    assert "output_norm.weight" in error.value.why


def test_another_port_is_tried(here: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    free = server_address.free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], free("127.0.0.1")]
        monkeypatch.setattr(server_address, "free_port", lambda address: ports.pop(0))
        assert here.run(lambda served: os.kill(os.getpid(), signal.SIGINT)) == 0
    assert ports == []


def test_all_faults_at_once(here: Play) -> None:
    def never(served: Served) -> None:
        raise AssertionError("it must not start")

    with pytest.raises(ExceptionGroup) as error:
        here.run(
            never,
            connection=here.model,
            record=here.model,
            drain=-1.0,
            port=0,
            parallel=0,
            listen="nowhere.invalid",
            api_key_file=here.folder / "none",
        )
    found = "\n".join(str(fault) for fault in leaves(error.value))
    said = ("--drain", "--port 0", "--parallel 0", "is no address", "the key file")
    said += ("no connection of a server", "no run record")
    assert [words for words in said if words not in found] == []
    assert here.model.stat().st_size > 1000


def wanted(path: Path, **changes: Any) -> Wanted:
    settings: dict[str, Any] = {
        "model": path,
        "gpu_layers": "auto",
        "split": "layer",
        "shares": (),
        "context": "auto",
        "slots": 2,
        "threads": 1,
    }
    return Wanted(**{**settings, **changes})


def test_the_plan(model: Path) -> None:
    plan = plan_server(wanted(model))
    assert plan.context.tokens == 256 and plan.context.sequences == 2 and plan.is_chat
    assert 0 <= plan.prompt_cache_bytes <= 8 * 2**30


def test_models_that_cannot_be_served(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "it's ü.gguf"
    broken.write_bytes(model.read_bytes()[:-1000])
    for path, changes, words in (
        (broken, {}, "cut off"),
        (tmp_path / "missing.gguf", {}, "cannot read the model"),
        (model, {"context": 512}, "more than the model was trained for"),
        (model, {"slots": 2**40}, "does not fit into memory"),
    ):
        with pytest.raises(LLMError, match=words):
            plan_server(wanted(path, **changes))


def test_a_plan_of_another_process(model: Path) -> None:
    plan, same = plan_apart(wanted(model)), plan_server(wanted(model))
    assert plan.placement == same.placement and plan.context == same.context
    assert plan.threads == same.threads
    assert plan.file == same.file and plan.digest == same.digest
    fault = pickle.loads(pickle.dumps(LLMError("what", "why", "fix")))
    assert (fault.what, fault.why, fault.fix) == ("what", "why", "fix")
