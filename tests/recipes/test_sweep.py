"""Sweeps: the runs that are started, what their ends mean, what is said of them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
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

from llm_recipes import sweep_points, sweep_report, sweep_runs
from llm_recipes.cli import run_recipe
from llm_recipes.output_folder import measuring_alone
from llm_recipes.sweep_plan import Planned
from llm_recipes.sweep_runs import Row

SCRIPT = RECIPES / "finetune" / "sweep.py"
NAME = "it's; a $HOME sweep ü"
PNG = b"\x89PNG\r\n\x1a\n"
# A recipe that does what the name of its run says; it takes no second to start.
STUB = r'''
import json, os, re, signal, sys, time
from pathlib import Path
options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
output, settings = Path(options["output"]), Path(options["config"]).read_text()
batch = int(re.search(r"^batch_size: (\d+)$", settings, re.M)[1])
does = json.loads(os.environ["STUB"]).get(str(batch), "done")
output.mkdir(parents=True, exist_ok=True)
with open(output / "starts", "a") as file:
    file.write("x")
print("starting", batch, flush=True)
if does == "oom":
    sys.exit("sft.py: memory ran out while it was training\n  why: CUDA out of memory. Tried 3 GiB")
if does == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if does == "garbage":
    sys.stdout.buffer.write(b"\xff\x00\x1b[2J\nValueError: no such thing \xc3\n")
    (output / "run.json").write_bytes(b"\x00[")
    sys.exit(1)
if does == "empty":
    sys.exit(0)
if does == "time":
    sys.exit(75)
if does == "hang":
    def leave(number, frame):
        (output.parent / "signals").write_text(str(number))
        sys.exit(130)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    (output.parent / "ready").touch()
    time.sleep(60)
(output / "checkpoints" / "checkpoint-5").mkdir(parents=True)
(output / "adapter_model.safetensors").write_bytes(b"0" * 99)
slow = 0.8 if "checkpointing: true" in settings else 1.0
memory = 10**9 * (1 + batch * (0.1 if slow < 1 else 0.5))
metrics = {"step_s": 0.1 * batch / slow, "tokens_per_s": (900 + 100 * batch) * slow}
metrics["peak_gpu_bytes"] = int(memory)
record = {"status": "complete", "metrics": metrics, "host": {"device": "a stub"}}
record["sharing"] = {"strategy": "single", "checkpointing": slow < 1}
(output / "run.json").write_text(json.dumps(record))
(output / "metrics.jsonl").write_text("{}\n")
'''


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep_recipe", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Start = Callable[..., int]


@pytest.fixture
def start(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Run sweep.py in this process, with the stub in place of training: its exit status."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    real = recipe.measure
    monkeypatch.setattr(recipe, "measure", lambda *a: real(*a[:4], stub))
    for name in ("model", "data"):
        (tmp_path / name).touch()

    def plans(settings: list[dict[str, Any]], processes: int) -> list[Planned]:
        return [Planned(round(1e9 * (1 + s["batch_size"] / 2))) for s in settings]

    monkeypatch.setattr(recipe, "plan_runs", plans)

    def run(*options: object, does: dict[int, str] | None = None) -> int:
        monkeypatch.setenv("STUB", json.dumps(does or {}))
        given = ["--model", tmp_path / "model", "--data", tmp_path / "data"]
        given += ["--output", tmp_path / NAME]
        with pytest.raises(SystemExit) as end:
            run_recipe(recipe.sweep, [*map(str, given), *map(str, options)])
        assert isinstance(end.value.code, int)
        return end.value.code

    return run


def batches(*sizes: int) -> list[object]:
    return [word for size in sizes for word in ("--batch-size", size)]


def results(tmp_path: Path) -> dict[str, dict[str, Any]]:
    record = json.loads((tmp_path / NAME / "sweep.json").read_text())
    return {row["name"]: row for row in record["rows"]}


def starts(tmp_path: Path) -> list[str]:
    """Runs that were started, by their logs."""
    logs = sorted((tmp_path / NAME / "runs").glob("*.log"))
    return [log.stem for log in logs if log.read_bytes().startswith(b"starting")]


def test_table_best_and_changes(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("--checkpointing", "false", "--checkpointing", "true")
    assert start(*batches(4, 1), *both) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    heading = r"run +step s +tokens/s +peak GB +predicted +ratio +result"
    assert re.fullmatch(heading, lines[0])
    assert "best: checkpointing-false-batch-4, 1,300 tokens/s, 3.00 GB of GPU memory" in lines
    wanted = "checkpointing false -> true (batch 4): time per step +25 %, tokens/s -20 %, "
    assert wanted + "peak memory -53 %" in lines
    assert "batch 1 -> 4 (checkpointing false): tokens/s +30 %, peak memory +100 %" in lines
    more = "a row more in a batch (checkpointing false): 0.5 GB measured, 0.5 GB predicted"
    assert more in lines
    folder = tmp_path / NAME
    record = json.loads((folder / "sweep.json").read_text())
    assert record["status"] == "complete" and record["best"] == "checkpointing-false-batch-4"
    assert results(tmp_path)["checkpointing-false-batch-4"]["ratio"] == pytest.approx(1.0)
    for name in ("throughput.png", "memory.png"):
        assert (folder / name).read_bytes().startswith(PNG)
    text = (folder / "sweep.md").read_text()
    assert "| checkpointing-true-batch-1 | 0.125 | 800 | 1.10 | 1.50 | 0.73 | done |" in text
    assert "On a stub." in text


def test_only_the_numbers_stay(start: Start, tmp_path: Path) -> None:
    assert start(*batches(1, 2)) == 0
    for batch in (1, 2):
        kept = sorted(p.name for p in (tmp_path / NAME / "runs" / f"batch-{batch}").iterdir())
        assert kept == ["metrics.jsonl", "run.json"]


def test_ends_that_are_no_crash(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    does = {2: "garbage", 3: "empty", 4: "killed"}
    assert start(*batches(1, 2, 3, 4, 8), does=does) == 1
    rows = results(tmp_path)
    assert [rows[f"batch-{n}"]["status"] for n in (1, 2, 3, 4, 8)] == [
        "done",
        "failed",
        "failed",
        "out of memory",
        "out of memory",
    ]
    assert "ValueError: no such thing" in rows["batch-2"]["note"]
    assert "\x1b" not in rows["batch-2"]["note"]
    assert rows["batch-3"]["note"].startswith("it left no numbers")
    assert "signal 9" in rows["batch-4"]["note"]
    assert rows["batch-8"]["note"] == "not started: batch-4 ran out"
    assert "batch-8" not in starts(tmp_path)
    captured = capsys.readouterr()
    assert "ValueError: no such thing" in captured.err
    assert "batch 1 -> 4: out of memory" in captured.out
    assert "Traceback" not in captured.err


def test_out_of_memory_alone_is_no_failure(start: Start, tmp_path: Path) -> None:
    assert start(*batches(1, 4), does={4: "oom"}) == 0
    row = results(tmp_path)["batch-4"]
    assert row["status"] == "out of memory" and "memory" in row["note"]


def test_what_is_done_is_not_repeated(start: Start, tmp_path: Path) -> None:
    assert start(*batches(1, 2, 4), does={2: "garbage", 4: "oom"}) == 1
    logs = tmp_path / NAME / "runs"
    for log in logs.glob("*.log"):
        log.write_text("")
    assert start(*batches(1, 2, 3, 4)) == 0
    assert starts(tmp_path) == ["batch-2", "batch-3"]
    assert {n: row["status"] for n, row in results(tmp_path).items()} == {
        "batch-1": "done",
        "batch-2": "done",
        "batch-3": "done",
        "batch-4": "out of memory",
    }


def test_a_damaged_result_is_measured_again(start: Start, tmp_path: Path) -> None:
    assert start(*batches(1, 2)) == 0
    for number, text in enumerate((b"", b"[1]", b'{"name": 3}', b"\xff", b'{"axes": []}')):
        path = tmp_path / NAME / "runs" / f"batch-{1 + number % 2}.json"
        path.write_bytes(text)
        assert sweep_runs.read_row(path) is None
    assert start(*batches(1, 2)) == 0
    assert len(results(tmp_path)) == 2


def test_other_settings_need_another_folder(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*batches(1, 2)) == 0
    assert start(*batches(1, 2), "--set", "packing=true") == 2
    err = capsys.readouterr().err
    assert "is a sweep with other settings" in err
    assert "packing was False, now True" in err


def test_tasks_of_an_array_and_collect(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*batches(1, 2, 4), "--run-index", 2) == 0
    assert starts(tmp_path) == ["batch-4"]
    assert start(*batches(1, 2, 4), "--run-index", 0) == 0
    capsys.readouterr()
    assert start("--collect") == 0
    captured = capsys.readouterr()
    assert "not there yet: batch-2" in captured.err
    assert "best: batch-4" in captured.out
    assert (tmp_path / NAME / "memory.png").exists()
    assert start(*batches(1, 2, 4), "--run-index", 3) == 2
    assert "--run-index 3 names no run" in capsys.readouterr().err


def test_plan_starts_nothing(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*batches(1, 2), "--plan") == 0
    out = capsys.readouterr().out
    assert re.search(r"^batch-2 +1 +2\.00 ", out, re.M)
    assert not (tmp_path / NAME).exists()


def test_end_of_the_jobs_time(start: Start, tmp_path: Path) -> None:
    assert start(*batches(1, 2, 4), does={2: "time"}) == 75
    assert list(results(tmp_path)) == ["batch-1"]
    assert json.loads((tmp_path / NAME / "sweep.json").read_text())["status"] == "interrupted"
    assert start(*batches(1, 2, 4)) == 0


def test_runs_that_cannot_be_started(
    start: Start,
    recipe: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = {1: "", 2: "the model does not fit: no choice", 4: "no such thing\n  why: none"}
    monkeypatch.setattr(
        recipe, "plan_runs", lambda s, n: [Planned(fault=faults[p["batch_size"]]) for p in s]
    )
    assert start(*batches(1, 2, 4)) == 0
    assert starts(tmp_path) == ["batch-1"]
    states = {name: row["status"] for name, row in results(tmp_path).items()}
    assert states == {"batch-1": "done", "batch-2": "does not fit", "batch-4": "impossible"}
    faults[1] = faults[2] = faults[4]
    capsys.readouterr()
    assert start(*batches(1, 2), "--output", tmp_path / "other") == 2
    assert capsys.readouterr().err.count("no such thing") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_end_the_run_and_keep_the_rest(
    start: Start, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen.wait

    def wait(child: Any, timeout: float | None = None) -> Any:
        ready = tmp_path / NAME / "runs" / "ready"
        while timeout is None and child.poll() is None:
            if ready.exists():
                ready.unlink()
                os.kill(os.getpid(), number)
            time.sleep(0.01)
        return real(child, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    expected = 130 if number == signal.SIGINT else 143
    assert start(*batches(1, 2), does={2: "hang"}) == expected
    assert (tmp_path / NAME / "runs" / "signals").read_text() == str(int(number))
    assert list(results(tmp_path)) == ["batch-1"]


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (batches(2), ["there is nothing to sweep"]),
        ([], ["there is nothing to sweep"]),
        (["--method", "full", "--lora-rank", 8, "--lora-rank", 16], ["there is nothing to sweep"]),
        ([*batches(1, 2, 4), "--max-runs", 2], ["3 runs are more than --max-runs 2", "3 batch"]),
        ([*batches(0, 1), "--steps", 0], ["--batch-size 0 is not possible", "--steps 0"]),
        (
            [*batches(1, 2), "--set", "lr=3", "--set", "seed=x", "--set", "what"],
            ["unknown option --lr", "--set seed 'x' is not valid", "--set what says nothing"],
        ),
        (
            [*batches(1, 2), "--set", "batch_size=3", "--set", "save-every=1"],
            ["--set batch_size is no setting of all runs", "--set save_every can't be set"],
        ),
        ([*batches(1, 2), "--options", "/no such;file"], ["cannot read the configuration"]),
    ],
)
def test_wrong_use(
    start: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[object],
    messages: list[str],
) -> None:
    assert start(*options) == 2
    err = capsys.readouterr().err
    for message in messages:
        assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / NAME).exists()


def test_folders_of_others_stay(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    assert start(*batches(1, 2)) == 2
    assert start("--collect") == 2
    assert "is not the folder of a sweep" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_preset_gives_what_is_not_swept(start: Start, tmp_path: Path) -> None:
    preset = tmp_path / "a preset.yaml"
    preset.write_text("method: full\nbatch_size: 2\nmax_length: 99\nsave_every: 7\nseed: 5\n")
    assert start("--options", preset, "--dtype", "fp32", "--dtype", "bf16") == 0
    names = ["fp32-length-99-batch-2", "bf16-length-99-batch-2"]
    assert sorted(results(tmp_path)) == sorted(f"full-{name}" for name in names)
    rows = results(tmp_path).values()
    assert {row["axes"]["method"] for row in rows} == {"full"}
    assert {row["axes"]["lora_rank"] for row in rows} == {None}
    assert {row["fixed"]["seed"] for row in rows} == {5}
    settings = (tmp_path / NAME / "runs" / f"full-{names[0]}.yaml").read_text()
    assert "save_every: 0\n" in settings and "global_batch: 2\n" in settings


def test_a_run_that_another_sweep_measures(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with measuring_alone(tmp_path / NAME / "runs/.batch-1.lock", "sweep", "batch-1"):
        (tmp_path / NAME / "sweep.json").write_text('{"recipe": "finetune/sweep"}')
        assert start(*batches(1, 2)) == 2
    assert "another sweep is measuring batch-1" in capsys.readouterr().err


AXES = {
    "method": "lora",
    "strategy": "auto",
    "dtype": "auto",
    "checkpointing": "auto",
    "lora_rank": 16,
    "max_length": 1024,
    "batch_size": 1,
}


def row(name: str = "", status: str = "done", **axes: Any) -> Row:
    done = {"step_s": 1.0, "tokens_per_s": 100.0, "peak_bytes": 10**9, "memory": "GPU"}
    numbers: dict[str, Any] = done if status == "done" else {}
    return Row(name, AXES | axes, {}, status, **numbers)


def test_lora_is_compared_with_full_which_has_no_rank() -> None:
    full = replace(row(method="full", lora_rank=None), peak_bytes=4 * 10**9, step_s=2.0)
    lines = sweep_report.changes([row(lora_rank=8), row(lora_rank=16), full])
    assert lines[0].startswith("method lora -> full: time per step +100 %")
    assert "peak memory +300 %" in lines[0]
    assert lines[1].startswith("rank 8 -> 16 (lora): time per step about the same")
    assert len(lines) == 2


def test_nothing_is_compared_with_a_run_that_failed() -> None:
    assert sweep_report.changes([row(status="failed"), row(batch_size=2)]) == []
    assert sweep_report.best([row(status="out of memory")]) is None
    assert sweep_report.best_line([]) == "no run reached its end"


def test_names_are_the_same_when_values_are_added() -> None:
    point = sweep_points.point_name(AXES | {"batch_size": 4}, AXES)
    assert point == "batch-4"
    other = AXES | {"method": "full", "lora_rank": None, "checkpointing": True}
    assert sweep_points.point_name(other, AXES) == "full-checkpointing-true-batch-1"


@pytest.mark.parametrize(
    ("status", "tail", "expected"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", "out of memory"),
        (137, "", "out of memory"),
        (1, "exitcode  : -9 (pid: 12)", "out of memory"),
        (2, "sft.py: the model does not fit: no choice needs", "does not fit"),
        (0, "a warning about out of memory", "failed"),
        (1, "CUDA error: device-side assert", "failed"),
    ],
)
def test_what_an_end_means(status: int, tail: str, expected: str) -> None:
    point = sweep_points.Point("p", AXES, {})
    assert sweep_runs.judge(point, Planned(), status, {}, tail).status == expected


def test_warmup_is_the_recipes() -> None:
    pytest.importorskip("torch")
    from llm_recipes.training_numbers import FIRST_STEPS

    assert sweep_runs.WARMUP_STEPS == FIRST_STEPS


def test_real_runs(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    data = tmp_path / "it's; data.jsonl"
    texts = [{"text": f"{n} and {n + 1} " * (4 + n % 3)} for n in range(24)]
    data.write_text("".join(json.dumps(text) + "\n" for text in texts))
    command = [sys.executable, SCRIPT, "--model", model_folder, "--data", data, "--steps", 3]
    command += ["--output", tmp_path / NAME, *batches(1, 4), "--max-length", 64]
    environment = recipe_environment() | {"LLM_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    rows = results(tmp_path)
    assert sorted(rows) == ["length-64-batch-1", "length-64-batch-4"]
    for found in rows.values():
        assert found["status"] == "done"
        assert found["tokens_per_s"] > 0 and found["memory"] == "host"
        # Nearly all of it is the program itself, which the prediction has to count on a CPU.
        assert 0.7 < found["ratio"] < 1.4
        run = tmp_path / NAME / "runs" / found["name"]
        assert len((run / "metrics.jsonl").read_text().splitlines()) >= 5
        assert not (run / "checkpoints").exists()
        assert not list(run.glob("*.safetensors"))
