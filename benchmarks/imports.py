"""Import of torch and transformers: in the image against the same wheels in a host environment.

    python3 benchmarks/imports.py --pairs 7 --json build/benchmarks/imports.json

The host environment is made by uv from the image's lock, every package of it, with compiled
bytecode, on the host's Python of the image's version.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results import write_json

HOME = Path(__file__).resolve().parents[1]
LLM = HOME / "containers/llm"
PYTHON = "3.11"
PROGRAM = "import torch, transformers; transformers.AutoModelForCausalLM"
LIMIT, GOAL = 1.1, 1.0


def host_environment(folder: Path) -> Path:
    """Return the Python of an environment with every package of the image's lock.

    Made as containers/install-python.sh makes the image's: exactly the locked files, bytecode
    compiled and not checked against file times, packages that exist only as source last.
    """
    python = folder / "bin" / "python"
    ready = folder / "complete"
    lock = (LLM / "requirements-cpu.lock").read_text()
    if ready.exists() and ready.read_text() == lock:
        return python
    uv = shutil.which("uv") or str(HOME / ".tools/venv/bin/uv")
    sys.path.insert(0, str(HOME / "bin"))
    from _llm.images.pip_settings import package_environment, read_pip_settings

    env = {**os.environ, "VIRTUAL_ENV": str(folder), "UV_COMPILE_BYTECODE": "1",
           "PYC_INVALIDATION_MODE": "UNCHECKED_HASH"}
    env.update(package_environment(read_pip_settings(os.environ, Path.home()), "", os.environ))
    # The distribution's Python, as in the image, where it has the same version.
    wanted = f"/usr/bin/python{PYTHON}"
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python",
                    wanted if os.path.exists(wanted) else PYTHON, str(folder)], check=True)
    sources = {word for line in (LLM / "source-packages.txt").read_text().splitlines()
               for word in line.split("#")[0].split()}
    wheels, archives = [], []
    for requirement in re.split(r"\n(?=[A-Za-z0-9])", lock):
        name = re.split(r"[=@\[ ]", requirement)[0]
        pinned = re.sub(r"^([\w.-]+(\[[^]]*\])?)==([^+ ]+ )", r"\1===\3", requirement)
        (archives if name in sources else wheels).append(pinned)
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    for options, requirements in (
        (["--only-binary", ":all:"], wheels),
        (["--no-build-isolation"], archives),
    ):
        listing = folder / "requirements.txt"
        listing.write_text("\n".join(requirements) + "\n")
        subprocess.run([*install, *options, "-r", str(listing)], check=True, env=env)
    ready.write_text(lock)
    return python


def seconds(command: list[str]) -> float:
    """Wall-clock time of a command."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure in turn and print the ratio of the medians of pairs."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="measured pairs, after a warm-up [7]")
    parser.add_argument("--image", default="llm-cpu", help="image [llm-cpu]")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    options = parser.parse_args()
    host = [str(host_environment(HOME / "build/benchmarks/host-environment")), "-I", "-c", PROGRAM]
    image = [str(HOME / "bin/llm-run"), "--image", options.image, "python", "-c", PROGRAM]
    for command in (image, host):
        seconds(command)
    pairs = [(seconds(image), seconds(host)) for _ in range(options.pairs)]
    result = {
        "benchmark": "imports", "pairs": options.pairs, "program": PROGRAM,
        "image_s": statistics.median(p[0] for p in pairs),
        "host_s": statistics.median(p[1] for p in pairs),
        "ratio": statistics.median(p[0] / p[1] for p in pairs), "limit": LIMIT, "goal": GOAL,
    }
    print("| image | host environment | ratio | at most | goal |\n|---|---|---|---|---|\n"
          f"| {result['image_s']:.2f} s | {result['host_s']:.2f} s | {result['ratio']:.2f} "
          f"| {LIMIT} | {GOAL} |")
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
