"""Fetching a file: complete and right, or an error that says what to do; never half a file."""

from __future__ import annotations

import errno
import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from _llm import fetch as module
from _llm.errors import LLMError
from _llm.fetch import fetch_file

CONTENT = b"content" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves /good; /cut ends early the first time; /wrong sends something else; else 404."""

    cuts = 0

    def do_GET(self) -> None:
        if self.path not in ("/good", "/cut", "/wrong"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/cut" and Handler.cuts == 0:
            Handler.cuts += 1
            self.wfile.write(CONTENT[:100])
        else:
            self.wfile.write(CONTENT if self.path != "/wrong" else CONTENT.upper())

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Handler.cuts = 0
    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("path", ["good", "cut"])
def test_fetches_and_tries_again_after_a_cut(server: str, tmp_path: Path, path: str) -> None:
    target = tmp_path / "a b/file"
    assert fetch_file(f"{server}/{path}", SHA256, target, "the file", "gone") == target
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"cached")
    assert fetch_file("http://nowhere.invalid/", SHA256, target, "x", "y").read_bytes() == b"cached"


def test_wrong_content_is_refused(server: str, tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="cannot fetch the file") as raised:
        fetch_file(f"{server}/wrong", SHA256, tmp_path / "file", "the file", "gone")
    assert "SHA-256" in raised.value.why
    assert list(tmp_path.iterdir()) == []


def test_gone_is_said_at_once(server: str, tmp_path: Path) -> None:
    with pytest.raises(LLMError) as raised:
        fetch_file(f"{server}/none", SHA256, tmp_path / "file", "the file", "do this")
    assert raised.value.fix == "do this" and "404" in raised.value.why
    with pytest.raises(LLMError) as raised:
        fetch_file(f"file://{tmp_path}/none", SHA256, tmp_path / "file", "the file", "do this")
    assert raised.value.fix == "do this"


def test_a_full_disk_is_said_and_not_tried_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def full(number: int) -> None:
        calls.append(number)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(LLMError, match="cannot keep the file") as raised:
        fetch_file(f"{server}/good", SHA256, tmp_path / "file", "the file", "gone")
    assert "No space left" in raised.value.why and "LLM_CACHE_DIR" in raised.value.fix
    assert len(calls) == 1 and list(tmp_path.iterdir()) == []


def test_a_download_that_is_stopped_leaves_nothing(server: str, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(module.StoppedError):
        module.download(f"{server}/good", {SHA256}, tmp_path, "x", "y", module.Access(), stop)
    assert list(tmp_path.iterdir()) == []


def nobodys_address() -> str:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_host_that_cannot_be_reached_is_asked_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    real = module.urllib.request.urlopen

    def counting(request, **named):  # type: ignore[no-untyped-def]
        asked.append(request.full_url)
        return real(request, **named)

    monkeypatch.setattr(module.urllib.request, "urlopen", counting)
    access, nobody = module.Access(), nobodys_address()
    for name in ("a", "b"):
        with pytest.raises(module.UnreachableError, match=f"cannot fetch {name}") as raised:
            module.download(f"{nobody}/{name}", {SHA256}, tmp_path, name, "gone", access)
        assert raised.value.why == f"{nobody[7:]}: Connection refused"
    assert asked == [f"{nobody}/a"] and list(tmp_path.iterdir()) == []
    assert module.download(f"{server}/good", {SHA256}, tmp_path, "c", "gone", access)[1] == SHA256


def test_a_host_that_answered_before_is_tried_again(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    access, nobody = module.Access(), nobodys_address()
    access.hosts[nobody[7:]] = ""
    with pytest.raises(LLMError, match="cannot fetch it") as raised:
        module.download(f"{nobody}/x", {SHA256}, tmp_path, "it", "gone", access)
    assert "tried 3 times" in raised.value.why
    assert not isinstance(raised.value, module.UnreachableError)
