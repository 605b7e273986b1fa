"""Images: size, time of a clean build, of a build with nothing to do, and of one changed package.

    python3 benchmarks/images.py                  # size, nothing to do
    python3 benchmarks/images.py --clean true     # all, about 15 minutes

`--clean true` builds `base` and `llm` into an empty folder, with the downloads and the compiled
llama.cpp of the cache, and then `llm` again with one line of its Python lock changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from results import write_json

HOME = Path(__file__).resolve().parents[1]
SIZE_LIMIT_GB = 1.0


def build(home: Path, images: Path | None = None) -> tuple[float, str]:
    """Run the build of llm-cpu; return seconds and the path that it prints last.

    images: the folder that images go to, None for the site profile's.
    """
    began = time.perf_counter()
    done = subprocess.run(
        ["sh", str(home / "bin/_llm/tool.sh"), "image", "build", "--image", "llm", "--variant",
         "cpu"], check=True, capture_output=True, text=True,
        env={**os.environ, **({"LLM_IMAGE_DIR": str(images)} if images else {})})
    return time.perf_counter() - began, done.stdout.strip().splitlines()[-1]


def checkout_with_one_change(folder: Path) -> Path:
    """A copy of this checkout whose Python lock has one package less: another input, same work."""
    for name in ("bin", "containers", "sites"):
        shutil.copytree(HOME / name, folder / name)
    (folder / ".tools").symlink_to(HOME / ".tools")
    lock = folder / "containers/llm/requirements-cpu.lock"
    blocks = lock.read_text().split("\n")
    start = next(i for i, line in enumerate(blocks) if line.startswith("tcolorpy=="))
    end = next(i for i in range(start + 1, len(blocks)) if blocks[i][:1].isalnum())
    lock.write_text("\n".join(blocks[:start] + blocks[end:]))
    return folder


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", choices=["true", "false"], default="false",
                        help="also build from nothing and after one change [false]")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    options = parser.parse_args()
    image = Path(build(HOME)[1])
    result: dict[str, object] = {
        "benchmark": "images", "size_bytes": image.stat().st_size, "size_limit_gb": SIZE_LIMIT_GB,
        "base_bytes": (image.parent / "base.sif").stat().st_size,
        "nothing_to_do_s": statistics.median(build(HOME)[0] for _ in range(5)),
    }
    if options.clean == "true":
        room = os.environ.get("LLM_BUILD_DIR", "/var/tmp")
        with tempfile.TemporaryDirectory(dir=room) as scratch:
            result["clean_build_s"] = build(HOME, Path(scratch) / "images")[0]
            changed = checkout_with_one_change(Path(scratch) / "checkout")
            result["one_package_s"] = build(changed, Path(scratch) / "images")[0]
    for key, value in result.items():
        print(f"{key}: {value:.2f}" if isinstance(value, float) else f"{key}: {value}")
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
