"""llama.cpp's programs, libraries and Python wheel: compiled once, kept by source, flags, compiler.

The cache key holds the source's hash, the compile scripts, the locked compiler, linker, C library
and build tools, and nothing else: what shapes the compiled bytes compiles llama.cpp again, and no
other Python or Debian package does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from _llm.errors import LLMError
from _llm.images.locks import read_apt_lock

# Debian packages, by the beginnings of their names, and build tools that shape what is compiled.
TOOLCHAIN = ("gcc-", "g++-", "cpp-", "binutils", "libbinutils", "libc6", "libc-dev", "libgcc-",
             "libstdc++", "libgomp", "libcc1", "linux-libc-dev")
BUILD_TOOLS = ("cmake==", "ninja==", "scikit-build-core==")
# What a compiled folder must hold before it counts as complete.
COMPLETE = "complete"


def compile_key(folder: Path, flavour: str, architectures: Sequence[str] = ()) -> str:
    """Return the cache key of one flavour.

    folder: containers/llm/llama.cpp. flavour: `cpu`, or a CUDA variant, whose CUDA backend alone is
    compiled and laid beside the cpu flavour's files. architectures: as CMAKE_CUDA_ARCHITECTURES.
    """
    script = "compile-cpu.sh" if flavour == "cpu" else "compile-cuda.sh"
    names = ["source.lock", "compile.sh", script]
    if flavour != "cpu":
        names.append(f"{flavour}-compiler.lock")
    digest = hashlib.sha256(f"{flavour} {' '.join(architectures)}\n".encode())
    for name in names:
        lines = (folder / name).read_bytes().splitlines()
        digest.update(b"\n".join(line for line in lines if not line.startswith(b"# ")) + b"\n")
    digest.update("\n".join(toolchain(folder.parent)).encode())
    return digest.hexdigest()[:12]


def toolchain(folder: Path) -> list[str]:
    """The locked packages that compile, each with its version and hash, and the build tools.

    folder: containers/llm.
    """
    locks = (folder.parent / "base/apt.lock", folder / "apt-cpu.lock")
    packages = [f"{p.name} {p.version} {p.sha256}" for lock in locks for p in read_apt_lock(lock)
                if p.name.startswith(TOOLCHAIN)]
    tools = folder.parent / "build.lock"
    lines = tools.read_text().splitlines() if tools.exists() else []
    return packages + [line.split()[0] for line in lines if line.startswith(BUILD_TOOLS)]


def compiled_folder(cache: Path, flavour: str, key: str) -> Path:
    """Where a compiled flavour is kept."""
    return cache / "llama.cpp" / f"{flavour}-{key}"


def is_complete(folder: Path) -> bool:
    """Whether a compilation ended well there."""
    return (folder / COMPLETE).exists()


def compile_arguments(flavour: str, architectures: Sequence[str]) -> dict[str, str]:
    """Build arguments of compile.def for a flavour."""
    return {"FLAVOUR": flavour, "ARCHITECTURES": ";".join(architectures) or "none"}


def keep(part: Path, folder: Path) -> None:
    """Move a finished compilation into the cache; the first of two at once wins."""
    (part / COMPLETE).write_text("")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.copytree(part, beside, symlinks=True)
        if not folder.exists():
            os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if not is_complete(folder):
        raise LLMError(f"{folder} is not complete", "an earlier compilation was cut short there",
                       f"rm -r '{folder}', then the same command again")


def cuda_architectures(configured: Sequence[str], detected: Mapping[str, str]) -> list[str]:
    """GPU architectures to compile for, as CMake writes them (`90-real`).

    configured: `90`, `9.0` or `90-real`, from the build argument or the site profile. detected:
    GPU name -> compute capability, used where nothing is configured. A single architecture keeps
    the compilation short; several make one image for several kinds of GPU.
    Raises LLMError when there is neither, or for a word that is none of these.
    """
    words = list(configured) or sorted(set(detected.values()))
    found = []
    for word in words:
        number = word.removesuffix("-real").replace(".", "")
        if not (number.rstrip("af").isdigit() and 2 <= len(number) <= 4):
            raise LLMError(f"'{word}' is no GPU architecture", "it is written as 70, 80, 90 or 9.0",
                           "make image VARIANT=cuda13 CUDA_ARCHITECTURES='80 90'")
        found.append(f"{number}-real")
    if not found:
        raise LLMError(
            "no GPU architecture to compile for", "this machine has no GPU and the site profile "
            "names none ([container] cuda_architectures)",
            "make image VARIANT=cuda13 CUDA_ARCHITECTURES=90   (V100 70, A100 80, H100, H200 90)",
        )
    return sorted(set(found), key=lambda a: int(a.split("-")[0].rstrip("af")))
