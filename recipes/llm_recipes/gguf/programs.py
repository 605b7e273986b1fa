"""llama.cpp's programs: found, run, ended with this process, their errors made readable.

from llm_recipes.gguf.programs import run_program
print(run_program(["llama-bench", "-m", "model.gguf", "-o", "jsonl"]))
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from llm_recipes.errors import LLMError

if TYPE_CHECKING:
    from llm_recipes.gguf.file import GgufFile

PR_SET_PDEATHSIG = 1  # prctl.h
KEPT_LINES = 60
SECONDS_TO_END = 5.0
# Words by which llama.cpp's programs mark what went wrong; they print much else.
ERROR_WORDS = ("error", "failed", "cannot", "can't", "invalid", "unable", "abort", "unknown")
# Said after the cause, of what did not work because of it.
CONSEQUENCES = ("failed to load model", "unable to load model", "error: failed to")


def program(name: str) -> str:
    """Path of one of llama.cpp's programs.

    Raises:
        LLMError: If this environment does not have it.
    """
    found = shutil.which(name)
    if found is None:
        fix = "use the image llm: llm-run python ..."
        raise LLMError(f"the program {name} is not here", "it is no program of the PATH", fix)
    return found


def converter_folder() -> Path:
    """Folder of llama.cpp's converter, `convert_hf_to_gguf.py`.

    Raises:
        LLMError: If this environment does not have it.
    """
    beside = Path(program("llama-quantize")).resolve().parent.parent / "converter"
    if not (beside / "convert_hf_to_gguf.py").is_file():
        fix = "use the image llm: llm-run python ..."
        raise LLMError("llama.cpp's converter is not here", f"there is no {beside}", fix)
    return beside


def run_program(
    arguments: Sequence[str],
    on_line: Callable[[str], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return what it wrote to standard output.

    However this process ends, the program ends too.

    Args:
        arguments: The program's name (searched in PATH) or path, and its arguments.
        on_line: Gets each line of standard error as it comes, progress lines included.
        env: The environment; None is this process's.

    Raises:
        LLMError: If it ended with another status than 0, with its own words as the reason.
    """
    tail: deque[str] = deque(maxlen=KEPT_LINES)
    output: list[bytes] = []
    with started_program(arguments, env=env) as process:
        assert process.stdout is not None and process.stderr is not None
        reader = threading.Thread(target=_read_all, args=(process.stdout, output), daemon=True)
        reader.start()
        for line in lines_of(process.stderr):
            tail.append(line)
            if on_line is not None:
                on_line(line)
        reader.join()
        status = process.wait()
    text = b"".join(output).decode("utf-8", "replace")
    if status != 0:
        name = Path(arguments[0]).name
        raise LLMError(f"{name} {ending(status)}", error_of([*tail, *text.splitlines()[-5:]]))
    return text


@contextlib.contextmanager
def started_program(
    arguments: Sequence[str],
    env: Mapping[str, str] | None = None,
    stderr: int = subprocess.PIPE,
    grace_s: float = SECONDS_TO_END,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A running program, its output in pipes; when the block ends, it is ended.

    Args:
        grace_s: Seconds between asking it to end (SIGTERM) and killing it.
        cwd: Folder it runs in, and that its relative names are of; None is this process's.
    """
    path = arguments[0] if "/" in arguments[0] else program(arguments[0])
    process = subprocess.Popen(
        [path, *arguments[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=None if env is None else dict(env),
        cwd=cwd,
        preexec_fn=partial(end_with_parent, os.getpid()),
        # Ctrl-C is ours to handle: the terminal would send it to the program as well.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_program(process, grace_s)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def end_program(process: subprocess.Popen[bytes], grace_s: float = SECONDS_TO_END) -> None:
    """Ask a program to end, and kill it if it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def readable_path(file: GgufFile) -> Iterator[Path]:
    """The model's path, or a link to it: llama-bench takes a comma for the end of a path."""
    if "," not in str(file.path):
        yield file.path
        return
    with tempfile.TemporaryDirectory(prefix="llm-bench-") as folder:
        for shard in file.shards:
            (Path(folder) / shard.name.replace(",", "_")).symlink_to(shard.absolute())
        yield Path(folder) / file.path.name.replace(",", "_")


_libc = ctypes.CDLL(None)  # loaded here: between fork and exec nothing should be


def end_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; for `preexec_fn`.

    Args:
        parent: The parent's process id, asked for before the fork.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


def lines_of(stream: IO[bytes]) -> Iterator[str]:
    """Lines of a stream as they come; a carriage return ends one as well, as progress bars do."""
    rest = b""
    while chunk := os.read(stream.fileno(), 65536):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line.strip():
                yield line.decode("utf-8", "replace").rstrip()
    if rest.strip():
        yield rest.decode("utf-8", "replace").rstrip()


def error_of(lines: Sequence[str]) -> str:
    """The line that says why a program of llama.cpp failed, or its last one."""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if any(word in line.lower() for word in ERROR_WORDS)]
    causes = [line for line in errors if not any(c in line.lower() for c in CONSEQUENCES)]
    for candidates in (causes, errors, said):
        if candidates:
            return candidates[0] if candidates is causes else candidates[-1]
    return "it said nothing"


def ending(status: int) -> str:
    """How a program ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _read_all(stream: IO[bytes], into: list[bytes]) -> None:
    while chunk := stream.read(65536):
        into.append(chunk)
