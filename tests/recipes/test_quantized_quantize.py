"""recipes/quantized/quantize.py, on tiny models: files, what is said before, resuming, table."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="llama.cpp is not here")

from conftest import RECIPES, recipe_environment

from llm_recipes.errors import LLMError
from llm_recipes.gguf.file import read_gguf

SCRIPT = RECIPES / "quantized" / "quantize.py"
Quantize = Callable[..., int]
NO_MEASURES = {"quality": False, "speed": False}


@pytest.fixture(scope="module")
def quantize() -> Quantize:
    spec = importlib.util.spec_from_file_location("quantize_recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Quantize = module.quantize
    return function


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def start(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=120,
        env=recipe_environment(),
        **options,
    )


def faults_of(work: Callable[[], object]) -> list[LLMError]:
    with pytest.raises((LLMError, ExceptionGroup)) as caught:
        work()
    error = caught.value
    return list(error.exceptions) if isinstance(error, ExceptionGroup) else [error]  # type: ignore[arg-type]


def files_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.gguf")
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two parts of Python's manual: for the importance matrix, and to measure with."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("texts; ü")
    names = sorted(topics)
    first, second = folder / "first's.txt", folder / "second.txt"
    first.write_text("\n\n".join(topics[name] for name in names[:10]))
    second.write_text("\n\n".join(topics[name] for name in names[10:20]))
    return first, second


@pytest.fixture(scope="module")
def measured(
    texts: tuple[Path, Path], trained_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with everything, by the command line as a user types it."""
    folder = tmp_path_factory.mktemp("quantized") / "models of mine's; ü"
    done = start(
        *("--model", trained_gguf, "--output", folder, "--types", "q8_0,Q4_K,q2_k"),
        *("--importance-text", texts[0], "--evaluate-text", texts[1]),
        *("--importance-chunks", 8, "--chunks", 4, "--threads", 1),
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


def test_files_table_and_record(measured: Path) -> None:
    models = sorted(path.name for path in measured.glob("trained-*.gguf"))
    assert models == [f"trained-{name}.gguf" for name in ("Q2_K", "Q4_K_M", "Q8_0")]
    assert len(list(measured.glob("importance-*.gguf"))) == 1
    found = json.loads((measured / "quality.json").read_text())
    rows = {row["type"]: row for row in found["rows"]}
    assert list(rows) == ["F16", "Q8_0", "Q4_K_M", "Q2_K"]
    assert rows["F16"]["is_source"] and rows["F16"]["quality"]["kl_mean"] == 0
    divergences = [rows[name]["quality"]["kl_mean"] for name in ("Q8_0", "Q4_K_M", "Q2_K")]
    assert divergences == sorted(divergences)
    for name, row in rows.items():
        assert row["bytes"] == (measured / row["file"]).stat().st_size if name != "F16" else True
        assert row["speed"]["prompt"]["mean"] > row["speed"]["new"]["mean"] / 2 > 0
        assert 0 < row["speed"]["mbu"] < 5
        assert row["memory_bytes"] > row["bytes"] / 2
        assert row["importance"] == (name in ("Q4_K_M", "Q2_K"))
    assert found["text"]["name"] == "second.txt" and found["chunks"] == 4
    lines = list(csv.DictReader((measured / "quality.csv").open()))
    assert [line["type"] for line in lines] == list(rows)
    assert float(lines[3]["kl_mean"]) == rows["Q2_K"]["quality"]["kl_mean"]
    shown = (measured / "stdout.txt").read_text().splitlines()
    assert shown[0].split()[:3] == ["type", "bits", "MB"] and "same top %" in shown[0]
    assert shown[1].startswith("F16 (source)") and shown[4].startswith("Q2_K")
    assert (measured / "quality.md").read_text().count("\n| ") == 4
    assert (measured / "quality.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((measured / "run.json").read_text())
    assert (record["recipe"], record["status"]) == ("quantized/quantize", "complete")
    assert not [p.name for p in measured.iterdir() if "partial" in p.name or ".tmp" in p.name]
    held = read_gguf(measured / "trained-Q2_K.gguf").metadata
    assert held["quantize.imatrix.file"].startswith("importance-")  # no folder of this machine
    assert held["quantize.imatrix.dataset"] == "first's.txt"


def test_the_same_again_makes_and_measures_nothing(
    measured: Path,
    texts: tuple[Path, Path],
    trained_gguf: Path,
    quantize: Quantize,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llm_recipes.gguf import programs, watched_programs

    def refuse(*arguments: Any, **_options: Any) -> Any:
        raise AssertionError(arguments)

    before = files_in(measured)
    text = (measured / "quality.json").read_bytes()
    started: list[str] = []
    whole = programs.started_program

    def watch(arguments: Any, *rest: Any, **options: Any) -> Any:
        started.append(Path(arguments[0]).name)
        assert "--version" in arguments, arguments
        return whole(arguments, *rest, **options)

    monkeypatch.setattr(programs, "started_program", watch)
    monkeypatch.setattr(watched_programs, "started_program", refuse)
    settings = {"importance_text": str(texts[0]), "evaluate_text": str(texts[1])}
    settings |= {"importance_chunks": 8, "chunks": 4, "threads": 1}
    assert quantize(trained_gguf, measured, ["Q8_0,Q4_K_M,Q2_K"], **settings) == 0
    assert started  # llama-bench, for its version: the watch sees what is started
    assert files_in(measured) == before
    again = json.loads((measured / "quality.json").read_text())
    assert [{**r, "speed": 0} for r in again["rows"]] == [
        {**r, "speed": 0} for r in json.loads(text)["rows"]
    ]


def test_speeds_of_another_machine_are_not_ours(measured: Path) -> None:
    from dataclasses import replace

    from llm_recipes.gguf.bench_results import read_results
    from llm_recipes.gguf.quality_run import is_of_this_machine

    results = read_results(measured)
    assert results and all(map(is_of_this_machine, results))
    for name in ("cpu_info", "gpu_info"):
        other = replace(results[0], build={**results[0].build, name: "Another One 9000"})
        assert not is_of_this_machine(other)


def test_only_what_is_missing_or_damaged_is_made(
    quantize: Quantize, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make = lambda types: quantize(tiny_gguf, tmp_path, types, **NO_MEASURES)  # noqa: E731
    assert make(["Q8_0", "Q4_K_M", "Q2_K", "Q6_K"]) == 0
    before = files_in(tmp_path)
    (tmp_path / "tiny's F32; ü-Q8_0.gguf").rename(tmp_path / "elsewhere")
    stem = "tiny's; ü"
    names = sorted(before)
    assert names == [
        f"{'tiny' + chr(39) + 's F32; ü'}-{n}.gguf" for n in ("Q2_K", "Q4_K_M", "Q6_K", "Q8_0")
    ], stem
    with (tmp_path / names[0]).open("r+b") as file:  # cut off
        file.truncate(1000)
    (tmp_path / names[1]).write_bytes(b"")
    os.utime(tmp_path / names[2])  # copied, say: the same bytes at another time
    capsys.readouterr()
    assert make(["Q8_0", "Q4_K_M", "Q2_K", "Q6_K"]) == 0
    said = capsys.readouterr().err
    assert "cut off since it was made, and made again" in said
    after = files_in(tmp_path)
    assert {name: held for name, (_, held) in after.items()} == {
        name: held for name, (_, held) in before.items()
    }
    assert after[names[2]][0] != before[names[2]][0]  # untouched since


def test_a_changed_file_is_somebodys_work(
    quantize: Quantize, tiny_gguf: Path, tmp_path: Path
) -> None:
    make = lambda **o: quantize(tiny_gguf, tmp_path, ["Q8_0"], **NO_MEASURES, **o)  # noqa: E731
    assert make() == 0
    [made] = tmp_path.glob("*.gguf")
    before = made.read_bytes()
    changed = before[:-9] + b"something"
    made.write_bytes(changed)
    [fault] = faults_of(make)
    assert "was changed since it was made" in fault.what and "--overwrite" in fault.fix
    assert made.read_bytes() == changed
    assert make(overwrite=True) == 0
    assert made.read_bytes() == before


def test_the_model_is_never_replaced(quantize: Quantize, tiny_gguf: Path, tmp_path: Path) -> None:
    assert quantize(tiny_gguf, tmp_path, ["Q4_K_M"], **NO_MEASURES) == 0
    [made] = tmp_path.glob("*.gguf")
    before = made.read_bytes()
    options = {"allow_requantize": True, "pure": True, "overwrite": True, **NO_MEASURES}
    [fault] = faults_of(lambda: quantize(made, tmp_path, ["Q4_K_M"], **options))
    assert "is the model itself" in fault.what
    assert made.read_bytes() == before


def test_other_settings_do_not_replace_silently(
    quantize: Quantize, tiny_gguf: Path, trained_gguf: Path, tmp_path: Path
) -> None:
    assert quantize(tiny_gguf, tmp_path, ["Q4_0"], **NO_MEASURES) == 0
    [made] = tmp_path.glob("*.gguf")
    before = made.read_bytes()
    again = lambda **options: quantize(  # noqa: E731
        tiny_gguf, tmp_path, ["Q4_0"], output_type="Q8_0", **NO_MEASURES, **options
    )
    [fault] = faults_of(again)
    assert "with other settings" in fault.what and "output was None, now 'Q8_0'" in fault.why
    assert made.read_bytes() == before
    assert again(overwrite=True) == 0
    assert made.read_bytes() != before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / made.name).write_bytes(b"somebody's")
    [fault] = faults_of(lambda: quantize(tiny_gguf, foreign, ["Q4_0"], **NO_MEASURES))
    assert "is there already" in fault.what
    assert (foreign / made.name).read_bytes() == b"somebody's"


def test_all_faults_at_once_before_anything_is_written(quantize: Quantize, tmp_path: Path) -> None:
    output = tmp_path / "out"
    found = faults_of(
        lambda: quantize(
            tmp_path / "none.gguf",
            output,
            ["Q4_K_X,Q8_0", "Q3"],
            importance_text=str(tmp_path / "none.txt"),
            chunks=-1,
            jobs=0,
            output_type="Q4_K_M",
            scratch=tmp_path / "no folder",
        )
    )
    whats = "\n".join(fault.what for fault in found)
    for words in (
        *("type Q4_K_X", "type Q3", "none.gguf", "none.txt", "--chunks -1", "--jobs 0"),
        *("--output-type Q4_K_M", "no folder"),
    ):
        assert words in whats
    assert not output.exists()


def test_types_that_need_a_matrix_say_so_before(
    quantize: Quantize, tiny_gguf: Path, tmp_path: Path
) -> None:
    [fault] = faults_of(
        lambda: quantize(tiny_gguf, tmp_path / "o", ["IQ2_XXS,Q4_0,Q2_K_S"], **NO_MEASURES)
    )
    assert fault.what.startswith("Q2_K_S, IQ2_XXS can't be made without an importance matrix")
    assert not (tmp_path / "o").exists()


def test_a_quantized_source_loses_twice(
    quantize: Quantize, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(tiny_gguf, tmp_path, ["Q8_0", "Q4_0"], **NO_MEASURES)
    eight, four = sorted(tmp_path.glob("*Q8_0.gguf")) + sorted(tmp_path.glob("*Q4_0.gguf"))
    [fault] = faults_of(lambda: quantize(four, tmp_path / "o", ["Q2_K"], **NO_MEASURES))
    assert "quantized already (Q4_0)" in fault.what and "--allow-requantize" in fault.fix
    assert quantize(four, tmp_path / "o", ["Q2_K"], allow_requantize=True, **NO_MEASURES) == 0
    assert "its own losses are in no figure" in capsys.readouterr().err
    assert quantize(eight, tmp_path / "o8", ["Q4_K_M"], **NO_MEASURES) == 0
    [made] = (tmp_path / "o8").glob("*.gguf")
    assert made.name == "tiny's F32; ü-Q4_K_M.gguf"


def test_damaged_sources_are_refused(quantize: Quantize, tiny_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-5000])
    (tmp_path / "no.gguf").write_bytes(b"PK\x03\x04 and so on")
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name, words in (("cut", "is cut off"), ("no", "is no GGUF"), ("empty", "is no GGUF")):
        [fault] = faults_of(
            lambda n=name: quantize(tmp_path / f"{n}.gguf", tmp_path / "o", **NO_MEASURES)
        )  # type: ignore[misc]
        assert words in fault.what
    assert not (tmp_path / "o").exists()


def test_only_the_plan(
    quantize: Quantize, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert quantize(tiny_gguf, output, ["Q8_0,Q4_K_M,F32"], plan=True, **NO_MEASURES) == 0
    said = capsys.readouterr().err
    assert "F32 is the model's own type already" in said
    assert [line.split()[0] for line in said.splitlines() if "missing" in line] == [
        "Q8_0",
        "Q4_K_M",
    ]
    assert not output.exists()


def test_no_room_is_said_with_all_sizes(
    quantize: Quantize, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    small = usage._replace(free=20_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: small)
    [fault] = faults_of(
        lambda: quantize(tiny_gguf, tmp_path / "o", ["Q8_0,Q4_K_M,F16,BF16"], **NO_MEASURES)
    )
    assert "no space left" in fault.what and "fewer --types" in fault.fix
    assert all(name in fault.why for name in ("Q8_0 1.55 MB", "Q4_K_M 0.9", "F16 2.", "are free"))
    assert not (tmp_path / "o").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_fills_up(tiny_gguf: Path, tmp_path: Path) -> None:
    """Something else fills it while a file is written: the check before cannot know."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1700k", "tmpfs", str(small)])
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        code = (
            "import runpy, shutil, sys; real = shutil.disk_usage;"
            "shutil.disk_usage = lambda p: real('/');"  # as if there had been room
            f"sys.argv = {['quantize.py', *_options(tiny_gguf, small / 'out', 'Q8_0,Q2_K')]!r};"
            f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=recipe_environment(),
            timeout=120,
        )
        assert done.returncode == 2, done.stderr
        assert "no space left" in done.stderr or "failed" in done.stderr
        assert "Traceback" not in done.stderr and "what is done is kept" in done.stderr
        left = [p.name for p in (small / "out").iterdir() if p.suffix in (".gguf", ".partial")]
        assert left == ["tiny's F32; ü-Q8_0.gguf"]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def _options(model: Path, output: Path, types: str) -> list[str]:
    return [
        *("--model", str(model), "--output", str(output), "--types", types),
        *("--no-quality", "--no-speed"),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_leaves_no_half_file(
    number: int, trained_gguf: Path, tmp_path: Path
) -> None:
    """A program in the place of llama-quantize writes a part and waits."""
    tools = tmp_path / "tools"
    tools.mkdir()
    marker = tmp_path / "started"
    fake = tools / "llama-quantize"
    fake.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case $word in *.partial) echo half > "$word" ;; esac; done\n'
        f'echo $$ > "{marker}"; exec sleep 60\n'
    )
    fake.chmod(0o755)
    output = tmp_path / "out"
    env = {**recipe_environment(), "PATH": f"{tools}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        command(*_options(trained_gguf, output, "Q8_0,Q4_0")),
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not marker.exists() or not marker.read_text().strip():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    child = int(marker.read_text())
    assert list(output.glob(".*.partial"))
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "the same command goes on" in said and "Traceback" not in said
    assert not [path for path in output.iterdir() if path.suffix in (".gguf", ".partial")]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert json.loads((output / "run.json").read_text())["status"] == "interrupted"


def test_two_at_once_and_a_lock(quantize: Quantize, tiny_gguf: Path, tmp_path: Path) -> None:
    from llm_recipes.run_folder import RunFolder

    assert quantize(tiny_gguf, tmp_path, ["Q8_0,Q4_K_M,Q6_K"], jobs=2, **NO_MEASURES) == 0
    assert len(list(tmp_path.glob("*.gguf"))) == 3
    with RunFolder(tmp_path).locked():
        [fault] = faults_of(lambda: quantize(tiny_gguf, tmp_path, ["Q2_K"], **NO_MEASURES))
    assert "another run is writing" in fault.what
