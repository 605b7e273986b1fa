"""bench.py: what it starts, what the ends of llama-bench mean, resuming, comparing."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import RECIPES, recipe_environment

from llm_recipes import stop_signals
from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError
from llm_recipes.gguf import bench_results, bench_runs, hosts
from llm_recipes.gguf.bench_points import Measurement, Point, Setting, read_models
from llm_recipes.gguf.bench_runs import Bench
from llm_recipes.gguf.remote_hosts import RemoteHost
from llm_recipes.gguf.rpc import started_server
from llm_recipes.gguf.threads import granted_cores
from llm_recipes.output_folder import measuring_alone

SCRIPT = RECIPES / "quantized" / "bench.py"
NAME = "it's; a $HOME bench ü"
PNG = b"\x89PNG\r\n\x1a\n"
# Answers as llama-bench does, in no time. STUB says what becomes of a start with so many threads.
STUB = r'''
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
stub = json.loads(os.environ.get("STUB", "{}"))
if "--version" in words:
    sys.exit(print(f"version: {stub.get('version', 'stub 1')} (build 0)", file=sys.stderr))
if "--list-devices" in words:
    if "--rpc" in words and stub.get("dead"):
        print("Failed to connect to 127.0.0.1:1", file=sys.stderr)
        os.abort()
    print("Available devices:")
    for number in range(stub.get("gpus", 0)):
        print(f"  CUDA{number}: NVIDIA L4 (24000 MiB, {stub.get('free', 20000)} MiB free)")
    sys.exit()
flags = ("--verbose", "--progress")
plain = [word for word in words if word not in flags]
options = dict(zip(plain[::2], plain[1::2]))
with open(os.environ["STUB_LOG"], "a") as log:
    log.write(json.dumps(options) + "\n")
threads = int(options["--threads"])
does = stub.get(str(threads), "")
def say(text):
    print(text, file=sys.stderr, flush=True)
say("llama-bench: benchmark 1/2: starting")
if not Path(options["--model"]).exists():
    say("error: failed to open GGUF file")
    sys.exit(1)
say("sched: failed to allocate graph, reserving (backend_ids_changed = 1)")
place = "RPC0[127.0.0.1:1]" if "--rpc" in options and not stub.get("local") else "CPU_Mapped"
say(f"load_tensors:   {place} model buffer size =     1.50 MiB")
if does == "oom":
    say("alloc_buffer: allocating 99.0 MiB on device 0: cudaMalloc failed: out of memory")
    say("main: error: failed to load model 'x'")
    sys.exit(1)
if does == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if does == "abort":
    say("ggml.c:1: GGML_ASSERT(\x1b[31m false) failed")
    os.abort()
if does == "nothing":
    sys.exit(0)
def report(prompt, new, rate):
    repeats = range(int(options["--repetitions"]))
    times = [int(1e9 * (prompt + new) / (rate * (1 + 0.01 * n))) for n in repeats]
    row = {"build_commit": "none", "build_number": 0, "cpu_info": "a stub"}
    row["gpu_info"] = ", ".join(["NVIDIA L4"] * stub.get("gpus", 0))
    row |= {"n_prompt": prompt, "n_gen": new, "n_depth": 0, "samples_ns": times}
    say(json.dumps(row))
rate = stub.get("speed", 1.0) * threads
for count in filter(None, map(int, options["--n-prompt"].split(","))):
    report(count, 0, 1000 * rate)
say("llama-bench: benchmark 2/2: generation run 1/1")
if does == "hang":
    Path(os.environ["STUB_LOG"] + ".pid").write_text(str(os.getpid()))
    time.sleep(60)
if does == "late":
    say("failed to initialize the context: failed to allocate buffer for kv cache")
    sys.exit(1)
for count in filter(None, map(int, options["--n-gen"].split(","))):
    report(0, count, 100 * rate)
'''


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_recipe", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Start = Callable[..., int]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stub in place of llama-bench, first on the path."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "llama-bench"
    program.write_text(f"#!{sys.executable} -I\n{STUB}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "starts"))
    return program


@pytest.fixture
def start(
    recipe: ModuleType,
    stub: Path,
    tiny_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Start:
    """Run bench.py in this process with the stub: its exit status."""

    def run(*options: object, does: dict[str, Any] | None = None, model: object = None) -> int:
        monkeypatch.setenv("STUB", json.dumps(does or {}))
        given = ["--models", model or tiny_gguf, "--output", tmp_path / NAME]
        with pytest.raises(SystemExit) as end:
            run_recipe(recipe.benchmark, [*map(str, given), *map(str, options)])
        assert isinstance(end.value.code, int)
        return end.value.code

    return run


def threads(*counts: int) -> list[object]:
    return [word for count in counts for word in ("--threads", count)]


def starts(tmp_path: Path) -> list[dict[str, str]]:
    """Options of each start of llama-bench so far."""
    path = tmp_path / "starts"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    text = (tmp_path / NAME / bench_results.RESULTS).read_text()
    return [json.loads(line) for line in text.splitlines()]


def ends(tmp_path: Path) -> dict[tuple[int, str], str]:
    """The last status of each number of threads and test."""
    tests = {512: "pp", 0: "tg"}
    return {
        (row["setting"]["threads"], tests[row["test"]["prompt"]]): row["status"]
        for row in lines(tmp_path)
    }


def record(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / NAME / "run.json").read_text())
    return found


def test_rounds_table_and_files(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*threads(1, 2), "--rounds", 2) == 0
    # The second round goes backwards.
    assert [row["--threads"] for row in starts(tmp_path)] == ["1", "2", "2", "1"]
    captured = capsys.readouterr()
    assert re.search(r"threads +pp512, tok/s +tg128, tok/s +result\n", captured.out)
    assert re.search(r" 2 +2010 ± 0 +201.0 ± 0.0 +done", captured.out)
    assert "4 starts of llama-bench, very roughly" in captured.err
    folder = tmp_path / NAME
    assert "| 2 | 2010 ± 0 | 201.0 ± 0.0 | done |" in (folder / "table.md").read_text()
    assert (folder / "threads.png").read_bytes().startswith(PNG)
    with open(folder / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["test"] for row in rows] == ["pp512", "tg128"] * 2
    assert rows[0]["status"] == "done" and float(rows[0]["tokens_per_s"]) == pytest.approx(1005)
    found = record(tmp_path)
    assert found["status"] == "complete" and found["metrics"]["figures"] == 4
    assert found["models"][0]["type"] == "F32" and len(found["models"][0]["digest"]) == 64
    assert [row["buffers"] for row in lines(tmp_path)] == [{"CPU_Mapped": 1572864}] * 8


def test_the_same_command_goes_on_and_more_can_be_added(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*threads(1), "--rounds", 1) == 0
    assert start(*threads(1), "--rounds", 1) == 0
    assert "nothing to do" in capsys.readouterr().err and len(starts(tmp_path)) == 1
    assert start(*threads(1, 2), "--rounds", 2) == 0
    assert [row["--threads"] for row in starts(tmp_path)] == ["1", "2", "2", "1"]
    # Another llama.cpp is measured anew; both stay in the file, the table shows this one.
    assert start(*threads(1), "--rounds", 1, does={"version": "2", "speed": 3}) == 0
    assert len(starts(tmp_path)) == 5 and len(lines(tmp_path)) == 10
    assert "3015" in (tmp_path / NAME / "table.md").read_text()
    assert "1005" not in (tmp_path / NAME / "table.md").read_text()


def test_ends_that_are_results(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    does = {"2": "oom", "3": "killed", "4": "abort", "5": "nothing", "6": "late"}
    assert start(*threads(1, 2, 3, 4, 5, 6), "--rounds", 2, does=does) == 1
    # What has failed once is not started again in the second round, but for what worked of it.
    assert len(starts(tmp_path)) == 6 + 2
    assert starts(tmp_path)[6]["--n-gen"] == "0"
    no_memory, found = "out of memory", ends(tmp_path)
    of_all = ["done", no_memory, no_memory, "failed", "failed"]
    assert [found[n, "pp"] for n in range(1, 7)] == [*of_all, "done"]
    assert [found[n, "tg"] for n in range(1, 7)] == [*of_all, no_memory]
    notes = {row["setting"]["threads"]: row["note"] for row in lines(tmp_path) if row["note"]}
    assert "cudaMalloc failed" in notes[2] and "signal 9" in notes[3]
    assert "GGML_ASSERT" in notes[4] and "kv cache" in notes[6]
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "\x1b" not in captured.err
    assert "failed: llama-bench was ended by SIGABRT" in captured.out
    assert record(tmp_path)["status"] == "complete" and record(tmp_path)["metrics"]["failed"] == 9
    # Out of memory is final, a crash is tried again.
    assert start(*threads(1, 2, 3, 4, 5, 6), "--rounds", 2) == 0
    assert {row["--threads"] for row in starts(tmp_path)[8:]} == {"4", "5"}
    assert ends(tmp_path)[4, "tg"] == "done"


def test_settings_reach_llama_bench(start: Start, tmp_path: Path) -> None:
    options = ["--kv-type", "q8_0", "--flash-attention", "on", "--depth", 64, "--batch", 256]
    options += ["--micro-batch", 128, "--prompt-tokens", 8, "--prompt-tokens", 16]
    assert start(*threads(1), *options, "--new-tokens", 0, "--repeats", 3, "--rounds", 1) == 0
    (found,) = starts(tmp_path)
    wanted = {"--cache-type-k": "q8_0", "--cache-type-v": "q8_0", "--flash-attn": "on"}
    wanted |= {"--n-depth": "64", "--batch-size": "256", "--ubatch-size": "128"}
    wanted |= {"--n-prompt": "8,16", "--n-gen": "0", "--repetitions": "3"}
    wanted |= {"--n-gpu-layers": "0", "--device": "none"}
    assert wanted.items() <= found.items()


def test_gpus(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = {"gpus": 2}
    layers = ["--gpu-layers", 0, "--gpu-layers", 1, "--gpu-layers", "all", "--gpu-layers", "auto"]
    more = ["--split", "layer", "--split", "row", "--shares", "3,1", "--rounds", 1]
    assert start(*threads(1), *layers, *more, does=two) == 0
    found = [(row["--n-gpu-layers"], row["--split-mode"]) for row in starts(tmp_path)]
    assert found == [(n, split) for n in ("0", "1", "3") for split in ("layer", "row")]
    last = starts(tmp_path)[-1]
    assert last["--tensor-split"] == "3/1" and "--device" not in last
    # The layers of the output count, and all of them are on GPUs, whose data sheet is known.
    assert "MBU" in capsys.readouterr().out
    assert (tmp_path / NAME / "gpu-layers.png").exists()
    assert start(*threads(1), does={"gpus": 1}) == 2
    assert "has results of another machine" in capsys.readouterr().err
    (tmp_path / NAME).rename(tmp_path / "two")
    assert start(*threads(1), "--gpu-layers", "all", does={"gpus": 1, "free": 0}) == 2
    assert "none of this can be measured here" in capsys.readouterr().err
    both = ["--gpu-layers", 0, "--gpu-layers", "all", "--rounds", 1, "--prompt-tokens", 0]
    assert start(*threads(2), *both, does={"gpus": 1, "free": 0}) == 0
    assert "does not fit: 3 layers do not fit on the GPUs: CUDA0" in capsys.readouterr().out


def test_faults_are_told_together(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03")
    (tmp_path / "empty").mkdir()
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "thesis.tex").touch()
    options = ["--models", tmp_path / "empty", "--threads", 0, "--threads", 1000, "--rounds", 0]
    options += ["--shares", "x", "--prompt-tokens", 0, "--new-tokens", 0]
    assert start(*options, model=tmp_path / "cut.gguf") == 2
    err = capsys.readouterr().err
    for words in (
        "cut.gguf is damaged",
        "empty holds no .gguf file",
        "is not the folder of a benchmark",
        "--threads 0, 1000 is not possible",
        "--rounds 0 is not possible",
        "--shares 'x' are no shares",
        "there is nothing to measure",
    ):
        assert words in err
    assert not starts(tmp_path)


def test_servers_of_hosts_keep_their_threads(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(hosts, "run_on_hosts", lambda count: asked.append(count) or 0)
    assert start("--hosts", *threads(1, 2)) == 2
    assert "several values of --threads do not go with --hosts" in capsys.readouterr().err
    for options in ([], ["--threads", "auto"], threads(2)):
        assert start("--hosts", *options) == 0
    assert asked == [None, None, 2]


def test_options_that_need_gpus(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert start("--gpu-layers", "all", "--split", "layer", "--split", "row") == 2
    err = capsys.readouterr().err
    assert "--gpu-layers all cannot be" in err
    assert "several values of --split make no difference here" in err


def test_plan_starts_nothing(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--kv-type", "f16", "--kv-type", "q4_0", "--flash-attention", "off"]
    assert start(*threads(1, 2), *options, "--plan") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"measured$", out, re.M)) == 2
    refused = r"impossible: a quantized K/V cache needs flash attention$"
    assert len(re.findall(refused, out, re.M)) == 2
    assert "4 combinations, 3 round(s) of pp512, tg128, 2 repeat(s) each; 6 starts" in out
    assert not starts(tmp_path) and not (tmp_path / NAME).exists()
    assert start(*threads(1, 2), "--max-runs", 1) == 2
    assert "2 combinations are more than --max-runs 1" in capsys.readouterr().err


def test_a_folder_of_models_and_a_comma(start: Start, tiny_gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a, b"
    folder.mkdir()
    (folder / "one, two.gguf").hardlink_to(tiny_gguf)
    (folder / "the same.gguf").hardlink_to(tiny_gguf)
    assert start(*threads(1), "--rounds", 1, model=folder) == 0
    # A comma would end the path, so llama-bench gets a link; what is the same is measured once.
    (found,) = starts(tmp_path)
    assert "," not in found["--model"] and ends(tmp_path)[1, "tg"] == "done"


def test_workers_of_other_hosts(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LLM_RPC_ENDPOINTS", "127.0.0.1:1,127.0.0.2:1")
    assert start(*threads(1), "--rounds", 1, "--gpu-layers", "all", does={"gpus": 2}) == 0
    assert starts(tmp_path)[-1]["--rpc"] == "127.0.0.1:1,127.0.0.2:1"
    assert lines(tmp_path)[-1]["setting"]["hosts"] == 2
    # It must not count as a run over several hosts when all stays here.
    monkeypatch.setenv("LLM_RPC_ENDPOINTS", "127.0.0.1:1")
    does = {"gpus": 2, "local": True}
    assert start(*threads(2), "--rounds", 1, "--gpu-layers", "all", does=does) == 1
    assert ends(tmp_path)[2, "tg"] == "failed"
    assert "no weights were on the workers: CPU_Mapped" in capsys.readouterr().out
    assert start(*threads(1), does={"dead": True}) == 2
    err = capsys.readouterr().err
    assert "an RPC worker does not answer: 127.0.0.1:1" in err and "Failed to connect" in err


def test_hosts_are_asked_whether_they_hold_the_layers(
    stub: Path, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = RemoteHost(
        name="n2",
        endpoint="127.0.0.1:1",
        offers=("CPU",),
        free_bytes=(10**9,),
        threads=1,
        memory_bytes=10**9,
        resident_bytes=0,
    )
    bench = Bench(tmp_path, "version: 1", 1, granted_cores(), (host.endpoint,), (host,))
    (model,) = read_models([str(tiny_gguf)])
    test = Measurement(new=4)
    point = Point(model, Setting(threads=1, gpu_layers=3, hosts=1), (test,))
    asked: list[object] = []
    monkeypatch.setattr(bench_runs, "verify_layers", lambda *facts: asked.append(facts))
    found: list[bench_results.Result] = []
    for number in (1, 2):
        bench_runs.measure(bench, point, [test], number, found)
    assert asked == [((host,), {}, {"RPC0[127.0.0.1:1]": 1572864})]

    def refuse(*facts: object) -> None:
        raise LLMError("host n2 holds no layer of the model")

    monkeypatch.setattr(bench_runs, "verify_layers", refuse)
    other = replace(point, setting=replace(point.setting, threads=2))
    bench_runs.measure(bench, other, [test], 1, found)
    assert [result.status for result in found] == ["done", "done", "failed"]
    assert found[-1].note == "host n2 holds no layer of the model"


def test_a_job_that_ends(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = tmp_path / "stop"
    monkeypatch.setenv("LLM_STOP_FILE", str(stop))
    monkeypatch.setattr(stop_signals, "_found", False)
    monkeypatch.setattr(stop_signals, "_next_look", 0.0)
    stop.touch()
    assert start(*threads(1)) == 75
    assert record(tmp_path)["status"] == "interrupted" and not starts(tmp_path)
    stop.unlink()
    monkeypatch.setattr(stop_signals, "_found", False)
    monkeypatch.setattr(stop_signals, "_next_look", 0.0)
    assert start(*threads(1), "--rounds", 1) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_keeps_what_was_measured(
    start: Start, tiny_gguf: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    command = [sys.executable, str(SCRIPT), "--models", str(tiny_gguf), "--threads", "1"]
    command += ["--output", str(tmp_path / NAME), "--rounds", "1"]
    env = {**recipe_environment(), "STUB": json.dumps({"1": "hang"})}
    with subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True) as process:
        pid_file = tmp_path / "starts.pid"
        kept = tmp_path / NAME / bench_results.RESULTS
        for _ in range(1200):  # until it hangs, and bench.py has taken what it said before
            if all(path.exists() and path.read_text() for path in (pid_file, kept)):
                break
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err and "the same command goes on" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert [(r["test"]["prompt"], r["status"]) for r in lines(tmp_path)] == [(512, "done")]
    assert record(tmp_path)["status"] == "interrupted"
    assert (tmp_path / NAME / "table.md").exists()
    assert start(*threads(1), "--rounds", 1) == 0
    assert starts(tmp_path)[-1]["--n-prompt"] == "0" and len(lines(tmp_path)) == 2


def test_places_that_cannot_be_written(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*threads(1), "--rounds", 1) == 0
    points = tmp_path / NAME / bench_results.RESULTS
    points.unlink()
    points.symlink_to("/dev/full")
    assert start(*threads(1), "--rounds", 1) == 2
    captured = capsys.readouterr()
    assert "no space left to write" in captured.err and "Traceback" not in captured.err
    points.unlink()
    with measuring_alone(tmp_path / NAME / ".lock", "bench.py", "in it"):
        assert start(*threads(1)) == 2
    assert "another bench.py is measuring in" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert start("--output", tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err


def test_two_benchmarks_are_compared(
    start: Start, recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*threads(1, 2), "--rounds", 2) == 0
    (tmp_path / NAME).rename(tmp_path / "before")
    assert start(*threads(2, 3), "--rounds", 2, does={"speed": 1.1}) == 0
    (tmp_path / NAME).rename(tmp_path / "after")
    capsys.readouterr()

    def compare(*paths: object, output: bool = False) -> int:
        given = [word for path in paths for word in ("--compare", str(path))]
        given += ["--output", str(tmp_path / "out")] if output else []
        with pytest.raises(SystemExit) as end:
            run_recipe(recipe.benchmark, given)
        return int(str(end.value.code))

    before, after = tmp_path / "before", tmp_path / "after"
    assert compare(before, after / "run.json", output=True) == 0
    out = capsys.readouterr().out
    assert re.search(r"pp512 +2010 +2211 +1\.100 +± 0\.000 +B is faster", out)
    assert "2 points in common; B is faster: 2" in out
    assert re.search(r"only in A: .* tg128, threads 1", out)
    assert re.search(r"only in B: .* pp512, threads 3", out)
    assert "| 2010 | 2211 | 1.100 |" in (tmp_path / "out" / "comparison.md").read_text()
    assert len((tmp_path / "out" / "comparison.csv").read_text().splitlines()) == 3
    assert compare(before, tmp_path / "nowhere", tmp_path / "x") == 2
    assert "compares two benchmarks, and 3 are given" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / bench_results.RESULTS).touch()
    assert compare(tmp_path / "empty", tmp_path / "nowhere") == 2
    err = capsys.readouterr().err
    assert "holds no results of a benchmark" in err and "cannot read results" in err


def measure_really(recipe: ModuleType, tmp_path: Path, model: Path, *options: object) -> int:
    """Run bench.py in this process with the real llama-bench: its exit status."""
    given = ["--models", model, "--output", tmp_path / NAME, *threads(1), "--prompt-tokens", 8]
    with pytest.raises(SystemExit) as end:
        run_recipe(recipe.benchmark, list(map(str, [*given, *options])))
    return int(str(end.value.code))


def test_the_real_llama_bench(
    recipe: ModuleType, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--new-tokens", 4, "--depth", 0, "--depth", 16, "--rounds", 2, "--repeats", 1]
    assert measure_really(recipe, tmp_path, tiny_gguf, *options, "--measure-peak") == 0
    out = capsys.readouterr().out
    assert re.search(r"threads +depth +pp8, tok/s +tg4, tok/s +MBU +result", out)
    found = lines(tmp_path)
    assert len(found) == 8 and all(row["status"] == "done" for row in found)
    assert all(0 < row["seconds"][0] < 10 for row in found)
    # The log says where the weights lie, and that they are all there.
    assert all(sum(row["buffers"].values()) > 0.9 * row["model"]["bytes"] for row in found)
    assert found[0]["build"]["cpu_info"] and record(tmp_path)["peak"]["host"] > 1e8


def test_the_real_llama_bench_says_why_it_fails(
    recipe: ModuleType, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.gguf"
    data = tiny_gguf.read_bytes()
    broken.write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    assert measure_really(recipe, tmp_path, broken, "--rounds", 1) == 1
    out = capsys.readouterr().out
    assert "error loading model: check_tensor_dims: tensor 'blk.1.ffn_up.weight' not found" in out


def test_a_real_worker_holds_the_layers(
    recipe: ModuleType, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--new-tokens", 4, "--rounds", 1, "--gpu-layers", "all"]
    with started_server("127.0.0.1", 1) as server:
        monkeypatch.setenv("LLM_RPC_ENDPOINTS", server.endpoint)
        assert measure_really(recipe, tmp_path, tiny_gguf, *options) == 0
    (one, *_) = found = lines(tmp_path)
    assert [row["status"] for row in found] == ["done", "done"]
    assert one["setting"]["hosts"] == 1 and one["setting"]["gpu_layers"] == 3
    # All but the embeddings, which stay.
    there = sum(size for name, size in one["buffers"].items() if name.startswith("RPC0"))
    assert there > 0.5 * one["model"]["bytes"]
    # The worker has gone: nothing is measured on this host in its place.
    assert measure_really(recipe, tmp_path, tiny_gguf, *options) == 2
