"""Measure a point with llama-bench, and keep each result as a line of JSON when it is there.

from llm_recipes.gguf.bench_runs import measure
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_recipes.cpu_topology import cpu_model
from llm_recipes.errors import LLMError
from llm_recipes.files import write_fault
from llm_recipes.gguf.bench_points import (
    DONE,
    FAILED,
    NO_MEMORY,
    Measurement,
    Point,
    Setting,
)
from llm_recipes.gguf.bench_results import RESULTS, Result, append, keep
from llm_recipes.gguf.model import LAYER_LINE, ContextSettings, buffers, layer_devices
from llm_recipes.gguf.placement import cache_bytes_per_token
from llm_recipes.gguf.programs import error_of, readable_path, run_program
from llm_recipes.gguf.remote_hosts import RemoteHost, verify_layers
from llm_recipes.gguf.threads import Cores, pinned_to
from llm_recipes.gguf.weights_read import bytes_read

MEMORY_WORDS = re.compile(
    r"out of memory|cudaMalloc failed|bad_alloc|cannot allocate memory|unable to allocate .* buffer"
    r"|failed to allocate (?!host buffer)",
    re.IGNORECASE,
)
PROGRAM, KILLED = "llama-bench", "SIGKILL"
# Lines of the log that sound like errors and are none.
HARMLESS = re.compile(
    r"failed to allocate graph, reserving|cannot be used with preferred|set_abort_callback"
    r"|= unknown|unknown_token"
)
KEPT_LINES = 60
BUFFER = " model buffer size = "
PROGRESS = re.compile(r"llama-bench: benchmark (\d+)/(\d+): (.+)")


@dataclass(frozen=True)
class Bench:
    """What all starts of llama-bench have in common.

    output: folder of the results. version: of llama.cpp. repeats: of each test in a start.
    cores: what was granted, for pinning. endpoints: ADDRESS:PORT of RPC workers.
    hosts: those of them that `--hosts` started.
    """

    output: Path
    version: str
    repeats: int
    cores: Cores
    endpoints: tuple[str, ...] = ()
    hosts: tuple[RemoteHost, ...] = ()


@dataclass
class Said:
    """What llama-bench has printed so far, apart from results.

    placed: lines that say where layers and weights lie. rest: the last of the others.
    """

    placed: list[str] = field(default_factory=list)
    rest: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    out_of_memory: str = ""

    @property
    def buffers(self) -> dict[str, int]:
        """Bytes of weights by the buffer's name."""
        return buffers([line for line in self.placed if BUFFER in line])

    @property
    def uses_workers(self) -> bool:
        """Whether weights lie on another host."""
        return any(name.startswith("RPC") for name in self.buffers)

    def take(self, line: str) -> dict[str, Any] | None:
        """Note a line; returns a result that it holds."""
        if line.startswith('{"build_commit"'):
            with contextlib.suppress(ValueError):
                found: dict[str, Any] = json.loads(line)
                return found
        if BUFFER in line or LAYER_LINE.search(line):
            self.placed.append(line)
        elif not HARMLESS.search(line):
            self.rest.append(line)
            if MEMORY_WORDS.search(line):
                self.out_of_memory = line.strip()
        return None


def measure(
    bench: Bench,
    point: Point,
    tests: Sequence[Measurement],
    number: int,
    results: list[Result],
) -> None:
    """Run llama-bench once; each result is in the file as soon as it is there.

    An end that is none of the user's doing (out of memory, an abort) is a result of the tests that
    were still to come.

    Args:
        bench: What all starts have in common.
        point: Model and setting.
        tests: Those of the point's tests that are to be done.
        number: Of the round.
        results: Gets each result as it comes, so that an interruption keeps those before it.

    Raises:
        LLMError: If the folder can't be written.
    """
    said, fault = Said(), None
    # Once for each setting: it takes its time, and says where the layers are.
    unverified = bench.hosts if number == 1 else ()

    def take(line: str) -> None:
        nonlocal unverified
        row = said.take(line)
        if row is None:
            show_progress(line)
        if unverified and PROGRESS.search(line) and said.placed:
            hosts, unverified = unverified, ()
            verify_layers(hosts, layer_devices(said.placed), said.buffers)
        if row is None or (bench.endpoints and not said.uses_workers):
            return
        test = Measurement(int(row["n_prompt"]), int(row["n_gen"]))
        results.append(done_result(bench, point, test, number, row, said.buffers))
        append(bench.output, results[-1])

    try:
        places = bench.cores.places(point.setting.threads)
        with readable_path(point.model.file) as path, pinned_to(places):
            run_program(command(bench, point.setting, tests, path), take)
    except LLMError as error:
        fault = error
    except OSError as error:
        raise write_fault(bench.output / RESULTS, error) from error
    finally:
        show_progress("")
    status, note = FAILED, "it left no result"
    if fault is not None:
        status, note = failure(fault, said)
    elif bench.endpoints and not said.uses_workers:
        # It ran, and on this host alone: that is not what was to be measured.
        note = f"no weights were on the workers: {', '.join(said.buffers) or 'nothing is known'}"
    measured = {(r.key, r.round) for r in results if r.status == DONE}
    for test in tests:
        if (point.key(test, bench.version), number) not in measured:
            results.append(plain_result(bench, point, test, number, status, note))
            keep(bench.output, results[-1])


