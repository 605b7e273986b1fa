"""generate.py on a terminal: streamed text, a conversation, a bar; a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from conftest import generate_command, recipe_environment
from paused import go_on, paused, wait_for_pause


class Terminal:
    """generate.py with a pseudo-terminal as standard input, output and error.

    pause: before which call of a function it stops itself.
    """

    def __init__(self, *arguments: object, pause: tuple[str, int] | None = None) -> None:
        self.main, other = pty.openpty()
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
        command = generate_command(arguments)
        self.process = subprocess.Popen(
            paused(*pause, command) if pause else command,
            env=recipe_environment(),
            preexec_fn=lambda: os.login_tty(other),
        )
        os.close(other)
        self.text = ""

    def type(self, text: str) -> None:
        """Send keys."""
        os.write(self.main, text.encode())

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """Read until the pattern appears after what was read before; what came until its end."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.main], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.text!r}"
            try:
                self.text += os.read(self.main, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                found = re.search(pattern, self.text)
                assert found, f"no {pattern!r} in {self.text!r}"
                break
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before


def test_a_single_prompt_is_streamed(model_folder: Path) -> None:
    terminal = Terminal("--model", model_folder, "--prompt", "The import", "--max-new-tokens", 200)
    # Text is there before the summary is, and no JSON.
    shown = terminal.wait_for(r"tokens/s")
    assert '{"id"' not in shown
    assert terminal.process.wait(60) == 0


def test_a_conversation(model_folder: Path) -> None:
    terminal = Terminal("--model", model_folder, "--chat", "--max-new-tokens", 4)
    assert "(or Ctrl-D) ends it" in terminal.wait_for("> ")
    for line in ("Hello there", "/reset", "/nonsense", "Again"):
        terminal.type(line + "\n")
        shown = terminal.wait_for(r"\n> ")
        assert ("/reset forgets" in shown) == (line == "/nonsense"), shown
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0


def test_ctrl_c_ends_an_answer_and_not_the_conversation(model_folder: Path) -> None:
    options = ("--model", model_folder, "--chat", "--max-new-tokens", 200)
    step = ("llm_recipes.running_batch:RunningBatch.step", 20)  # in the middle of the answer
    terminal = Terminal(*options, "--stop", "no such text", pause=step)
    terminal.wait_for("> ")
    terminal.type("Tell me everything\n")
    terminal.wait_for(r"everything\r\n.")
    pid = wait_for_pause(terminal.process)
    terminal.type("\x03")
    go_on(pid, signal.SIGINT)
    terminal.wait_for("\n> ")
    terminal.type("/quit\n")
    assert terminal.process.wait(60) == 0


def test_a_bar_on_a_terminal(model_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nc\n")
    terminal = Terminal(
        "--model",
        model_folder,
        "--prompts",
        prompts,
        "--max-new-tokens",
        3,
        "--output",
        tmp_path / "a.jsonl",
    )
    shown = terminal.wait_for(r"tokens/s")
    assert re.search(r"\d/3 \[", shown), shown
    assert terminal.process.wait(60) == 0
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 3
