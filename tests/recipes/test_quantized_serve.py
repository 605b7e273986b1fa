"""serve.py with the real llama-server: keys, answers, draining, and that nothing stays behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPES, recipe_environment

from llm_recipes.errors import LLMError
from llm_recipes.gguf.server_plan import Wanted, plan_server

LONG = 200  # tokens; the tiny model sees 256
DIARY = "dear diary, nobody may read this"
READY_S = 90.0


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

    def wait(self, timeout: float = 30) -> int:
        status = self.process.wait(timeout)
        deadline = time.monotonic() + 5
        while self.process.stderr and not self.process.stderr.closed:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return status

    def record(self) -> dict[str, Any]:
        return dict(json.loads(self.file.with_suffix(".run.json").read_text()))


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def is_gone(pid: int, seconds: float = 5) -> bool:
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
        for line in file.read_text().splitlines():
            if line.startswith("export "):
                name, _, value = shlex.split(line)[1].partition("=")
                served.values[name] = value
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
    assert key not in server.text and key[-4:] not in server.text
    assert shlex.quote(str(server.file)) in server.text and "ssh -N -L 8080:" in server.text


def test_no_words_of_requests_are_in_the_log(server: Served) -> None:
    server.complete(DIARY)
    assert server.refusal("/v1/completions", {"prompt": DIARY, "grammar": f"root ::= {DIARY}"})
    assert server.refusal("/v1/chat/completions", {"messages": [{"role": DIARY}]})
    assert "diary" not in server.text


# How it ends


def test_running_and_waiting_requests_are_answered(model: Path, tmp_path: Path) -> None:
    """SIGTERM goes to all processes of a step, and Slurm repeats it."""
    log = tmp_path / "server.log"
    file = tmp_path / "c.env"
    with (
        serving(file, model, "--parallel", 1, "--server-log", log) as served,
        concurrent.futures.ThreadPoolExecutor(40) as pool,
    ):
        server_pid = served.server_pid
        asked = [pool.submit(served.complete, f"{i} is", LONG) for i in range(40)]
        concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
        for _ in range(2):
            os.killpg(served.process.pid, signal.SIGTERM)
            os.kill(server_pid, signal.SIGTERM)
            time.sleep(0.1)
        assert sum(not future.done() for future in asked) > 5, "the model is too fast for this test"
        assert all(future.result(60) for future in asked)
        assert served.wait() == 0
    assert not file.exists() and is_gone(server_pid)
    assert "ending: SIGTERM" in served.text and "not answered" not in served.text
    record = served.record()
    assert record["status"] == "complete"
    numbers = record["metrics"]
    assert numbers["requests"] == 40 and numbers["completion_tokens"] == 40 * LONG
    assert numbers["unanswered"] == 0 and numbers["request_tokens_per_s"] > 0
    assert served.values["OPENAI_API_KEY"] not in json.dumps(record)
    assert log.stat().st_mode & 0o777 == 0o600 and "n_ctx_slot = 256" in log.read_text()


def test_a_second_ctrl_c_waits_for_nobody(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.env"
    with (
        concurrent.futures.ThreadPoolExecutor(60) as pool,
        serving(file, model, "--parallel", 1, "--no-api-key") as served,
    ):
        assert served.values["OPENAI_API_KEY"] == "none"
        assert "every user of this machine" in served.text
        asked = [pool.submit(served.complete, f"{i} is", LONG) for i in range(60)]
        concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
        began = time.monotonic()
        served.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        served.process.send_signal(signal.SIGINT)
        assert served.wait() == 0 and time.monotonic() - began < 15
        assert served.record()["metrics"]["unanswered"] > 0
        assert "not answered to their end" in served.text


def test_two_servers_and_sudden_deaths(model: Path, tmp_path: Path) -> None:
    first_file, second_file = tmp_path / "1.env", tmp_path / "2.env"
    with serving(first_file, model) as first, serving(second_file, model) as second:
        assert first.values["OPENAI_BASE_URL"] != second.values["OPENAI_BASE_URL"]
        orphan = first.server_pid
        first.process.kill()
        assert is_gone(orphan), "llama-server must not outlive the recipe"
        os.kill(second.server_pid, signal.SIGKILL)
        assert second.wait() == 2
        assert "was ended by SIGKILL" in second.text and "--mem" in second.text
        assert second.record()["status"] == "failed" and not second_file.exists()


def test_a_server_that_nobody_asks_ends(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.env"
    with serving(file, model, "--idle-minutes", 0.03) as served:
        for _ in range(4):  # longer than that, with a request now and then
            served.complete("a", 4)
            time.sleep(0.8)
        assert served.wait() == 0
    assert "nobody has asked for 0.03 minutes" in served.text
    assert served.record()["metrics"]["requests"] == 4


# What is refused


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(arguments), capture_output=True, text=True, timeout=90, env=environment()
    )


def test_a_port_that_is_taken(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--model", model, "--port", port, "--connection", tmp_path / "c.env")
    assert done.returncode == 2 and f"port {port} of 127.0.0.1 is taken" in done.stderr
    assert not (tmp_path / "c.env").exists()


def test_all_faults_at_once(model: Path, tmp_path: Path) -> None:
    done = run(
        *("--model", model, "--connection", model, "--drain", -1, "--port", 0),
        *("--parallel", 0, "--listen", "nowhere.invalid", "--api-key-file", tmp_path / "none"),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for words in (
        "--drain",
        "--port 0",
        "--parallel 0",
        "is no address",
        "the key file",
        "is there",
    ):
        assert words in done.stderr, words
    assert model.stat().st_size > 1000


def wanted(path: Path, **changes: Any) -> Wanted:
    settings: dict[str, Any] = {
        "model": path,
        "gpu_layers": "auto",
        "split": "layer",
        "shares": (),
        "context": "auto",
        "slots": 2,
    }
    return Wanted(**{**settings, **changes})


def test_the_plan(model: Path) -> None:
    plan = plan_server(wanted(model))
    assert plan.context.tokens == 256 and plan.context.sequences == 2 and plan.is_chat
    assert 0 <= plan.prompt_cache_bytes <= 8 * 2**30


def test_models_that_cannot_be_served(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "it's ü.gguf"
    broken.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(LLMError, match="cut off"):
        plan_server(wanted(broken))
    with pytest.raises(LLMError, match="cannot read the model"):
        plan_server(wanted(tmp_path / "missing.gguf"))
    with pytest.raises(LLMError, match="more than the model was trained for"):
        plan_server(wanted(model, context=512))
    with pytest.raises(LLMError, match="does not fit into memory"):
        plan_server(wanted(model, slots=2**40))
    done = run("--model", broken, "--connection", tmp_path / "c.env")
    assert done.returncode == 2 and "cut off" in done.stderr and "Traceback" not in done.stderr
