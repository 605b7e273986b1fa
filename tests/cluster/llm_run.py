"""What the tests of llm-run under Slurm share: its path, a folder per test, jobs and their logs."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from box.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
LLM_RUN = str(REPOSITORY / "bin" / "llm-run")
# Small and quick to start: Python without torch.
SMALL = ("--image", "base")

# Counts to a number, two steps a second, and goes on where an earlier start was stopped: a training
# with checkpoints, without the training. Its first start does not get there by itself: what is to
# stop it comes in time on every machine.
COUNT = """
import os, sys, time
from llm_recipes.stop_signals import declare_unfinished, restarts, seconds_left, stop_requested
path, goal = sys.argv[1], int(sys.argv[2])
done = int(open(path).read()) if os.path.exists(path) else 0
print("from", done, "start", restarts(), "left", seconds_left(), flush=True)
while done < goal:
    time.sleep(0.5)
    done += restarts() > 0 or done < goal - 1
    with open(path + ".new", "w") as file:
        file.write(str(done))
    os.replace(path + ".new", path)
    if stop_requested():
        import sqlite3, xml.dom.minidom  # from the image, after the warning
        print("stopped at", done, flush=True)
        declare_unfinished()
        sys.exit()
print("counted to", done, flush=True)
"""


class Desk:
    """A user's folder for one test and what she does there."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.folder = cluster.home / name
        cluster.run(["mkdir", "-p", str(self.folder)], check=True)

    def run(
        self,
        command: str | list[str],
        cwd: Path | None = None,
        node: str = "login",
        timeout: float = 120,
        check: bool = False,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder."""
        folder = str(cwd or self.folder)
        return self.cluster.run(
            command, node=node, cwd=folder, timeout=timeout, check=check, env=env
        )

    def write(self, name: str, text: str) -> str:
        """Write a file of hers; return its name."""
        self.cluster.run(
            ["sh", "-c", 'cat > "$0"', name], cwd=str(self.folder), input=text, check=True
        )
        return name

    def sbatch(self, *words: str, wait: bool = True, timeout: float = 120) -> tuple[str, str]:
        """Submit `sbatch WORDS...`; return job id and, of a finished job, its log."""
        command = ["sbatch", "--parsable", "--output=%j.out", *(["--wait"] if wait else []), *words]
        done = self.run(command, timeout=timeout)
        job = done.stdout.strip()
        assert job.isdigit(), done.stderr
        return job, self.read(f"{job}.out") if wait else ""

    def submit(
        self, *words: str, image: Sequence[str] = SMALL, env: dict[str, str] | None = None
    ) -> str:
        """Submit by `llm-run --submit WORDS...`; return the job id."""
        done = self.run([LLM_RUN, "--submit", *image, *words], env=env)
        found = re.search(r"Submitted batch job (\d+)", done.stdout)
        assert found, done.stderr
        return found.group(1)

    def read(self, name: str) -> str:
        """Return what a file holds."""
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")

    def wait_for_text(self, name: str, words: str = "", timeout: float = 90) -> str:
        """Wait until a file holds something, and these words; return its text."""

        def look() -> str:
            return self.read(name) if (self.folder / name).exists() else ""

        return self.cluster.wait_until(
            look, lambda text: text != "" and words in text, timeout, f"no '{words}' in {name}"
        )

    def terminal(self, command: str, typed: str = "", timeout: float = 120) -> str:
        """Run a command on a pseudo-terminal; return what the screen shows.

        typed: for the shell that the command starts.
        """
        # `script` takes one string for a shell.
        screen = shlex.join(["script", "-qec", command, "/dev/null"])
        if typed:
            # A terminal forgets what is typed before the shell listens, and that takes its time.
            knock = f"echo {shlex.quote('touch ' + shlex.quote(f'{self.folder}/listens'))}"
            wait = f"rm -f listens; until [ -e listens ]; do {knock}; sleep 0.5; done"
            screen = f"{{ {wait}; printf %s {shlex.quote(typed)}; }} | {screen}"
        done = self.run(screen, timeout=timeout)
        return done.stdout + done.stderr

    def llm_run(self, *words: str) -> str:
        """Return `llm-run WORDS...` in the small image, quoted for a shell."""
        return shlex.join([LLM_RUN, *SMALL, *words])
