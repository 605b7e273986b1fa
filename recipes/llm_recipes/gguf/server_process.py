"""llama-server as a process: started, watched while it loads, drained, ended.

    with LlamaServer(arguments, environment) as server:
        server.wait_until_ready(60, lambda: False)

It ends with this process, however that ends. Slurm sends SIGTERM to every process of a step, and
llama-server would leave its requests alone at once: SIGTERM is blocked in it, and ours is the one
that asks it to go, by SIGINT, when its requests are answered.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO

from llm_recipes.errors import LLMError
from llm_recipes.gguf.programs import end_with_parent, ending, error_of, lines_of, program
from llm_recipes.gguf.server_metrics import parse_metrics

LOOK_S, LINE_S = 0.2, 15.0  # seconds between looks, and between lines about loading
ANSWER_S, GRACE_S = 10.0, 5.0  # for an answer; between SIGINT and SIGKILL
DRAIN_ANSWER_S = 2.0  # it waits for ever for a host that is gone
KEPT_LINES = 200
# What schedulers and terminals send to every process of a job or session.
OURS = {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
LISTENING, NO_PORT = "listening on", "couldn't bind HTTP server socket"
STARTED, ENDED = re.compile(r"slot .*\| processing task"), re.compile(r"slot .*\| stop processing")
LEVEL = re.compile(r"^[IWED] ((srv|slot|que|res|cmn) +[\w()]+: )?")
# Lines of llama-server's own parts; others may hold words of a request or an answer.
HARMLESS = re.compile(r"^[WE] (srv|slot|que|res) ")
WITH_TEXT = ("got exception", "unparsed")


class PortTaken(Exception):
    """Another program listens on the port."""


@dataclass
class ServerLog:
    """What llama-server says: shown where it matters, counted, kept for the reason of its end.

    loading: all lines until it is ready. started, ended: sequences that were computed. active: when
    the last of them started or ended (time.monotonic).
    """

    file: IO[str] | None = None
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    loading: list[str] = field(default_factory=list)
    started: int = 0
    ended: int = 0
    active: float = field(default_factory=time.monotonic)
    is_listening: bool = False

    def take(self, line: str) -> None:
        """A line of its log."""
        self._keep(line)
        self.recent.append(line)
        if not self.is_listening:
            self.loading.append(line)
        if STARTED.search(line) or ENDED.search(line):
            self.started += bool(STARTED.search(line))
            self.ended += bool(ENDED.search(line))
            self.active = time.monotonic()
        elif LISTENING in line:
            self.active = time.monotonic()
            self.is_listening = True
        elif is_to_be_shown(line) and (self.is_listening or line[0] == "W"):
            _say(f"llama-server: {LEVEL.sub('', line).strip()}")

    def _keep(self, line: str) -> None:
        if self.file is None:
            return
        try:
            print(line, file=self.file, flush=True)
        except OSError as error:  # a full disk must not keep the server from answering
            self.file = None
            _say(f"the rest of llama-server's log is lost: {error.strerror}")

    @property
    def running(self) -> int:
        """Sequences that are being computed."""
        return max(0, self.started - self.ended)

    def reason(self) -> str:
        """Why it ended, as far as its last lines say."""
        lines = [line for line in self.recent if not any(word in line for word in WITH_TEXT)]
        # Warnings, of requests long gone too, are no reason; an abort of ggml has no letter.
        lines = [line for line in lines if not line.startswith(("I ", "W "))]
        errors = [line for line in lines if line.startswith("E ")]
        if self.is_listening:
            lines = lines[-1:]
        elif errors:  # the first is the cause of the others
            lines = errors[:1]
        return error_of([LEVEL.sub("", line) for line in lines])


def is_to_be_shown(line: str) -> bool:
    """Whether a line is a warning or error for a job's log, which others may read."""
    # It recommends options that are decided here.
    hint = "chat template supports preserving reasoning" in line
    return bool(HARMLESS.match(line)) and not hint and not any(word in line for word in WITH_TEXT)


