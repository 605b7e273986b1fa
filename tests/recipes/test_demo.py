"""recipes/demo.sh, the story of `make demo`: all of its steps, each with little to do."""

from __future__ import annotations

import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RECIPES, recipe_environment

# In the place of bin/llm-run: we are in the image already. What takes long is made short.
LAUNCHER = """#!/bin/sh
[ "$1 $2 $3" = "--image llm-cpu python" ] || exit 99
shift 3
echo "$@" >>"$LAUNCHED"
case $1 in
*/tiny.py) set -- "$@" --steps 20 --vocab-size 1024 ;;
*/digits.py) set -- "$@" --train 48 --test 40 ;;
*/sft.py) set -- "$@" --max-steps 2 ;;
*/harness.py) set -- "$@" --limit 4 ;;
*/quantize.py) set -- "$@" --quality false --speed false ;;
esac
[ "$1" != "$FAILS" ] || exit 7
exec {python} "$@"
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "it's my llm; ü"
    shutil.copytree(RECIPES, folder / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    launcher = folder / "bin" / "llm-run"
    launcher.parent.mkdir()
    launcher.write_text(LAUNCHER.replace("{python}", shlex.quote(sys.executable)))
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    return folder


def demo(checkout: Path, *arguments: str, fails: str = "") -> subprocess.CompletedProcess[str]:
    """The demo from another folder; its launched.txt lists what was started."""
    log = checkout / "launched.txt"
    log.unlink(missing_ok=True)
    env = {**recipe_environment(), "PYTHONPATH": str(checkout / "recipes")}
    env |= {"LAUNCHED": str(log), "FAILS": fails, "LLM_CACHE_DIR": str(checkout / "cache")}
    script = str(checkout / "recipes" / "demo.sh")
    return subprocess.run(
        ["sh", script, *arguments],
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )


def started(checkout: Path) -> list[str]:
    return [line.split()[0] for line in (checkout / "launched.txt").read_text().splitlines()]


def test_the_whole_story_and_its_repetition(checkout: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
    first = demo(checkout, "it's 2 + 3 =")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stderr.count("Traceback") == 0
    report = checkout / "build" / "demo" / "report" / "report.html"
    assert f"The report: {report}" in first.stdout and report.is_file()
    page = report.read_text(encoding="utf-8")
    for name in ("llm_arithmetic_1d", "llm_pydocs_choice", "digits", "Q4_K_M"):
        assert name in page
    verdict = first.stdout.split("The verdict on the new task")[1]
    assert "quantized" in verdict and "base" in verdict
    assert "'it'\\''s 2 + 3 ='" in first.stdout  # as it would be typed
    assert len(started(checkout)) == 16
    made = contents(checkout)
    start = time.monotonic()
    again = demo(checkout)
    print(f"the second time: {time.monotonic() - start:.1f} s")
    assert again.returncode == 0, again.stderr
    # Models, data and evaluations are the same files; nothing was made again.
    assert contents(checkout) == made
    said = again.stdout + again.stderr
    assert said.count("nothing to do") == 11, said
    # Another version of the story: what the first one made is not taken for its own.
    with (checkout / "recipes" / "demo.sh").open("a") as file:
        file.write("# other settings\n")
    stopped = demo(checkout, fails="recipes/evaluate/harness.py")
    assert stopped.returncode == 7 and "3. Before" in stopped.stderr
    left = {path.name for path in (checkout / "build" / "demo").iterdir()}
    assert left == {"tiny-llama", "digits", "inputs"}


def contents(checkout: Path) -> dict[str, int]:
    """Files of models, data and evaluations, and when they were written."""
    folder = checkout / "build" / "demo"
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name[0] != "."
        and path.relative_to(folder).parts[0] not in ("report", "compared")
        and (path.suffix == ".gguf" or path.parent.name != "quantized")
    }


def test_it_stops_at_the_first_step_that_fails(checkout: Path) -> None:
    done = demo(checkout, fails="recipes/data/tiny.py")
    assert done.returncode == 7
    assert started(checkout) == ["recipes/data/tiny.py"]
    assert 'stopped at "1. A tiny model' in done.stderr and "status 7" in done.stderr
    assert "The report" not in done.stdout


def test_the_plan_starts_nothing(checkout: Path) -> None:
    done = demo(checkout, "--plan")
    assert done.returncode == 0 and not (checkout / "launched.txt").exists()
    assert done.stdout.count("bin/llm-run --image llm-cpu python recipes/") == 16