def give_up(bench: Bench, point: Point, number: int) -> list[Result]:
    """Results of a point that isn't started, as it is known that it can't run.

    Raises:
        LLMError: If the folder can't be written.
    """
    results = [
        plain_result(bench, point, test, number, point.status, point.note) for test in point.tests
    ]
    for result in results:
        keep(bench.output, result)
    return results


def command(bench: Bench, setting: Setting, tests: Sequence[Measurement], path: Path) -> list[str]:
    """The command line of llama-bench."""
    prompts = [str(test.prompt) for test in tests if test.prompt]
    new = [str(test.new) for test in tests if test.new]
    options = {
        "--model": str(path),
        "--n-prompt": ",".join(prompts) or "0",
        "--n-gen": ",".join(new) or "0",
        "--n-depth": str(setting.depth),
        "--threads": str(setting.threads),
        "--batch-size": str(setting.batch),
        "--ubatch-size": str(setting.micro_batch),
        "--n-gpu-layers": str(setting.gpu_layers),
        "--split-mode": setting.split,
        "--cache-type-k": setting.kv_type,
        "--cache-type-v": setting.kv_type,
        "--flash-attn": setting.flash_attention,
        "--repetitions": str(bench.repeats),
        # To standard error, line by line while it runs; with the log, which says why it fails.
        "--output": "none",
        "--output-err": "jsonl",
    }
    if setting.shares:
        options["--tensor-split"] = setting.shares
    if not setting.gpu_layers:
        # Without it a GPU would still take part in computing prompts.
        options["--device"] = "none"
    if bench.cores.numa != "none":
        options["--numa"] = bench.cores.numa
    rpc = ["--rpc", ",".join(bench.endpoints)] if bench.endpoints else []
    pairs = [word for pair in options.items() for word in pair]
    return [PROGRAM, *rpc, "--verbose", "--progress", *pairs]


def done_result(
    bench: Bench,
    point: Point,
    test: Measurement,
    number: int,
    row: Mapping[str, Any],
    weights: Mapping[str, int],
) -> Result:
    """The result that llama-bench's own line holds."""
    result = plain_result(bench, point, test, number, DONE, "")
    names = ("build_commit", "build_number", "backends", "cpu_info", "gpu_info", "test_time")
    build = {**result.build, **{name: row.get(name) for name in names}}
    seconds = [count / 1e9 for count in row.get("samples_ns", [])]
    return replace(result, seconds=seconds, build=build, buffers=dict(weights))


def plain_result(
    bench: Bench, point: Point, test: Measurement, number: int, status: str, note: str
) -> Result:
    """A result without figures."""
    return Result(
        key=point.key(test, bench.version),
        round=number,
        status=status,
        model=point.model.described(),
        setting=asdict(point.setting),
        test=asdict(test),
        note=note,
        build={"version": bench.version, "cpu": cpu_model()},
        read_bytes=read_bytes(point, test),
    )


def read_bytes(point: Point, test: Measurement) -> float:
    """Bytes that generating one of the test's tokens reads on average; 0 for prompts."""
    if not test.new:
        return 0.0
    file, setting = point.model.file, point.setting
    types = ContextSettings(tokens=1, key_type=setting.kv_type, value_type=setting.kv_type)
    a_token = sum(cache_bytes_per_token(file, types))
    return bytes_read(file) + a_token * (setting.depth + test.new / 2)


def failure(fault: LLMError, said: Said) -> tuple[str, str]:
    """What it means that llama-bench failed, and its words."""
    if said.out_of_memory:
        return NO_MEMORY, printable(said.out_of_memory)
    if KILLED in fault.what:
        return NO_MEMORY, "killed (signal 9), as when the host's memory runs out"
    # llama-bench shows its whole log, in which error_of alone would find the wrong line.
    why = error_of(list(said.rest)) if said.rest and fault.what.startswith(PROGRAM) else fault.why
    return FAILED, printable(f"{fault.what}: {why}" if why else fault.what)


def printable(text: str) -> str:
    """The text without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def show_progress(line: str) -> None:
    """What llama-bench is doing, on a terminal, in a line that the next one replaces."""
    found = PROGRESS.search(line)
    if sys.stderr.isatty() and (found or not line):
        text = f"  {found[3]} ({found[1]} of {found[2]})" if found else ""
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
