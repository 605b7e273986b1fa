"""Import of torch and transformers: in the image against the same wheels in a host environment.

    python3 benchmarks/imports.py --pairs 7 --json build/benchmarks/imports.json

The host environment is made by uv from the image's lock, with compiled bytecode, on the host's
Python of the image's version; it is the limit: an image can't be read faster than a local disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
PROGRAM = "import torch, transformers; transformers.AutoModelForCausalLM"
LIMIT, GOAL = 1.1, 1.0


def host_environment(folder: Path) -> Path:
    """Return the Python of an environment with the image's torch and transformers."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    uv = shutil.which("uv") or str(HOME / ".tools/venv/bin/uv")
    lock = (HOME / "containers/llm/requirements-cpu.lock").read_text()
    names = [line.split(" ")[0] for line in lock.splitlines() if line[:1].isalnum()]
    pins = folder.with_suffix(".txt")
    pins.parent.mkdir(parents=True, exist_ok=True)
    pins.write_text("\n".join(names) + "\n")
    version = "3.11"
    subprocess.run([uv, "venv", "--quiet", "--python", version, str(folder)], check=True)
    sys.path.insert(0, str(HOME / "bin"))
    import os

    from _llm.images.pip_settings import package_environment, read_pip_settings

    env = {**os.environ, "VIRTUAL_ENV": str(folder)}
    env.update(package_environment(read_pip_settings(os.environ, Path.home()), "", os.environ))
    wanted = [name for name in names if name.split("==")[0] in ("torch", "transformers")]
    subprocess.run([uv, "pip", "install", "--quiet", "--compile-bytecode", "--constraint",
                    str(pins), *wanted], check=True, env=env)
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
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
