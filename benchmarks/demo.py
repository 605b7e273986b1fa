"""`make demo`: how long its story takes, and how long it takes again.

    python3 benchmarks/demo.py --json build/benchmarks/demo.json

Runs recipes/demo.sh twice in a copy of the checkout, with the image llm-cpu, which must be there.
Prints the seconds of each step as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import write_json

HOME = Path(__file__).resolve().parents[1]
LIMIT_MINUTES, GOAL_MINUTES = 12, 6


def checkout(folder: Path) -> Path:
    """A copy with nothing made in it."""
    for name in ("bin", "containers", "recipes", "sites"):
        shutil.copytree(HOME / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".tools").symlink_to(HOME / ".tools")
    return folder


def tell(home: Path) -> tuple[float, dict[str, float], str]:
    """Run the demo; seconds of all, of each step by its heading, and all that was printed."""
    began = time.perf_counter()
    steps: dict[str, float] = {}
    heading, since, printed = "", began, []
    env = {**os.environ, "LLM_CACHE_DIR": str(home / "cache")} | image_folder()
    with subprocess.Popen(["sh", "recipes/demo.sh"], cwd=home, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if line.startswith("== "):
                now = time.perf_counter()
                if heading:
                    steps[heading] = now - since
                heading, since = line[3:].strip(), now
    steps[heading] = time.perf_counter() - since
    if process.returncode:
        sys.exit(f"the demo failed with {process.returncode}:\n{''.join(printed[-30:])}")
    return time.perf_counter() - began, steps, "".join(printed)


def image_folder() -> dict[str, str]:
    """The image is where it was built, whatever the cache of this run."""
    tool = ["sh", str(HOME / "bin/_llm/tool.sh"), "image", "path", "--image", "llm",
            "--variant", "cpu"]
    path = subprocess.run(tool, check=True, capture_output=True, text=True).stdout.strip()
    return {"LLM_IMAGE_DIR": str(Path(path).parent)}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = checkout(Path(scratch) / "llm")
        first, steps, printed = tell(home)
        again, _, _ = tell(home)
    verdict = printed.split("The verdict on the new task")[1].split(":\n", 1)[1].split("\n\n")[0]
    for name, seconds in steps.items():
        print(f"{seconds:6.1f} s  {name}")
    print(f"{first:6.1f} s  all; again {again:.1f} s\n{verdict}")
    if options.json:
        write_json(options.json, {
            "benchmark": "demo", "cpus": len(os.sched_getaffinity(0)), "first_s": first,
            "again_s": again, "steps": steps, "limit_minutes": LIMIT_MINUTES,
            "goal_minutes": GOAL_MINUTES, "verdict": verdict.strip().splitlines()})


if __name__ == "__main__":
    main()
