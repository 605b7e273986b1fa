"""The parts of serve.py: addresses, keys, what users type, llama-server's options, when to end."""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llm_recipes import stop_signals
from llm_recipes.errors import LLMError
from llm_recipes.gguf import server_address, server_connection, server_process
from llm_recipes.gguf.server_address import Listening, listening
from llm_recipes.gguf.server_arguments import alias_of, environment
from llm_recipes.gguf.server_connection import ApiKey, Connection, choose_key
from llm_recipes.gguf.server_metrics import describe, parse_metrics, server_numbers
from llm_recipes.gguf.server_process import (
    LlamaServer,
    PortTaken,
    ServerLog,
    is_to_be_shown,
)
from llm_recipes.gguf.server_stop import CTRL_C, TIME_IS_OVER, stop_requests

PRIVATE, PUBLIC = "10.1.2.3", "129.13.1.1"
JOB = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": "login1", "SLURMD_NODENAME": "n1"}
NAMES = {"login1": "10.1.0.1", "n1": PRIVATE}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A node of a cluster with these addresses; a test may change them."""
    addresses = [PRIVATE]
    monkeypatch.setattr(server_address, "own_addresses", lambda: addresses)
    monkeypatch.setattr(server_address, "resolved", lambda name: NAMES.get(name))
    monkeypatch.setattr(server_address, "source_towards", lambda address: addresses[0])
    monkeypatch.setattr(server_address.getpass, "getuser", lambda: "eve")
    return addresses


# Where it listens


def test_a_job_listens_where_the_login_node_reaches_it(node: list[str]) -> None:
    assert listening("auto", env=JOB) == Listening(PRIVATE, PRIVATE)
    assert listening("auto", env={}) == Listening("127.0.0.1", "127.0.0.1")
    assert listening("private", env={}).bind == PRIVATE


def test_a_node_without_a_private_address(node: list[str]) -> None:
    node[:] = [PUBLIC]
    assert listening("auto", env=JOB).is_loopback, "never a public address by itself"
    with pytest.raises(LLMError, match="no private address"):
        listening("private", env=JOB)


@pytest.mark.parametrize("wanted", ["all", PUBLIC])
def test_public_addresses_are_refused(
    node: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.append(PUBLIC)
    monkeypatch.setattr(server_address, "can_bind", lambda address, port: True)
    with pytest.raises(LLMError, match="public address") as error:
        listening(wanted, env=JOB)
    assert "--allow-public" in error.value.fix
    assert listening(wanted, allow_public=True, env=JOB).bind in ("0.0.0.0", PUBLIC)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("nowhere.invalid", "is no address"),
        ("", "is no address"),
        ("10.9.9.9", "not of this machine"),
        ("::", "every address"),
    ],
)
def test_addresses_that_are_none(wanted: str, words: str) -> None:
    with pytest.raises(LLMError, match=words):
        listening(wanted, env={})


def test_a_free_port() -> None:
    port = server_address.free_port("127.0.0.1")
    with socket.create_server(("127.0.0.1", port)):
        assert not server_address.can_bind("127.0.0.1", port)
    assert server_address.can_bind("127.0.0.1", port)
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert port < first_outgoing, "an outgoing connection of another program may take it"


@pytest.mark.parametrize(
    ("place", "env", "line"),
    [
        (PRIVATE, JOB, "ssh -N -L 8080:10.1.2.3:99 eve@login1"),
        ("127.0.0.1", JOB, "ssh -N -J eve@login1 -L 8080:127.0.0.1:99 eve@n1"),
        ("127.0.0.1", {"SLURMD_NODENAME": "n1"}, "ssh -N -L 8080:127.0.0.1:99 eve@n1"),
        ("fd00::2", JOB, "ssh -N -L 8080:[fd00::2]:99 eve@login1"),
    ],
)
def test_the_way_there(node: list[str], place: str, env: dict[str, str], line: str) -> None:
    assert server_address.tunnel(Listening(place, place), 99, env) == line


# The key, and the file that says it


def connection(key: str | None = "se-cret", chat: bool = True) -> Connection:
    place = Listening("127.0.0.1", "127.0.0.1")
    return Connection(place, 4711, key, "it's ü", chat, context=256, slots=2)


def test_keys_are_random() -> None:
    first, second = choose_key(None, False).value, choose_key(None, False).value
    assert first and second and first != second and len(first) >= 40
    assert choose_key(None, True) == ApiKey(None)


def test_an_own_key(tmp_path: Path) -> None:
    file = tmp_path / "it's ü; key"
    file.write_text("# mine\n\nabc-1\nabc-2\n")
    file.chmod(0o600)
    assert choose_key(file, False) == ApiKey("abc-1", file)
    file.chmod(0o640)
    with pytest.raises(LLMError, match="others may read") as error:
        choose_key(file, False)
    assert subprocess.run(error.value.fix, shell=True).returncode == 0
    assert choose_key(file, False).value == "abc-1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no key"),
        (b"# only this\n", "holds no key"),
        (b"abc\r\n", "no usable key"),
        (b"a b\n", "no usable key"),
        ("schlüssel\n".encode(), "no usable key"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_key_files_that_hold_none(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(LLMError, match=words):
        choose_key(file, False)
    with pytest.raises(LLMError, match="cannot read"):
        choose_key(tmp_path / "missing", False)


def test_the_connection_file(tmp_path: Path) -> None:
    file = tmp_path / "new; folder" / "it's ü.env"
    made = connection()
    with server_connection.connection_file(file, made):
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        script = f'. {server_connection.shlex.quote(str(file))}; printf "%s|" '
        script += '"$OPENAI_BASE_URL" "$OPENAI_API_KEY" "$OPENAI_MODEL"'
        shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout
        assert shown == "http://127.0.0.1:4711/v1|se-cret|it's ü|"
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert not file.exists()


def test_where_it_is_without_a_choice() -> None:
    assert server_connection.default_file(JOB).name == "7.batch.0.env"
    steps = {**JOB, "SLURM_STEP_ID": "3", "SLURM_PROCID": "1"}
    assert server_connection.default_file(steps).name == "7.3.1.env"
    assert str(os.getpid()) in server_connection.default_file({}).name


def test_a_connection_of_another_server_stays(tmp_path: Path) -> None:
    file = tmp_path / "c.env"
    with server_connection.connection_file(file, connection()):
        with server_connection.connection_file(file, connection("other")):
            pass
        assert not file.exists()
        file.write_text(server_connection.file_text(connection("third")))
    assert "third" in file.read_text()


@pytest.mark.parametrize("content", [b"precious", b"\xff\xfe\x00"])
def test_no_file_of_the_users_is_lost(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with (
        pytest.raises(LLMError, match="no connection of a server"),
        server_connection.connection_file(file, connection()),
    ):
        pass
    assert file.read_bytes() == content
    with pytest.raises(LLMError, match="cannot write the connection file"):
        server_connection.check_file(tmp_path)


def test_a_connection_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(LLMError, match="cannot write the connection file"),
        server_connection.connection_file(tmp_path / "file" / "c.env", connection()),
    ):
        pass


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(LLMError, match="cannot write the connection file") as error,
        server_connection.connection_file(tmp_path / "c.env", connection()),
    ):
        pass
    assert "No space" in error.value.why and list(tmp_path.iterdir()) == []


def test_instructions_hide_the_key(tmp_path: Path, node: list[str]) -> None:
    file = tmp_path / "it's.env"
    hidden = server_connection.instructions(connection(), file, show_key=False, env=JOB)
    assert "se-cret" not in hidden and server_connection.shlex.quote(str(file)) in hidden
    assert "ssh -N" in hidden and "not encrypted" in hidden
    assert "se-cret" in server_connection.instructions(connection(), file, True, JOB)
    open_one = server_connection.instructions(connection(None), file, True, JOB)
    assert "none is asked for" in open_one and "Authorization" not in open_one


def test_the_curl_line_works(tmp_path: Path) -> None:
    """A site's proxy is not asked, the key is on no command line, the body is JSON."""
    seen: list[tuple[str, str | None, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers["Authorization"], body))
            self.send_response(200)
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = tmp_path / "c.env"
        proxied = {"http_proxy": "http://127.0.0.1:1"}
        for chat in (True, False):
            made = replace(connection(chat=chat), port=server.server_port)
            with server_connection.connection_file(file, made):
                line = server_connection.curl_line(made, proxied)
                script = f". {server_connection.shlex.quote(str(file))}\n{line}"
                env = {**os.environ, **proxied}
                done = subprocess.run(["sh", "-c", script], env=env, capture_output=True)
                if done.returncode == 127:
                    pytest.skip("no curl here")
                assert done.returncode == 0, done.stderr
        server.shutdown()
    assert [path for path, _, _ in seen] == ["/v1/chat/completions", "/v1/completions"]
    assert {key for _, key, _ in seen} == {"Bearer se-cret"}
    assert all("it's ü" in body.decode() for _, _, body in seen)


