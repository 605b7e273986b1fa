"""What `module load llm` costs against an empty modulefile, in both module systems.

    python3 benchmarks/modules.py --pairs 20 --json modules.json

Both are loaded in a fresh non-interactive bash, as a job script does it, one after the other in
turn; only the load is timed, not the shell's start. Medians of all pairs, and the spread of the
ratio over the runs. Environment Modules and Lmod are unpacked from Debian's packages, see
tests/modules/systems.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import write_json

HOME = Path(__file__).resolve().parents[1]
INIT = {"environment-modules": "usr/share/modules/init/bash",
        "lmod": "usr/share/lmod/lmod/init/bash"}
TITLES = {"environment-modules": "Environment Modules", "lmod": "Lmod"}


def prepare(folder: Path) -> Path:
    """Install this checkout and an empty module of both kinds into `folder`; return its modules."""
    path = folder / "modulefiles"
    subprocess.run(["sh", str(HOME / "bin/_llm/tool.sh"), "install", "--prefix",
                    str(folder / "llm"), "--modulepath", str(path)], check=True,
                   stdout=subprocess.DEVNULL)
    (path / "empty").mkdir()
    (path / "empty/1").write_text("#%Module1.0\n")
    (path / "empty/1.lua").write_text("")
    return path


def load_ms(init: Path, path: Path, module: str, home: Path) -> float:
    """Return how long `module load` takes in a fresh shell, in milliseconds."""
    script = (f". '{init}'; module use '{path}'; begin=$EPOCHREALTIME; module load {module}; "
              "end=$EPOCHREALTIME; echo $LOADEDMODULES $begin $end")
    out = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", script], check=True, capture_output=True, text=True,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "LC_ALL": "C"}).stdout.split()
    if not out or not out[0].startswith(module):
        raise RuntimeError(f"module load {module} did not work with {init}")
    return (float(out[-1]) - float(out[-2])) * 1000


def measure(root: Path, pairs: int, runs: int, folder: Path) -> dict[str, object]:
    """Return the times of both systems, in milliseconds, and what follows from them."""
    path = prepare(folder)
    rows = []
    for system, init in INIT.items():
        empty, ours, ratios = [], [], []
        for module in ("empty", "llm"):
            load_ms(root / init, path, module, folder)  # fills file caches
        for _ in range(runs):
            first, second = [], []
            for number in range(pairs):
                # In turn, so that neither always comes first.
                for module in ("empty", "llm") if number % 2 else ("llm", "empty"):
                    times = first if module == "empty" else second
                    times.append(load_ms(root / init, path, module, folder))
            ratios.append(statistics.median(second) / statistics.median(first))
            empty += first
            ours += second
        rows.append({
            "system": TITLES[system], "empty_ms": round(statistics.median(empty), 1),
            "llm_ms": round(statistics.median(ours), 1),
            "difference_ms": round(statistics.median(b - a for a, b in zip(empty, ours)), 1),
            "ratio": round(statistics.median(ours) / statistics.median(empty), 3),
            "ratio_of_runs": [round(ratio, 3) for ratio in ratios]})
    return {"benchmark": "modules", "pairs": pairs, "runs": runs, "cpus": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1), "rows": rows}


def main() -> int:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20, help="pairs of loads in a run [20]")
    parser.add_argument("--runs", type=int, default=3, help="runs [3]")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    arguments = parser.parse_args()
    if arguments.pairs < 1 or arguments.runs < 1:
        parser.error("--pairs and --runs must be at least 1")
    sys.path[:0] = [str(HOME / "tests/modules"), str(HOME / "bin")]
    from systems import ensure_systems

    from _llm.errors import LLMError

    try:
        root = ensure_systems()
    except LLMError as error:
        print(f"modules: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="llm-modules-") as folder:
        result = measure(root, arguments.pairs, arguments.runs, Path(folder))
    print("| `module load`, ms | empty | llm | difference | ratio |\n|---|---|---|---|---|")
    for row in result["rows"]:  # type: ignore[attr-defined]
        print(f"| {row['system']} | {row['empty_ms']} | {row['llm_ms']} | {row['difference_ms']} "
              f"| {row['ratio']} ({', '.join(map(str, row['ratio_of_runs']))}) |")
    if arguments.json:
        write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
