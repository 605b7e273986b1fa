"""Results of a benchmark: one line of JSON for each test and round, in the output's folder.

    from llm_recipes.gguf.bench_results import Result, append, missing_tests, read_results
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.files import write_fault
from llm_recipes.gguf.bench_points import (
    DONE,
    IMPOSSIBLE,
    NO_MEMORY,
    Measurement,
    Point,
    Setting,
)

RESULTS = "points.jsonl"


@dataclass(frozen=True)
class Result:
    """What a start of llama-bench found for one test.

    key: identity of the measurement. round: from 1. seconds: of each repeat. model, setting, test:
    as Model.described and the dataclasses have them. build: llama.cpp and the machine, as
    llama-bench says. buffers: bytes of weights by the device that holds them. read_bytes: what
    generating a token reads of weights, keys and values, on average.
    """

    key: str
    round: int
    status: str
    model: dict[str, Any]
    setting: dict[str, Any]
    test: dict[str, int]
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    build: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, int] = field(default_factory=dict)
    read_bytes: float = 0.0

    @property
    def measurement(self) -> Measurement:
        """The test."""
        return Measurement(**self.test)

    @property
    def rates(self) -> list[float]:
        """Tokens a second of each repeat."""
        return [self.measurement.tokens / seconds for seconds in self.seconds]

    @property
    def is_final(self) -> bool:
        """Whether measuring it again would find the same."""
        return self.status in (DONE, NO_MEMORY, IMPOSSIBLE)


def append(output: Path, result: Result) -> None:
    """Add a result to the file, flushed; what a full disk cut off does not spoil the next line."""
    line = json.dumps(asdict(result), ensure_ascii=False) + "\n"
    with open(output / RESULTS, "ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + line.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def keep(output: Path, result: Result) -> None:
    """As `append`.

    Raises:
        LLMError: If the file can't be written.
    """
    try:
        append(output, result)
    except OSError as error:
        raise write_fault(output / RESULTS, error) from error


def read_results(path: Path) -> list[Result]:
    """Results of a file, or of the one in a folder; lines that are none are left out.

    Raises:
        LLMError: If it can't be read.
    """
    file = path / RESULTS if path.is_dir() else path
    fix = f"give a folder that bench.py has made, with its {RESULTS}"
    if file.exists() and not file.is_file():
        raise LLMError(f"cannot read results: {file}", "it is no file", fix)
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise LLMError(f"cannot read results: {file}", error.strerror or str(error), fix) from None
    found = []
    for line in lines:
        try:
            result = Result(**json.loads(line))
            result.rates  # noqa: B018 - whether it is whole
            Setting(**result.setting)
        except (ValueError, TypeError, ZeroDivisionError):
            continue
        found.append(result)
    return found


def missing_tests(
    point: Point,
    number: int,
    results: Sequence[Result],
    given_up: Collection[str],
    version: str,
) -> list[Measurement]:
    """Tests of a point that a round still has to do.

    Args:
        point: Model and setting.
        number: Of the round.
        results: What is there.
        given_up: Keys of what has failed, which this run does not try again.
        version: Of llama.cpp.
    """
    done = {(result.key, result.round) for result in results if result.status == DONE}
    ended = {result.key for result in results if result.is_final and result.status != DONE}
    keys = {test: point.key(test, version) for test in point.tests}
    ended |= set(given_up)
    return [test for test, key in keys.items() if key not in ended and (key, number) not in done]


def check_machine(output: Path, results: Sequence[Result], cpu: str, gpus: str | None) -> None:
    """Make sure that what is there was measured on a machine like this one.

    Args:
        output: Folder of the results.
        results: What it holds.
        cpu: This machine's.
        gpus: This machine's; None: not to be compared, as GPUs of other hosts are among them.

    Raises:
        LLMError: If another CPU or other GPUs have measured.
    """
    for build in (result.build for result in results):
        pairs = [(build.get("cpu", cpu), cpu)]
        if gpus is not None and build.get("gpu_info") is not None:
            pairs.append((build["gpu_info"], gpus))
        for there, here in pairs:
            if there != here:
                why = f"{there or 'no GPU'} was measured there, and here is {here or 'no GPU'}"
                fix = "another --output; --compare compares the two"
                raise LLMError(f"{output} has results of another machine", why, fix)
