"""Which Apptainer to use on this machine and what it needs to be told here.

Part of every start of llm-run: starts no process and imports nothing that is slow to import.
"""

from __future__ import annotations

import os

from _llm.errors import LLMError, make_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"


class Apptainer:
    """The runtime's program and the options that `exec` needs on this machine."""

    __slots__ = ("exec_flags", "path")

    def __init__(self, path: str, exec_flags: tuple[str, ...]) -> None:
        self.path = path
        self.exec_flags = exec_flags


def private_folder(home: str) -> str:
    """Where `make setup` unpacks an Apptainer of its own: `.tools/apptainer` of the checkout."""
    return os.path.join(home, ".tools", "apptainer")


def private_apptainer(home: str) -> str:
    """Path of the private Apptainer, or "" where there is none or the checkout was moved.

    Its programs name their loader by an absolute path, so a moved copy does not start.
    """
    folder = private_folder(home)
    program = os.path.join(folder, "usr", "bin", "apptainer")
    try:
        here = os.readlink(os.path.join(folder, "here"))
    except OSError:
        return ""
    return program if here == os.path.realpath(folder) and os.path.exists(program) else ""


def find_program(name: str, search_path: str) -> str:
    """Absolute path of a program on the search path, or "".

    As shutil.which, without what its import costs at every start of llm-run.
    """
    for folder in search_path.split(os.pathsep):
        candidate = os.path.join(folder or ".", name)
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return os.path.abspath(candidate)
    return ""


def find_apptainer(env: Mapping[str, str], home: str, configured: str = "") -> Apptainer:
    """Return the Apptainer to use: the configured one, PATH's `apptainer` or `singularity`, ours.

    configured: the site profile's `[container] apptainer`, "" for none; LLM_APPTAINER in env wins.
    Raises LLMError where there is none.
    """
    wanted = env.get("LLM_APPTAINER") or configured
    if wanted:
        path = wanted if os.path.isabs(wanted) else find_program(wanted, env.get("PATH", ""))
        if not path or not os.access(path, os.X_OK):
            raise LLMError(f"Apptainer '{wanted}' does not exist or can't be executed",
                           "LLM_APPTAINER or [container] apptainer of the site profile names it",
                           "correct it, or remove it to use the one on PATH")
        return Apptainer(path, exec_flags())
    search = env.get("PATH", "") or os.defpath
    path = (find_program("apptainer", search) or find_program("singularity", search)
            or private_apptainer(home))
    if not path:
        raise LLMError("no Apptainer found",
                       "neither apptainer nor singularity is on PATH, nor one in .tools",
                       f"module load apptainer, or: {make_command(home, 'setup')}")
    return Apptainer(path, exec_flags())


def exec_flags() -> tuple[str, ...]:
    """Options that `apptainer exec` needs here.

    Root in a small virtual machine or a container may lack capabilities; Apptainer as root then
    fails with "Requesting capability set"; inside a user namespace it works.
    """
    if os.geteuid() == 0 and not has_all_capabilities():
        return ("--userns",)
    return ()


def has_all_capabilities() -> bool:
    """Whether this process holds every capability that the kernel knows (capabilities(7))."""
    try:
        with open(LAST_CAPABILITY) as stream:
            everything = (1 << (int(stream.read()) + 1)) - 1
        with open("/proc/self/status") as stream:
            for line in stream:
                if line.startswith("CapEff:"):
                    return int(line.split()[1], 16) & everything == everything
    except (OSError, ValueError):
        pass
    return True
