"""Compression of an image: size, packing time and import time for each setting of mksquashfs.

    python3 benchmarks/squashfs.py --json build/benchmarks/squashfs.json       # about 6 minutes

Unpacks the image llm-cpu once, packs it again with each setting and times the import of torch and
transformers from it, in turn, over several rounds; what pack.py uses was chosen from this table.
Files are packed in the order in which they are read, except where the row says "by name".
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import write_json

HOME = Path(__file__).resolve().parents[1]
SETTINGS = {
    "none, 128 KiB, by name": "-noI -noD -noF -noX -b 128K",
    "zstd 9, 256 KiB, by name": "-comp zstd -Xcompression-level 9 -b 256K",
    "none, 128 KiB": "-noI -noD -noF -noX -b 128K",
    "lz4, 128 KiB": "-comp lz4 -b 128K",
    "zstd 3, 128 KiB": "-comp zstd -Xcompression-level 3 -b 128K",
    "zstd 9, 128 KiB": "-comp zstd -Xcompression-level 9 -b 128K",
    "zstd 9, 256 KiB": "-comp zstd -Xcompression-level 9 -b 256K",
    "zstd 9, 512 KiB": "-comp zstd -Xcompression-level 9 -b 512K",
}
BY_NAME = "by name"  # in the packer's own order; all others in the order of reading
FOLDER = "unpacked folder, for comparison"
PROGRAM = "import torch, transformers; transformers.AutoModelForCausalLM"


def main() -> None:
    """Pack, time and print a table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="imports from each image [3]")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    options = parser.parse_args()
    sys.path.insert(0, str(HOME / "bin"))
    from _llm.apptainer import exec_flags
    from _llm.images.pack import READING_ORDER, sort_file
    from _llm.setup import find_apptainer

    path = find_apptainer()
    os.environ["PATH"] = os.path.dirname(path) + os.pathsep + os.environ["PATH"]
    source = subprocess.run(
        ["sh", HOME / "bin/_llm/tool.sh", "image", "path", "--image", "llm", "--variant", "cpu"],
        check=True, capture_output=True, text=True).stdout.strip()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("LLM_BUILD_DIR", "/var/tmp")) as scratch:
        payload = Path(scratch) / "payload.squashfs"
        listing = subprocess.run([path, "sif", "list", source], check=True, capture_output=True,
                                 text=True).stdout
        number = next(line.split("|")[0] for line in listing.splitlines() if "Squashfs" in line)
        with payload.open("wb") as stream:
            subprocess.run([path, "sif", "dump", number.strip(), source], check=True, stdout=stream)
        folder = Path(scratch) / "folder"
        subprocess.run(["unsquashfs", "-no-xattrs", "-d", str(folder), str(payload)],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        payload.unlink()
        order = Path(scratch) / "priorities.txt"
        order.write_text(sort_file((folder / READING_ORDER).read_text()))
        for name, words in SETTINGS.items():
            sort = [] if BY_NAME in name else ["-sort", str(order)]
            packed = Path(scratch) / (name.replace(" ", "-").replace(",", "") + ".squashfs")
            began = time.perf_counter()
            subprocess.run(["mksquashfs", str(folder), str(packed), *words.split(), *sort,
                            "-all-root", "-no-progress", "-quiet"],
                           check=True, stdout=subprocess.DEVNULL)
            rows[name] = {"pack_s": time.perf_counter() - began, "file": str(packed),
                          "bytes": packed.stat().st_size}
        rows[FOLDER] = {"pack_s": 0.0, "file": str(folder), "bytes": 0}
        times: dict[str, list[float]] = {name: [] for name in rows}
        for turn in range(options.rounds + 1):
            for name, row in rows.items():
                began = time.perf_counter()
                command = [path, "-q", "exec", *exec_flags(), "--cleanenv", str(row["file"]),
                           "python3", "-I", "-c", PROGRAM]
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
                if turn:
                    times[name].append(time.perf_counter() - began)
    print("| compression | size | packing | import |\n|---|---|---|---|")
    for name, row in rows.items():
        row["import_s"] = statistics.median(times[name])
        row.pop("file")
        print(f"| {name} | {row['bytes'] / 1e6:.0f} MB | {row['pack_s']:.0f} s "
              f"| {row['import_s']:.2f} s |")
    if options.json:
        write_json(options.json, {"benchmark": "squashfs", "rows": rows})


if __name__ == "__main__":
    main()
