"""The command line: all faults at once, and the exit status says what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("jsonargparse")

from conftest import recipe_environment

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, raise_all

# What JSON and YAML escape in their own ways.
ODD = '\U0001f600 \x7f\x85\u2028\ufeff"\\\n\\ud83d\\ude00'
seen: list[dict[str, object]] = []


def recipe(
    model: str,
    prompt: list[str] | None = None,
    output: Path | None = None,
    batch_size: int | Literal["auto"] = "auto",
    top_p: float = 1.0,
    chat: bool = False,
    stream: bool | None = None,
) -> None:
    """A recipe.

    Args:
        model: A model.
    """
    seen.append(dict(locals()))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_recipe(recipe, arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_values_arrive_typed() -> None:
    given = ["--model", "12", "--prompt", "a: b", "--prompt=null", "--prompt", "--b", "--chat"]
    given += ["--prompt", ODD]
    assert run(*given, "--no-stream", "--batch-size", "8", "--output", "/a;b ü/'c'") == 0
    assert seen[-1] == {
        "model": "12",
        "prompt": ["a: b", "null", "--b", ODD],
        "output": Path("/a;b ü/'c'"),
        "batch_size": 8,
        "top_p": 1.0,
        "chat": True,
        "stream": False,
    }


def test_all_faults_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("model: x\n\nbatchsize: 3\nbatch_size: many\n")
    count = len(seen)
    assert run("--config", str(config), "--modle", "x", "stray", "--top-p", "much") == 2
    assert len(seen) == count
    error = capsys.readouterr().err
    assert "unknown option --modle\n  fix: did you mean --model?" in error
    assert "argument 'stray' belongs to no option" in error
    assert "--top-p 'much' is not valid\n  why: expected a number" in error
    assert f"{config}, line 3: unknown key 'batchsize'\n  fix: did you mean batch_size?" in error
    assert f"{config}, line 4: batch_size 'many' is not valid" in error
    assert "expected a whole number or auto" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "option --model is missing"),
        (["--model"], "option --model has no value"),
        (["--model", "--chat"], "option --model has no value"),
        (["--model=x", "--prompt", os.fsdecode(b"caf\xe9")], "--prompt is not UTF-8"),
        (["--model=x", "--config", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
    ],
)
def test_one_fault(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["model: [", "- a", "\xff"])
def test_bad_configuration_file(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_bytes(text.encode("latin1"))
    assert run("--config", str(config)) == 2
    error = capsys.readouterr().err
    assert str(config) in error
    assert "Traceback" not in error


def test_values_override_the_file_and_print_config_shows_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("model: x\ntop_p: 0.5\nprompt: [a, b]\n")
    assert run("--config", str(config), "--top-p", "0.7") == 0
    assert (seen[-1]["top_p"], seen[-1]["prompt"]) == (0.7, ["a", "b"])
    assert run("--config", str(config), "--print_config") == 0
    assert "batch_size: auto" in capsys.readouterr().out


def test_errors_of_the_recipe_are_printed_as_three_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing() -> None:
        """Fail twice."""
        raise_all([LLMError("first", "because\nof two", "do it"), LLMError("second")])

    with pytest.raises(SystemExit) as end:
        run_recipe(failing, [])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "first\n  why: because\n       of two\n  fix: do it\n" in error
    assert "second\n" in error


@pytest.mark.parametrize(("rank", "said"), [("0", "unknown option --lr"), ("1", "")])
def test_of_torchruns_processes_the_first_says_it(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(rate: float = 1.0) -> None:
        """Take a rate."""

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("llm_recipes.cli.SECONDS_FOR_THE_FIRST", 0.0)
    with pytest.raises(SystemExit) as end:
        run_recipe(recipe, ["--lr", "3"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and (said in error if said else error == "")


def process(body: str, **environment: str) -> subprocess.Popen[str]:
    code = (
        "import sys, time\nfrom llm_recipes.cli import run_recipe\n"
        f"def recipe() -> None:\n    '''Wait.'''\n    {body}\nrun_recipe(recipe, [])\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**recipe_environment(), **environment},
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number: signal.Signals, status: int) -> None:
    waiting = "try:\n        print('ready', flush=True); time.sleep(60)\n    finally: print('kept')"
    with process(waiting) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        os.kill(running.pid, number)
        out, error = running.communicate(timeout=30)
    assert (running.returncode, out) == (status, "kept\n")
    assert "Traceback" not in error


def test_ctrl_c_after_the_end_is_no_traceback() -> None:
    late = "import atexit, os; atexit.register(os.kill, os.getpid(), 2)"  # as if while tidying up
    with process(late) as running:
        _, error = running.communicate(timeout=30)
    assert (running.returncode, error) == (0, "")


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("print('done')", 0, ""),
        ("return 75", 75, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit('a reason')", 1, "a reason"),
        ("[][1]", 1, "IndexError"),
        ("signal.raise_signal(15)", 143, "terminated"),
    ],
)
def test_a_process_of_torchrun_ends_before_python_tidies_up(
    end: str, status: int, said: str
) -> None:
    kept = (
        "import atexit, signal\n    class Kept:\n        def __del__(self): print('tidied')\n"
        f"    global kept; kept = Kept(); atexit.register(print, 'at the end')\n    {end}"
    )
    for environment, tidied in (({}, True), ({"TORCHELASTIC_RUN_ID": "1"}, False)):
        with process(kept, **environment) as running:
            out, error = running.communicate(timeout=30)
        assert running.returncode == status and said in error, error
        assert "at the end\n" in out and ("tidied" in out) is tidied


GLOO = """
import os, socket, sys, torch
import torch.distributed as dist
from llm_recipes.cli import run_recipe
def recipe() -> None:
    '''Add up, and leave while a thread of gloo may still hold a tensor.'''
    dist.init_process_group("gloo")
    sys.kept = dist.group.WORLD
    sys.setswitchinterval(1000)  # or the thread is mostly done before Python tidies up
    for _ in range(200):
        dist.all_reduce(torch.ones(4))
    dist.destroy_process_group()
os.environ |= {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
for _ in range(8):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        os.environ["MASTER_PORT"] = str(listening.getsockname()[1])
    children = []
    for rank in range(2):
        os.environ["RANK"] = str(rank)
        children.append(os.fork())
        if not children[-1]:
            run_recipe(recipe, [])
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
"""


def test_gloos_threads_do_not_abort_a_process_at_its_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GLOO],
        capture_output=True, text=True, timeout=120, env=recipe_environment(),
    )  # fmt: skip
    # Without the care, one of the sixteen is aborted nearly always.
    assert done.stdout == "[0, 0]\n" * 8, done.stdout + done.stderr


def test_what_libraries_say_of_themselves_is_left_out() -> None:
    warning = (
        "import warnings, logging; warnings.warn('old', FutureWarning)\n"
        "    log = logging.getLogger('DeepSpeed'); log.setLevel(logging.WARNING)\n"
        "    log.warning('no accelerator'); log.error('broken')"
    )
    with process(warning) as running:
        _, error = running.communicate(timeout=30)
    assert error == "broken\n"


def test_reader_that_goes_away() -> None:
    with process("for i in range(10**6): print(i)") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        error = running.stderr.read()
        assert running.wait(timeout=30) == 141
    assert error == ""
