"""tune.py on the tiny model: what it measures, keeps and leaves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RECIPES, recipe_environment

Tune = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = ("--new-tokens", "8", "--prompt-tokens", "16", "--repeats", "2")


def command(*arguments: object) -> list[str]:
    """The command line of tune.py."""
    return [sys.executable, str(RECIPES / "quantized" / "tune.py"), *map(str, arguments)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where results are kept."""
    return tmp_path / "cache's; ü"


@pytest.fixture
def tune(cache: Path) -> Tune:
    """Run tune.py as a user does: `tune(arguments…, PATH="…")`."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {**recipe_environment(), "LLM_CACHE_DIR": str(cache), **variables}
        return subprocess.run(
            command(*arguments), capture_output=True, text=True, timeout=120, env=env
        )

    return run


def kept(cache: Path) -> list[Path]:
    """Every file of the cache, but for the digests of files that records name."""
    return [path for path in cache.rglob("*") if path.is_file() and "digests" not in path.parts]


def bench(folder: Path, script: str) -> str:
    """A PATH on which llama-bench is this script."""
    folder.mkdir()
    program = folder / "llama-bench"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_measured_remembered_used_forgotten(
    tune: Tune, tiny_gguf: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_file = tmp_path / "a b.json"
    model = tmp_path / "a, b's; ü.gguf"
    model.symlink_to(tiny_gguf)
    done = tune("--model", model, *SMALL, "--output", record_file)
    assert done.returncode == 0, done.stderr
    assert "(llama.cpp's default)" in done.stdout
    (path,) = kept(cache)
    assert str(path) in done.stdout
    record = json.loads(record_file.read_text())
    assert (record["recipe"], record["status"]) == ("quantized/tune", "complete")
    rows = record["metrics"]["measured"]
    for work in ("generate", "prompt"):
        chosen = [row for row in rows if row["work"] == work and row["chosen"]]
        assert len(chosen) == 1
        assert chosen[0]["default"] or chosen[0]["against_default"] > 1  # never slower
        assert len(chosen[0]["tokens_per_s"]) == 2

    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.tuning import threads_for

    monkeypatch.setenv("LLM_CACHE_DIR", str(cache))
    threads = threads_for(read_gguf(tiny_gguf))
    assert threads.reason.startswith("tuned on ")
    assert threads.generate == record["metrics"]["threads"]
    assert threads.prompt == record["metrics"]["prompt_threads"]

    shown = tune("--model", tiny_gguf, "--dry-run", PATH=bench(tmp_path / "bin", "exit 9"))
    assert shown.returncode == 0, shown.stderr
    assert f"remembered since {record['finished'][:10]}" in shown.stdout
    assert "generation: " in shown.stdout and "(llama.cpp's default)" in shown.stdout
    forgotten = tune("--model", tiny_gguf, "--forget")
    assert forgotten.stdout == f"forgotten: {path}\n"
    assert kept(cache) == []
    again = tune("--model", tiny_gguf, "--forget")
    assert again.stdout == "nothing is remembered of this model here\n"
    assert not threads_for(read_gguf(tiny_gguf)).reason.startswith("tuned on ")


def test_all_mistakes_at_once(tune: Tune, cache: Path) -> None:
    done = tune("--model", "x.gguf", "--repeats", "0", "--new-tokens", "-1")
    assert done.returncode == 2
    assert "--repeats 0 is too small" in done.stderr
    assert "--new-tokens -1 is too small" in done.stderr
    assert "Traceback" not in done.stderr
    assert not cache.exists()


def test_no_model(tune: Tune, tmp_path: Path) -> None:
    done = tune("--model", tmp_path / "none; here.gguf")
    assert done.returncode == 2
    assert "none; here.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_llama_bench_fails(tune: Tune, tiny_gguf: Path, cache: Path, tmp_path: Path) -> None:
    path = bench(tmp_path / "bin", "echo 'error: no such thing' >&2; exit 3")
    done = tune("--model", tiny_gguf, PATH=path)
    assert done.returncode == 2
    assert "llama-bench ended with status 3" in done.stderr
    assert "no such thing" in done.stderr
    assert kept(cache) == []


def test_a_cache_that_cannot_be_written(tune: Tune, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = tmp_path / "said"
    path = bench(tmp_path / "bin", f"touch {said}")
    done = tune("--model", tiny_gguf, LLM_CACHE_DIR=str(tmp_path / "file"), PATH=path)
    assert done.returncode == 2
    assert "cannot keep what was measured in" in done.stderr
    assert not said.exists()  # found out before anything was measured


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(
    number: signal.Signals, status: int, tiny_gguf: Path, cache: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    path = bench(tmp_path / "bin", f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 100")
    env = {**recipe_environment(), "LLM_CACHE_DIR": str(cache), "PATH": path}
    running = subprocess.Popen(
        command("--model", tiny_gguf), env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not pid.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(number)
        _, said = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == status, said
    assert "Traceback" not in said
    assert kept(cache) == []
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
