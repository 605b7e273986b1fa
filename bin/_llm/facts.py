"""What llm-run must know of an image before it starts a program there, asked once per image.

The packages of `pip install --user` have to fit the image's Python and torch, and must not replace
what the image brings. Asking takes a start of the image, so the answer is kept in the user's cache.
"""

from __future__ import annotations

import os

from _llm.errors import LLMError
from _llm.image_digest import keep, with_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _llm.lookup import Image

# Prints the versions, then every distribution as a constraint for pip. Packaging tools are left
# out: builds from source ask for versions of their own, and no program depends on them.
QUESTION = """
import importlib.metadata, sys
print("python %d.%d" % sys.version_info[:2])
found = {}
for item in importlib.metadata.distributions():
    name = (item.metadata["Name"] or "").lower().replace("_", "-")
    if name:
        found.setdefault(name, item.version)
print("torch " + found.get("torch", ""))
for name in sorted(set(found) - {"pip", "setuptools", "wheel"}):
    print(name + "==" + found[name])
"""


class Facts:
    """Versions in an image, "" for what it does not have, and the file that names all of them."""

    __slots__ = ("constraints", "python", "torch")

    def __init__(self, python: str, torch: str, constraints: str) -> None:
        self.python = python
        self.torch = torch
        self.constraints = constraints


def image_facts(image: Image, start: list[str], cache: str, local: str) -> Facts:
    """Return the facts about `image`, from the cache or from the image.

    start: the command line that starts the image, up to and with its path. cache: the user's
    cache folder. local: one on this node, for the lock that lets one of many tasks ask.
    Raises LLMError when the image does not start, with what Apptainer said.
    """
    folder = os.path.join(cache, "known-images", _identity(image))
    versions = os.path.join(folder, "versions")
    constraints = os.path.join(folder, "constraints.txt")
    known = _read(versions, constraints)
    if known:
        return known

    def ask() -> Facts:
        return _read(versions, constraints) or _learn(image, start, cache, folder)

    return with_lock(local, "known-images.lock", ask)


def _read(versions: str, constraints: str) -> Facts | None:
    try:
        with open(versions, encoding="utf-8") as file:
            python, torch, *_ = [*file.read().split("\n"), "", ""]
    except OSError:
        return None
    return Facts(python, torch, constraints)


def _learn(image: Image, start: list[str], cache: str, folder: str) -> Facts:
    python, torch, pins = _ask(image, start)
    versions = os.path.join(folder, "versions")
    constraints = os.path.join(folder, "constraints.txt")
    keep(cache, constraints, "".join(pin + "\n" for pin in pins))
    keep(cache, versions, f"{python}\n{torch}\n")
    return Facts(python, torch, constraints)


def _identity(image: Image) -> str:
    stem = os.path.basename(image.path)
    if image.digest:
        return stem
    status = os.stat(image.path)
    return f"{stem}-{status.st_size:x}-{status.st_mtime_ns:x}"


def _ask(image: Image, start: list[str]) -> tuple[str, str, list[str]]:
    from _llm.programs import run_captured

    # -I: neither the host's variables nor the user's packages count here. An image without Python
    # is a fine image, so the shell in it decides.
    script = 'p=$(command -v python3 || command -v python) || exit 0; exec "$p" -I -c "$1"'
    command = [*start, "/bin/sh", "-c", script, "sh", QUESTION]
    done = run_captured(command, _clean_environment(), cwd="/")
    if done.returncode != 0:
        said = [line for line in done.stderr.strip().splitlines() if "INFO" not in line]
        raise LLMError(
            f"the image {image.path} does not start",
            "\n       ".join(said[-5:]) or f"exit status {done.returncode}",
            f"'{command[0]}' exec '{image.path}' true    shows more; build or copy the image again "
            "if it is damaged",
        )
    lines = [line for line in done.stdout.splitlines() if line]
    python = next((line[7:] for line in lines if line.startswith("python ")), "")
    torch = next((line[6:] for line in lines if line.startswith("torch ")), "")
    return python, torch, [line for line in lines if "==" in line]


def _clean_environment() -> dict[str, str]:
    from _llm.environment import is_dropped

    return {name: value for name, value in os.environ.items() if not is_dropped(name)}
