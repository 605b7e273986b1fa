"""What packing the same bytes costs against Apptainer's own pack, and what an image's digest costs.

    python3 benchmarks/packing.py --json build/benchmarks/packing.json       # about 8 minutes

Unpacks the image llm-cpu once and packs it, in turn, as Apptainer does (`apptainer build FILE
FOLDER`, with the same compression) and as `make image` does (normalise, list of software,
mksquashfs, assemble); then starts programs from both files in turn. The digest of an image is timed
cold (the file is in the page cache, nothing is known of it) and warm (as at each start of llm-run).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from results import write_json

HOME = Path(__file__).resolve().parents[1]
PROGRAM = "import torch, transformers; transformers.AutoModelForCausalLM"
WARM = 200


def main() -> None:
    """Pack, start, digest, print."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of packing and importing [3]")
    parser.add_argument("--pairs", type=int, default=20, help="starts of `true` from each [20]")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    options = parser.parse_args()
    sys.path.insert(0, str(HOME / "bin"))
    from _llm.apptainer import exec_flags
    from _llm.contents.unsquash import unpacked
    from _llm.image_digest import cached_digest
    from _llm.images import steps
    from _llm.images.pack import COMPRESSION, pack
    from _llm.images.sbom import make_sbom
    from _llm.images.staging import fakeroot_flags
    from _llm.setup import ensure_apptainer

    apptainer = ensure_apptainer()
    env = {**os.environ, "PATH": f"{os.path.dirname(apptainer)}{os.pathsep}{os.environ['PATH']}"}
    source = subprocess.run(
        ["sh", HOME / "bin/_llm/tool.sh", "image", "path", "--image", "llm", "--variant", "cpu"],
        check=True, capture_output=True, text=True).stdout.strip()
    times: dict[str, list[float]] = {name: [] for name in (
        "apptainer_s", "ours_s", "normalise_s", "software_s", "apptainer_true_ms", "ours_true_ms",
        "apptainer_import_s", "ours_import_s")}
    with unpacked(source) as tree, tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
        theirs, ours = Path(scratch, "apptainer.sif"), Path(scratch, "ours.sif")
        log = steps.Log(Path(scratch, "log"))
        staging = Path(scratch, "staging")
        (staging / "tree").mkdir(parents=True)
        for script in (HOME / "containers").glob("*.py"):
            (staging / script.name).write_bytes(script.read_bytes())

        def as_apptainer() -> None:
            theirs.unlink(missing_ok=True)
            arguments = f"{COMPRESSION} -all-root"
            log.run([apptainer, "build", *fakeroot_flags(), "--mksquashfs-args", arguments, theirs,
                     tree], env, "Apptainer's pack")

        def as_we_do() -> None:
            times["normalise_s"].append(seconds(lambda: steps.normalise(
                apptainer, tree, ["--bind", f"{staging}:/mnt"], "2026-01-01", env, log)))
            software: list[bytes] = []
            times["software_s"].append(seconds(
                lambda: software.append(make_sbom(tree, "llm-cpu", "0" * 64, "2026-01-01"))))
            pack(apptainer, "mksquashfs", tree, ours, definition="none\n", sbom=software[0],
                 digest="0" * 64, epoch=0, env=env, log=log)

        os.environ["PATH"] = env["PATH"]
        for _ in range(options.rounds):
            times["apptainer_s"].append(seconds(as_apptainer))
            times["ours_s"].append(seconds(as_we_do))
        start = [apptainer, "-q", "exec", *exec_flags(), "--cleanenv", "--no-home"]
        for key, count, words in (("true_ms", options.pairs, ["true"]),
                                  ("import_s", options.rounds, ["python3", "-c", PROGRAM])):
            for _ in range(count):
                for name, file in (("apptainer", theirs), ("ours", ours)):
                    took = seconds(lambda file=file, words=words: subprocess.run(  # type: ignore[misc]
                        [*start, file, *words], check=True, env=env))
                    times[f"{name}_{key}"].append(took * (1000 if key.endswith("ms") else 1))
        cache = Path(scratch, "cache")
        cache.mkdir()
        cold = seconds(lambda: cached_digest(source, str(cache)))
        warm = statistics.median(
            seconds(lambda: cached_digest(source, str(cache))) for _ in range(WARM))
        result = {name: statistics.median(values) for name, values in times.items()}
        result |= {"rounds": options.rounds, "pairs": options.pairs, "digest_cold_s": cold,
                   "digest_warm_ms": warm * 1000, "bytes": os.path.getsize(source),
                   "apptainer_bytes": theirs.stat().st_size, "ours_bytes": ours.stat().st_size,
                   "ratio": statistics.median(
                       b / a for a, b in zip(times["apptainer_s"], times["ours_s"]))}
    for name, value in result.items():
        print(f"{name:20} {value:,.3f}" if isinstance(value, float) else f"{name:20} {value:,}")
    if options.json:
        write_json(options.json, result)


def seconds(action: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
