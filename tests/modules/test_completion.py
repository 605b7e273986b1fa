"""Completion as a user meets it: in an interactive bash and zsh with the module loaded."""

from __future__ import annotations

import os
import pty
import re
import select
import time
from pathlib import Path

import pytest
from conftest import INIT, OLD, Modules, quoted


def type_into(modules: Modules, start_file: str, keys: str, wanted: str) -> str:
    """Start an interactive shell on a terminal and type keys; return what it shows.

    start_file: the user's ~/.bashrc or ~/.zshrc. Ends as soon as `wanted` is there, or after 20
    seconds.
    """
    program, flags = "/bin/bash", ["--rcfile", str(modules.home / ".bashrc"), "-i"]
    if modules.shell == "zsh":
        program, flags = str(modules.root / "bin/zsh"), ["-d", "-i"]
        (modules.home / ".zshenv").write_text(
            f"module_path=({modules.root}/usr/lib/*/zsh/*(/))\n"
            f"fpath=({modules.root}/usr/share/zsh/functions/**/*(/))\n")
    (modules.home / f".{modules.shell}rc").write_text(f"{start_file}\nPS1='ready> '\n")
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(modules.home)
        os.execve(program, [program, *flags], {
            "HOME": str(modules.home), "PATH": "/usr/bin:/bin", "TERM": "vt100",
            "LC_ALL": "C.UTF-8", "LLM_IMAGE_DIR": str(modules.home)})
    shown = ""
    try:
        shown = read_until(terminal, "ready> ", 20)
        assert "ready> " in shown, shown
        os.write(terminal, keys.encode())
        shown = read_until(terminal, wanted, 20)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return shown


def read_until(terminal: int, wanted: str, seconds: float) -> str:
    """Read from a terminal until a text is there, or the time is over."""
    shown, end = "", time.monotonic() + seconds
    while wanted not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
            shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|[\r\0]", "", shown)
    return shown


@pytest.fixture
def start_file(modules: Modules) -> str:
    """What the user's start file does: `module load` among other things."""
    (modules.home / "llm-cpu.sif").touch()
    (modules.home / "my file.txt").touch()
    lines = []
    if modules.shell == "bash":
        lines.append(f". {modules.root}/usr/share/bash-completion/bash_completion")
    lines += [f". {modules.root / INIT[modules.system] / modules.shell}",
              *(f"module use {quoted(path)}" for path in modules.paths)]
    load = f"module load llm/{OLD}"
    # zsh: in ~/.zshrc modules may be loaded before compinit.
    lines += [load, "autoload -Uz compinit", "compinit -D -u"] if modules.shell == "zsh" else [load]
    return "\n".join(lines)


@pytest.mark.parametrize("modules", ["bash", "zsh"], indirect=True)
def test_both_systems_load_it(modules: Modules, start_file: str) -> None:
    assert "--show-config " in type_into(modules, start_file, "llm-run --sh\t", "--show-config ")


@pytest.mark.parametrize("modules", ["bash", "zsh"], indirect=True)
@pytest.mark.parametrize("system", ["environment-modules"], indirect=True)
@pytest.mark.parametrize(("keys", "wanted"), [
    ("llm-run --image llm-c\t", "llm-cpu "),
    ("llm-run --image=llm-c\t", "--image=llm-cpu"),
    ("llm-run --site defau\t", "default "),
    ("llm-run --bind my\t", "my\\ file.txt"),
    ("llm-run --gpu --image llm-cpu cat my\t", "my\\ file.txt"),
    ("llm-run --gpu mkfif\t", "mkfifo"),
    ("llm-doctor --js\t", "--json "),
    ("llm-record rep\t", "replay "),
    ("llm-record replay my\t", "my\\ file.txt"),
])
def test_tab(modules: Modules, start_file: str, keys: str, wanted: str) -> None:
    assert wanted in type_into(modules, start_file, keys, wanted)


@pytest.mark.parametrize("modules", ["bash"], indirect=True)
@pytest.mark.parametrize("system", ["environment-modules"], indirect=True)
def test_without_bash_completion(modules: Modules, start_file: str) -> None:
    plain = start_file.partition("\n")[2]
    assert "mkfifo" in type_into(modules, plain, "llm-run mkfif\t", "mkfifo")
    keys = "llm-run --gpu cat my\t"
    assert "my\\ file.txt" in type_into(modules, plain, keys, "my\\ file.txt")


def test_the_files_can_be_used_without_a_module(systems: Path, tmp_path: Path) -> None:
    home = Path(__file__).resolve().parents[2]
    modules = Modules("environment-modules", "bash", systems, (), tmp_path)
    line = f"PATH={quoted(home)}/bin:$PATH; cd {quoted(home)}; . completions/llm.bash; cd"
    assert "--show-config" in type_into(modules, line, "llm-run --sh\t", "--show-config")