# llama-server's options and log


def test_the_environment() -> None:
    users = {
        "PATH": "/bin",
        "LLAMA_ARG_TOOLS": "all",
        "LLAMA_API_KEY": "other",
        "LLAMA_SERVER_SLOTS_DEBUG": "1",
        "AIP_MODE": "PREDICTION",
        "HF_TOKEN": "hf_x",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    passed = environment(ApiKey("k"), users)
    assert passed["LLAMA_API_KEY"] == "k" and passed["CUDA_VISIBLE_DEVICES"] == "1"
    assert not {"LLAMA_ARG_TOOLS", "AIP_MODE", "HF_TOKEN"} & set(passed)
    assert "LLAMA_SERVER_SLOTS_DEBUG" not in passed, "it shows prompts"
    assert "LLAMA_API_KEY" not in environment(ApiKey("k", Path("file")), users)
    assert "LLAMA_API_KEY" not in environment(ApiKey(None), users)


@pytest.mark.parametrize(
    ("wanted", "stem", "alias"), [(None, "a,b", "a_b"), ("x", "a", "x"), (" ", "a", "model")]
)
def test_aliases(wanted: str | None, stem: str, alias: str) -> None:
    assert alias_of(wanted, stem) == alias


def test_the_log_counts_and_hides() -> None:
    log = ServerLog()
    log.take("I srv  load_model: initializing, n_slots = 2, n_ctx_slot = 256, kv_unified = 'false'")
    log.take("I srv  llama_server: listening on http://127.0.0.1:4711")
    assert log.is_listening and "n_ctx_slot = 256" in log.loading[0]
    log.take("I slot launch_slot_: id  0 | task 3 | processing task, is_child = 0")
    assert log.running == 1
    log.take("I slot      release: id  0 | task 3 | stop processing: n_tokens = 9, truncated = 0")
    assert (log.running, log.ended) == (0, 1)
    assert is_to_be_shown("W srv    operator(): unauthorized: Invalid API Key")
    assert not is_to_be_shown('W srv    operator(): got exception: {"message":"my diary"}')
    assert not is_to_be_shown("W common_chat: unparsed output: my diary")
    assert not is_to_be_shown("my diary")


def test_a_full_disk_ends_the_log_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        log = ServerLog(full)
        log.take("I srv  llama_server: listening on http://127.0.0.1:4711")
        log.take("W srv    operator(): unauthorized: Invalid API Key")
        assert log.file is None and log.is_listening
    said = capsys.readouterr().err
    assert said.count("log is lost: No space left") == 1
    assert "\nllama-server: unauthorized: Invalid API Key\n" in said


def test_the_reason_of_a_death() -> None:
    log = ServerLog(is_listening=True)
    log.take("W srv    operator(): unauthorized: Invalid API Key")
    log.take("/src/ggml.c:123: GGML_ASSERT(x) failed")
    log.take("I slot      release: id  0 | task 3 | stop processing: n_tokens = 9")
    assert log.reason() == "/src/ggml.c:123: GGML_ASSERT(x) failed"


def test_the_reason_of_a_failure_to_load() -> None:
    log = ServerLog()
    log.take("W srv  llama_server: security: no API key is set")
    log.take("E llama_init_from_model: quantized V cache requires flash_attn to be enabled")
    log.take("E srv    load_model: failed to create_context with model 'm'")
    assert (
        log.reason() == "llama_init_from_model: quantized V cache requires flash_attn to be enabled"
    )


def test_metrics() -> None:
    text = "# HELP llamacpp:x y\n# TYPE llamacpp:x counter\nllamacpp:x 1.5e+06\nllamacpp:y 2\n"
    assert parse_metrics(text) == {"x": 1.5e6, "y": 2.0}
    found = {"tokens_predicted_total": 90.0, "tokens_predicted_seconds_total": 3.0}
    found |= {"prompt_tokens_total": 5.0}
    numbers = server_numbers(found, 2, 120.0)
    assert numbers["request_tokens_per_s"] == 30 and numbers["completion_tokens"] == 90
    assert "2 requests, 5 prompt tokens, 90 tokens generated, 30.0 tokens/s" in describe(numbers)
    assert "0 requests" in describe(server_numbers({}, 0, 1.0))


# The process, with programs in llama-server's place


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program llama-server in the PATH, whose script the test writes."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "llama-server"
    program.touch()
    program.chmod(0o700)
    yield program


def start(program: Path, script: str, interpreter: str = "/bin/sh") -> LlamaServer:
    program.write_text(f"#!{interpreter}\n{script}\n")
    return LlamaServer([], os.environ, "http://127.0.0.1:1", None)


def wait(server: LlamaServer, limit_s: float = 20, stop: bool = False) -> bool:
    return server.wait_until_ready(limit_s, lambda: stop, lambda seconds, resident: None)


def test_a_server_that_is_never_ready(stand_in: Path) -> None:
    with start(stand_in, "exec sleep 60") as server:
        with pytest.raises(LLMError, match=r"not ready after 0\.5 s"):
            wait(server, 0.5)
        assert not wait(server, 20, stop=True)
    assert server.process.poll() is not None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'E llama_model_load: error loading model: no such tensor' >&2; exit 1", "status 1"),
        ("kill -9 $$", "SIGKILL"),
    ],
)
def test_a_server_that_dies(stand_in: Path, script: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(LLMError, match=words) as error, start(stand_in, script) as server:
        wait(server, 120)
    assert time.monotonic() - began < 60
    assert "no such tensor" in error.value.why or "--mem" in error.value.fix


def test_a_port_that_is_taken(stand_in: Path) -> None:
    line = 'echo "E srv start: couldn\'t bind HTTP server socket, hostname: x, port: 1" >&2; exit 1'
    with pytest.raises(PortTaken), start(stand_in, line) as server:
        wait(server)


def test_a_server_that_hangs_is_not_waited_for(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "DRAIN_ANSWER_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        start(stand_in, "exec sleep 60") as server,
    ):
        server._url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        server.drain(120, lambda: time.monotonic() > began + 0.5)
        assert time.monotonic() - began < 60


def test_signals_of_the_scheduler_do_not_reach_it(stand_in: Path) -> None:
    # As llama-server does it; a shell would unblock what was blocked for it.
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(0))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    with start(stand_in, script, sys.executable) as server:
        began = time.monotonic()
        while not server.log.recent:
            assert time.monotonic() - began < 30
            time.sleep(0.02)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            os.kill(server.process.pid, number)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.end()
    assert server.process.returncode == 0


