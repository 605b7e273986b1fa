"""The steps of a build, a function each: sandbox, normalise, test, publish; pack.py packs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from _llm.errors import LLMError
from _llm.images.catalog import Image
from _llm.images.registry import is_reference
from _llm.images.staging import fakeroot_flags, uninterrupted

TAIL_LINES = 30
# Variables that a program of an image, run while it is built, must not get from the host.
CLEAN = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "PYTHONHASHSEED=0")


class Log:
    """One build's log file: every program's output goes there, its tail is shown on failure."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.began = time.monotonic()

    def step(self, number: int, total: int, title: str) -> None:
        """Say on the terminal and in the log which step begins."""
        line = f"image: [{time.monotonic() - self.began:5.0f} s] {number}/{total} {title}"
        print(line, flush=True)
        with open(self.path, "a") as stream:
            stream.write(f"==== {line}\n")

    def run(self, command: Sequence[str | Path], env: Mapping[str, str], what: str) -> None:
        """Run a program with its output in the log.

        Raises LLMError with the log's tail when it fails.
        """
        with open(self.path, "a") as stream:
            stream.write("$ " + " ".join(str(word) for word in command) + "\n")
            stream.flush()
            process = subprocess.Popen(
                [str(word) for word in command], stdout=stream, stderr=stream,
                stdin=subprocess.DEVNULL, env=dict(env), start_new_session=True, umask=0o022)
            try:
                status = process.wait()
            except BaseException:
                stop_group(process)
                raise
        if status:
            tail = self.path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            raise LLMError(f"{what} failed (exit status {status})",
                           "the log ends with\n" + "\n".join(f"    | {line}" for line in tail),
                           f"the whole log: less '{self.path}'" + hint_for("\n".join(tail)))


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a program and everything that it started: first ask, then kill."""
    with uninterrupted():  # else the program would go on alone
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            try:
                process.wait(10)
                if number == signal.SIGTERM:
                    time.sleep(0.5)
            except subprocess.TimeoutExpired:
                continue


def hint_for(tail: str) -> str:
    """A cure for failures that are known by their message, "" for others."""
    if "No space left" in tail:
        return "\nthe disk is full: LLM_BUILD_DIR=/path/with/room make image"
    if "newuidmap" in tail or "subuid" in tail:
        return "\nthis user needs a range of subordinate ids: make setup says how"
    return ""


def make_sandbox(
    apptainer: str, image: Image, definition: str, arguments: Mapping[str, str],
    binds: Sequence[str], folder: Path, env: Mapping[str, str], log: Log,
) -> Path:
    """Build the image as a folder from its definition. Return the folder.

    apptainer: path of the program, here and in the other steps.
    """
    sandbox = folder / "sandbox"
    # %files paths are relative to the working directory, which is the image's folder.
    file = folder / "image.def"
    file.write_text(definition)
    options = [word for key, value in arguments.items() for word in ("--build-arg",
                                                                     f"{key}={value}")]
    # --force: without it a child keeps its parent's help, labels of the same name and scripts.
    command = [apptainer, "build", *fakeroot_flags(), "--force", "--sandbox", "--notest", *binds,
               *options, str(sandbox), str(file)]
    log.run(["env", "-C", image.folder, *command], env, f"building {image.label}")
    return sandbox


def normalise(
    apptainer: str, sandbox: Path, binds: Sequence[str], day: str, env: Mapping[str, str], log: Log,
) -> None:
    """Remove from the sandbox what depends on when, where and by whom it was built.

    The sandbox's own Python does it, in a container of the sandbox that sees it a second time as
    /mnt/tree, because there the files of other users can be changed. day: YYYY-MM-DD. binds: of the
    staging folder, which has the folder `tree`.
    """
    log.run([apptainer, "exec", *fakeroot_flags(), "--no-home", "--no-mount", "tmp,cwd,bind-paths",
             *binds[:2], "--bind", f"{sandbox}:/mnt/tree", sandbox, *CLEAN, "python3", "-S", "-s",
             "-B", "/mnt/normalise.py", "/mnt/tree", day, sandbox.parent.name], env, "normalising")


def smoke_test(
    apptainer: str, image_file: Path, flags: Sequence[str], env: Mapping[str, str], log: Log,
) -> None:
    """Run the image's own %test, and with it those of its parents."""
    log.run([apptainer, "test", *flags, "--cleanenv", "--no-home", image_file], env,
            "the image's smoke test")


def effective_definition(text: str, base: str) -> str:
    """Return a definition with its header replaced by another base, "" for its own.

    base: `docker://NAME:TAG`, `oci-archive:FILE`, or the path of an image file or folder; see
    absolute_base for paths that are relative.
    """
    if not base:
        return text
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("%"))
    agent, _, source = base.partition(":")
    if not source or os.path.exists(base):
        agent, source = "localimage", base
    header = [f"Bootstrap: {agent}", f"From: {source.removeprefix('//')}", ""]
    return "\n".join([*header, *lines[first:]]) + "\n"


def absolute_base(base: str) -> str:
    """Return BASE with its path, if it has one, made absolute: builds run in another folder.

    Raises LLMError for what has no hash that could be an input: a folder, and all that is neither a
    file nor in a registry.
    """
    if not base or is_reference(base):
        return base
    file = file_of_base(base)
    if file is None:
        there = os.path.exists(base) or os.path.exists(base.partition(":")[2])
        raise LLMError(
            f"BASE={base}: an image can't begin with it",
            "it is a folder, of whose content an image's name would say nothing" if there
            else "there is no such file",
            "BASE=docker://NAME:TAG, oci-archive:FILE or an image file"
            + (f"   (apptainer build base.sif '{base}' makes one of a folder)" if there else ""))
    agent = "" if os.path.exists(base) else base.partition(":")[0] + ":"
    return f"{agent}{os.path.abspath(file)}"


def file_of_base(base: str) -> Path | None:
    """The file that BASE names, as it is or behind `AGENT:`; None where it names none."""
    for path in (base, base.partition(":")[2]):
        if os.path.isfile(path):
            return Path(path)
    return None


def publish(part: Path, target: Path) -> None:
    """Give a finished image its name."""
    with open(part, "rb") as stream:
        os.fsync(stream.fileno())
    part.chmod(0o755)
    os.replace(part, target)


def set_link(target: Path, link: Path) -> None:
    """Let `link` name `target`, without a moment in which it names nothing."""
    if link.is_symlink() and os.readlink(link) == target.name:
        return
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    os.replace(part, link)
