"""Messages that srun cuts, mixes, and surrounds with other lines."""

from __future__ import annotations

import os
import time

from _llm.doctor.messages import LINE_BYTES, Inbox, Reader, pack


def test_long_messages_of_two_nodes_in_turns() -> None:
    first, second = {"text": "ü" * 5000}, {"text": "b" * 5000}
    one, two = pack(0, first).splitlines(True), pack(1, second).splitlines(True)
    assert max(map(len, one)) < LINE_BYTES + 60
    mixed = "".join(line for pair in zip(one, two) for line in pair)
    mixed += "".join(one[len(two) :] + two[len(one) :])
    reader = Reader()
    data = ("srun: error: something\n" + mixed).encode()
    found = [m for start in range(0, len(data), 7) for m in reader.feed(data[start : start + 7])]
    assert sorted(found, key=lambda item: item[0]) == [(0, first), (1, second)]
    assert reader.noise == ["srun: error: something"]


def test_inbox() -> None:
    reading, writing = os.pipe()
    os.write(writing, (pack(0, {"peers": []}) + pack(0, {"stop": True})).encode())
    inbox = Inbox(reading)
    assert inbox.wait(time.monotonic() + 60) == {"peers": []}
    assert inbox.wait(time.monotonic() + 60) == {"stop": True}
    begin = time.monotonic()
    assert inbox.wait(begin + 0.2) is None
    assert time.monotonic() - begin < 30
    os.close(writing)
    assert inbox.wait(time.monotonic() + 60) is None
    os.close(reading)