# When to end


@pytest.fixture
def no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLM_STOP_FILE", "LLM_DEADLINE", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stop_signals, "_found", False)
    monkeypatch.setattr(stop_signals, "_terminated", False)
    monkeypatch.setattr(stop_signals, "_next_look", 0.0)
    monkeypatch.setattr(stop_signals, "_installed", True)


@pytest.mark.usefixtures("no_requests")
def test_signals_that_ask_to_end() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests(5) as stop:
        assert not stop.reason()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason() == "SIGTERM" and not stop.at_once, "Slurm repeats its signals"
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.at_once
    assert signal.getsignal(signal.SIGTERM) is before
    with stop_requests(5) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.reason(), stop.at_once) == (CTRL_C, False)


@pytest.mark.usefixtures("no_requests")
def test_the_jobs_end_and_the_stop_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "LOOK_SECONDS", 0.0)
    monkeypatch.setenv("LLM_DEADLINE", str(time.time() + 60))
    with stop_requests(30) as stop:
        assert not stop.reason()
    with stop_requests(90) as stop:
        assert stop.reason() == TIME_IS_OVER
    monkeypatch.delenv("LLM_DEADLINE")
    monkeypatch.setenv("LLM_STOP_FILE", str(tmp_path / "stop"))
    with stop_requests(30) as stop:
        assert not stop.reason()
        (tmp_path / "stop").touch()
        assert stop.reason()


@pytest.mark.usefixtures("no_requests")
def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests(5):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
