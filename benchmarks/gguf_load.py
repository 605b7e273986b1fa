"""How long a GGUF model takes to load: from disk and from the RAM disk, cold and warm.

    llm-run python benchmarks/gguf_load.py --output build/benchmarks/gguf_load.json

From the start of loading until the first token is there: a mapped file is read only then. Cold: the
page cache has nothing of the file (posix_fadvise, checked with mincore). Each load in a process of
its own, in turn; medians. The plain reading of the file, for comparison, is what the disk can do.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from gguf_models import make_model

from llm_recipes.cli import run_recipe

HOME = Path(__file__).resolve().parents[1]
BLOCK = 1 << 24
# Loads a model and computes one token; prints seconds.
LOAD = """
import json, sys, time
from pathlib import Path
from llm_recipes.gguf import engine
from llm_recipes.gguf.file import read_gguf
from llm_recipes.gguf.model import ContextSettings, GgufModel
from llm_recipes.gguf.threads import granted_threads, use
threads = granted_threads()
use(threads)
file = read_gguf(Path(sys.argv[1]))
engine.devices()
start = time.perf_counter()
with GgufModel.load(file, load_mode=sys.argv[2]) as model:
    loaded = time.perf_counter()
    room = ContextSettings(tokens=256, threads=threads.generate, prompt_threads=threads.prompt)
    with model.context(room) as context:
        context.decode([1], [0], [0], [True])
        ready = time.perf_counter()
print(json.dumps({"load_s": loaded - start, "ready_s": ready - start}))
"""


def benchmark(
    shape: str = "0.5b",
    type: str = "Q8_0",
    folder: Path = HOME / "build/benchmarks/gguf",
    ram: Path = Path("/dev/shm"),
    modes: list[str] | None = None,
    rounds: int = 5,
    output: Path | None = None,
) -> None:
    """Time loading, in turn.

    Args:
        shape: Of the model: 0.5b, 1.1b, or tiny to try the program.
        type: Quantization type.
        folder: Where models are kept, on the disk that is measured.
        ram: A folder on the RAM disk.
        modes: Load modes of generate.py; repeat the option; null: mmap, read.
        rounds: Loads of each kind.
        output: JSON file for the results; null: none.
    """
    from llm_recipes.files import write_text

    on_disk = make_model(shape, type, folder)
    size = on_disk.stat().st_size
    in_ram = ram / f"llm-bench-{os.getpid()}.gguf"
    if shutil.disk_usage(ram).free < 2 * size:
        raise RuntimeError(f"{ram} has no room for {size / 1e9:.2f} GB")
    shutil.copyfile(on_disk, in_ram)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    reading: list[float] = []
    try:
        for _ in range(rounds):
            forget(on_disk)
            reading.append(seconds_to_read(on_disk))
            for mode in modes or ["mmap", "read"]:
                for where, path in (("disk, cold", on_disk), ("disk, warm", on_disk)):
                    if where.endswith("cold"):
                        forget(path)
                    found.setdefault((where, mode), []).append(load(path, mode))
                found.setdefault(("RAM disk", mode), []).append(load(in_ram, mode))
    finally:
        in_ram.unlink()
    rows = []
    for (where, mode), runs in found.items():
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        rows.append({"where": where, "mode": mode, **medians, "runs": runs})
        print(f"{where}, {mode}: {medians['ready_s']:.2f} s", flush=True)
    result = {
        "benchmark": "gguf_load",
        "bytes": size,
        "type": type,
        "rounds": rounds,
        "read_s": statistics.median(reading),
        "rows": rows,
    }
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(result, indent=2) + "\n")


def load(path: Path, mode: str) -> dict[str, float]:
    """Load a model in a process of its own; seconds."""
    env = {**os.environ, "PYTHONPATH": str(HOME / "recipes")}
    command = [sys.executable, "-c", LOAD, str(path), mode]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    share = cached_share(path)
    if share > 0.01:
        raise RuntimeError(f"{100 * share:.0f} % of {path} stay in the page cache")


def cached_share(path: Path) -> float:
    """The share of a file that is in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        libc, address = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p(ctypes.addressof(first))
        failed = libc.mincore(address, ctypes.c_size_t(size), states)
        del first  # it keeps the map from being closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(state & 1 for state in states) / pages


def seconds_to_read(path: Path) -> float:
    """Read a file from its beginning to its end."""
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass
    return time.perf_counter() - start


if __name__ == "__main__":
    run_recipe(benchmark)