class LlamaServer:
    """A running llama-server; a context manager that ends it.

    Args:
        arguments: Its options.
        env: Its environment.
        url: Where it will listen.
        key: What it asks for.
        log_file: Where all its lines are copied to.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        url: str,
        key: str | None,
        log_file: IO[str] | None = None,
    ) -> None:
        self.log = ServerLog(log_file)
        self._url, self._key = url, key
        # Proxies of the site know nothing of this cluster's nodes.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.process = subprocess.Popen(
            [program("llama-server"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            preexec_fn=partial(_protect, os.getpid()),
            start_new_session=True,  # a terminal's Ctrl-C is for us
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(
        self, limit_s: float, stop: Callable[[], bool], on_wait: Callable[[float, int], None]
    ) -> bool:
        """Wait until it answers; False if a stop was asked for before.

        Args:
            limit_s: Seconds at most; 0: no limit.
            stop: Whether to give up; looked at often.
            on_wait: Called now and then with seconds and bytes of memory so far.

        Raises:
            PortTaken: If another program listens on its port.
            LLMError: If it ended by itself, or the time is over.
        """
        start = last = time.monotonic()
        while not stop():
            self.check_alive()
            # Its own word first: another program may answer on the port.
            if self.log.is_listening and self._health():
                return True
            now = time.monotonic()
            if limit_s and now - start > limit_s:
                what = f"llama-server was not ready after {limit_s:g} s"
                fix = "raise --ready-timeout (0: no limit), or stage the model on a faster disk"
                raise LLMError(what, self.log.recent[-1] if self.log.recent else "", fix)
            if now - last >= LINE_S:
                last = now
                on_wait(now - start, resident_bytes(self.process.pid))
            time.sleep(LOOK_S)
        return False

    def check_alive(self) -> None:
        """See that it runs.

        Raises:
            PortTaken, LLMError: If it does not, with its last words.
        """
        status = self.process.poll()
        if status is None:
            return
        self._reader.join(GRACE_S)
        if any(NO_PORT in line for line in self.log.recent):
            raise PortTaken
        fix = "--server-log FILE keeps all that it says"
        if status == -signal.SIGKILL:
            fix = "perhaps memory ran out: a smaller --context or --parallel, or more --mem"
        raise LLMError(f"llama-server {ending(status)}", self.log.reason(), fix)

    def metrics(self, limit_s: float = ANSWER_S) -> dict[str, float] | None:
        """Its counters by name; None if it does not answer in so many seconds."""
        try:
            text = self._get("/metrics", limit_s).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return None
        return parse_metrics(text)

    def context_of_slot(self) -> int | None:
        """Tokens that a slot has room for, as it says itself."""
        for line in self.log.loading:
            if found := re.search(r"n_ctx_slot = (\d+)", line):
                return int(found[1])
        return None

    def drain(self, limit_s: float, at_once: Callable[[], bool]) -> int:
        """Wait until it has answered everything; returns the requests that were left.

        New ones are still taken meanwhile: llama-server knows no way to refuse them.
        """
        end, idle = time.monotonic() + limit_s, 0
        left = 0
        while self.process.poll() is None:
            found = self.metrics(DRAIN_ANSWER_S)
            if found is not None:
                left = round(found.get("requests_processing", 0))
                left += round(found.get("requests_deferred", 0))
            # Twice: a request may have arrived and not reached the queue.
            idle = idle + 1 if found is not None and left == 0 else 0
            if idle == 2 or time.monotonic() >= end or at_once():
                break
            time.sleep(LOOK_S)
        return left

    def end(self, grace_s: float = GRACE_S) -> None:
        """Ask it to end, and kill it if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()  # with requests left it waits for their clients
        self.process.wait()
        self._reader.join(GRACE_S)

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(0 if error is not None else GRACE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _health(self) -> bool:
        try:
            self._get("/health")
        except (OSError, http.client.HTTPException):  # also 503, while it loads
            return False
        return True

    def _get(self, path: str, limit_s: float = ANSWER_S) -> bytes:
        request = urllib.request.Request(self._url + path)
        if self._key is not None:
            request.add_header("Authorization", f"Bearer {self._key}")
        with self._opener.open(request, timeout=limit_s) as answer:
            content: bytes = answer.read()
            return content

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in lines_of(self.process.stdout):
            self.log.take(line)


def resident_bytes(pid: int) -> int:
    """Memory that a process has in use; files that it has mapped and read count."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _say(text: str) -> None:
    # Nobody may read any more what is said; llama-server waits if nobody reads what it says.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _protect(parent: int) -> None:
    """In the new process before it becomes llama-server."""
    end_with_parent(parent)
    # A mask survives exec, and llama-server never touches it.
    signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
