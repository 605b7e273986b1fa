"""The image's llama.cpp, which chooses kernels when it starts, against one compiled for this CPU.

    python3 benchmarks/llama_native.py --json build/benchmarks/llama_native.json

Compiles llama-bench from the same source archive with the same options but GGML_NATIVE=ON, by the
image's own compiler, into the user's cache (10 to 20 minutes on 2 cores; once for a CPU model and
source). Then both run inside the image on the same model, in turn; ratios of each round, their
medians. Exits with 1 if the image's reaches less than 0.98. `--launcher ''` needs no image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

from results import write_json

HOME = Path(__file__).resolve().parents[1]
SCRIPTS = HOME / "containers/llm/llama.cpp"
LIMIT = 0.98
# What differs from the image's build; each must be found once, or the script has changed.
CHANGES = (
    (r"-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON", "-DGGML_NATIVE=ON"),
    (r"-DGGML_BACKEND_DIR=\S+ ", ""),
    (r"programs='[^']*'", "programs=llama-bench"),
    (r"--target \$programs mtmd", "--target $programs"),
)


def cpu_model() -> str:
    """The CPU's name."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found.group(1) if found else "unknown"


def native_script() -> str:
    """compile-cpu.sh with native kernels and llama-bench alone."""
    text = (SCRIPTS / "compile-cpu.sh").read_text()
    for pattern, new in CHANGES:
        text, count = re.subn(pattern, lambda _, new=new: new, text)
        if count != 1:
            raise RuntimeError(f"compile-cpu.sh has {count} times: {pattern}")
    return text


def native_build(cache: Path, launcher: list[str]) -> Path:
    """Compile, unless it is there; the folder with bin/ and lib/."""
    script = native_script()
    lock = (SCRIPTS / "source.lock").read_text()
    flags = re.search(r"^flags\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    parts = [script, lock, cpu_model(), flags.group(1) if flags else "", *launcher]
    folder = cache / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tools = build_tools(folder / "tools")
    source = fetch_source(folder, tools)
    (folder / "compile.sh").write_text(script)
    programs = [find_program(tools, name) for name in ("cmake", "ninja")]
    path = ":".join(str(program.parent) for program in programs)
    command = f'PATH={shlex.quote(path)}:$PATH; export PATH; exec sh "$@"'
    print(f"compiling into {folder} …", file=sys.stderr)
    with open(folder / "compile.log", "wb") as log:
        done = subprocess.run(
            [*launcher, "sh", "-c", command, "compile", str(folder / "compile.sh"), str(source),
             str(folder), str(folder / "objects"), "native"],
            stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"compiling failed: {folder / 'compile.log'}")
    for name in ("objects", "tools", source.relative_to(folder).parts[0]):
        shutil.rmtree(folder / name)
    (folder / "complete").touch()
    return folder


def build_tools(folder: Path) -> Path:
    """The locked cmake and ninja, from the package index that pip uses here."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
         "--target", str(folder), "-r", str(HOME / "containers/build.lock")], check=True)
    return folder


def find_program(tools: Path, name: str) -> Path:
    """A program itself: what lies in bin/ may be a script for this host's Python."""
    found = [path for path in tools.rglob(name) if path.is_file() and os.access(path, os.X_OK)]
    binaries = [path for path in found if path.read_bytes()[:4] == b"\x7fELF"]
    if not binaries:
        raise RuntimeError(f"the build tools hold no {name}")
    return binaries[0]


def fetch_source(folder: Path, tools: Path) -> Path:
    """Download the locked source archive and unpack it; llama.cpp's own folder."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-binary", ":all:", "--require-hashes", "--dest", str(folder),
         "-r", str(SCRIPTS / "source.lock")],
        check=True, env={**os.environ, "PYTHONPATH": str(tools)})
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder)
    (source,) = folder.glob("*/vendor/llama.cpp")
    return source


def rates(launcher: list[str], program: str, model: Path, options: argparse.Namespace
          ) -> dict[str, float]:
    """Tokens/s of llama-bench by test."""
    command = [*launcher, program, "-m", str(model), "-r", str(options.repeats), "-o", "jsonl",
               "-p", str(options.prompt_tokens), "-n", str(options.new_tokens),
               "-t", str(options.threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}": row["avg_ts"]
            for row in rows}


def compare(launcher: list[str], native: Path, model: Path, options: argparse.Namespace
            ) -> list[dict[str, object]]:
    """Medians of rounds, in turn, for each test."""
    programs = {"image": "llama-bench", "native": str(native / "bin/llama-bench")}
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(options.rounds):
        for name in list(programs) if number % 2 else reversed(programs):
            for test, rate in rates(launcher, programs[name], model, options).items():
                found.setdefault(test, {}).setdefault(name, []).append(rate)
    rows: list[dict[str, object]] = []
    for test, sides in found.items():
        ratios = [a / b for a, b in zip(sides["image"], sides["native"])]
        rows.append({"test": test, "ratio": statistics.median(ratios), "ratios": ratios,
                     **{f"{name}_tokens_per_s": statistics.median(values)
                        for name, values in sides.items()}})
    return rows


def main() -> int:
    """Compile, measure, print; exit status 1 below the limit."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", default=f"{HOME}/bin/llm-run --image llm-cpu",
                        help="what starts a program in the image; '' for none [llm-run]")
    parser.add_argument("--cache", type=Path, help="for the compiled programs [LLM_CACHE_DIR]",
                        default=Path(os.environ.get("LLM_CACHE_DIR") or "~/.cache/llm"))
    parser.add_argument("--folder", type=Path, default=HOME / "build/benchmarks/gguf",
                        help="where models are kept [build/benchmarks/gguf]")
    parser.add_argument("--shape", default="0.5b", help="of the model: 0.5b, 1.1b, tiny [0.5b]")
    parser.add_argument("--types", nargs="+", default=["Q4_K_M", "Q8_0"],
                        help="quantization types [Q4_K_M Q8_0]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of llama-bench [all CPUs]")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of a prompt [512]")
    parser.add_argument("--new-tokens", type=int, default=128, help="to generate [128]")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements [5]")
    parser.add_argument("--repeats", type=int, default=1, help="in each of them [1]")
    parser.add_argument("--json", type=Path, help="write the result to this file [not written]")
    options = parser.parse_args()
    launcher = shlex.split(options.launcher)
    native = native_build(options.cache.expanduser().absolute() / "llama-native", launcher)
    rows = []
    for type_name in options.types:
        done = subprocess.run(
            [*launcher, "python", str(HOME / "benchmarks/gguf_models.py"), "--shape",
             options.shape, "--type", type_name, "--folder", str(options.folder)],
            check=True, capture_output=True, text=True)
        model = Path(done.stdout.strip().splitlines()[-1])
        for row in compare(launcher, native, model, options):
            rows.append({"type": type_name, **row})
            print(f"{type_name} {row['test']}: image {row['image_tokens_per_s']:.1f} tokens/s, "
                  f"native {row['native_tokens_per_s']:.1f}, ratio {row['ratio']:.3f}", flush=True)
    passed = all(row["ratio"] >= LIMIT for row in rows)
    if options.json:
        write_json(options.json, {
            "benchmark": "llama_native", "cpu": cpu_model(), "threads": options.threads,
            "shape": options.shape, "rounds": options.rounds, "limit": LIMIT,
            "load_average": os.getloadavg()[0], "rows": rows, "passed": passed})
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
