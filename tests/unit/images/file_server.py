"""A server on this machine that has the given files, for tests of what builds fetch."""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANGS = b"hangs"


class FileServer(ThreadingHTTPServer):
    """files: what is served, by path; a value of None breaks the connection, HANGS sends a part
    and waits. asked: every path, in order, with the Authorization that came along. ended: set when
    the server is to end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes | None] = {}
        self.ended = threading.Event()
        self.asked: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        """Its address without a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are wanted."""


class Handler(BaseHTTPRequestHandler):
    """Answers GET."""

    server: FileServer

    def do_GET(self) -> None:
        """Send the file, or 404."""
        path = urllib.parse.unquote(self.path)
        self.server.asked.append((path, self.headers.get("Authorization", "")))
        if path not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[path]
        if data is None:
            self.connection.close()
            return
        if data == HANGS:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"part")
            self.wfile.flush()
            self.server.ended.wait(60)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """Run a server."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
