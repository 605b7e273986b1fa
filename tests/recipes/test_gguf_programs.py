"""Programs are found, ended with us, and their errors are readable."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.gguf.programs import error_of, program, run_program, started_program

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def test_output_and_lines_of_progress() -> None:
    lines: list[str] = []
    text = run_program(shell(r"printf 'a\rb\r\nc' >&2; echo out; echo ü"), lines.append)
    assert text == "out\nü\n"
    assert lines == ["a", "b", "c"]


def test_large_output_on_both_sides_does_not_block() -> None:
    both = "yes 0123456789 | head -c 1000000; yes 0123456789 | head -c 1000000 >&2"
    assert len(run_program(shell(both))) == 1000000


def test_the_reason_of_a_failure() -> None:
    told = "echo 'main: loading'; echo 'error: no such file x' >&2; echo bye >&2; exit 3"
    with pytest.raises(LLMError, match="ended with status 3") as end:
        run_program(shell(told))
    assert end.value.why == "error: no such file x"
    with pytest.raises(LLMError, match="was ended by SIGKILL") as end:
        run_program(shell("kill -9 $$"))
    assert end.value.why == "it said nothing"


def test_the_cause_goes_before_its_consequences() -> None:
    lines = [
        "gguf_init_from_file: failed to read magic",
        "llama_model_load: error loading model: no file",
        "main: error: unable to load model",
    ]
    assert error_of(lines) == lines[0]
    assert error_of(["x", "main: error: unable to load model"]).endswith("load model")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(LLMError, match="llama-nothing is not here"):
        program("llama-nothing")


def test_an_exception_ends_the_program() -> None:
    with pytest.raises(ValueError), started_program(shell("sleep 100")) as process:
        raise ValueError
    assert process.poll() is not None


def test_a_program_that_ignores_the_request_is_killed() -> None:
    deaf = shell("trap '' TERM; echo deaf; sleep 100 & wait")
    with started_program(deaf, grace_s=0.2) as process:
        assert process.stdout is not None and process.stdout.readline() == b"deaf\n"
    assert process.returncode == -signal.SIGKILL


def test_the_program_dies_with_us() -> None:
    code = (
        "from llm_recipes.gguf.programs import started_program\n"
        "with started_program(['/bin/sleep', '100']) as p:\n"
        "    print(p.pid, flush=True)\n"
        "    p.wait()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(RECIPES)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as ours:
        assert ours.stdout is not None
        child = int(ours.stdout.readline())
        ours.kill()
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.05)
    pytest.fail("the program outlived its parent")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_last_lines_are_printed_however_slowly_they_are_read(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    """llama.cpp's programs print in a thread, and lost at their end what was not printed yet."""
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    options = ["-m", str(tiny_gguf), "-f", str(text), "-c", "128", "--chunks", "4", "-t", "1"]
    reader, writer = os.pipe()
    room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    assert os.write(writer, b"." * room) == room  # so that nothing is printed before it is read
    command = [program("llama-perplexity"), *options]
    process = subprocess.Popen(command, stdout=writer, stderr=writer)
    os.close(writer)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(4)  # it has long come to its end, or waits there for its reader
    with open(reader, "rb") as pipe:
        said = pipe.read().decode()
    assert process.wait(30) == 0
    assert "Final estimate: PPL" in said, said[-500:]
