"""Messages between llm-doctor and its copies on the nodes of a job, over srun's standard streams.

srun mixes the output of all tasks and may cut long lines, so each message travels in short lines
that name their sender.
"""

from __future__ import annotations

import base64
import json
import os
import select
import time
from typing import Any

BEGINNING = "llm-doctor-message"
LINE_BYTES = 600


def pack(sender: int, message: object) -> str:
    """The lines of one message. sender: a number of the task, unique in its step."""
    text = base64.b64encode(json.dumps(message).encode()).decode()
    pieces = [text[start : start + LINE_BYTES] for start in range(0, len(text), LINE_BYTES)]
    ends = ["more"] * (len(pieces) - 1) + ["last"]
    return "".join(f"{BEGINNING} {sender} {end} {piece}\n" for end, piece in zip(ends, pieces))


class Reader:
    """Puts the lines of messages together again; other lines are kept as `noise`."""

    def __init__(self) -> None:
        self.noise: list[str] = []
        self._rest = b""
        self._parts: dict[str, str] = {}

    def feed(self, data: bytes) -> list[tuple[int, Any]]:
        """Take some bytes; return the messages that they complete, each with its sender."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in lines:
            words = line.decode(errors="replace").split(" ")
            if words[0] != BEGINNING or len(words) != 4:
                self.noise = [*self.noise[-50:], " ".join(words)]
                continue
            _, sender, end, piece = words
            self._parts[sender] = self._parts.get(sender, "") + piece
            if end == "last":
                text = base64.b64decode(self._parts.pop(sender))
                found.append((int(sender), json.loads(text)))
        return found


class Inbox:
    """Messages from a file descriptor, waited for with a limit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._reader = Reader()
        self._waiting: list[Any] = []

    def wait(self, deadline: float) -> Any:
        """The next message; None at the end, or when there is none by `deadline`.

        deadline: by time.monotonic().
        """
        while not self._waiting:
            pause = deadline - time.monotonic()
            if pause <= 0 or not select.select([self._descriptor], [], [], pause)[0]:
                return None
            data = os.read(self._descriptor, 1 << 16)
            if not data:
                return None
            self._waiting += [message for _, message in self._reader.feed(data)]
        return self._waiting.pop(0)
