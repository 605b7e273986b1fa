"""Measure the quantizations of a model, each once: what is known of a file is kept beside it.

    from llm_recipes.gguf.quality_run import measure_quality, measure_speed

OUTPUT/measured/ has the quality of each file, OUTPUT/points.jsonl its speed, as bench.py writes it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llm_recipes.device import choose_device, device_name, measure_peak, use_granted_cpus
from llm_recipes.files import write_fault, write_text
from llm_recipes.gguf.bench_plan import llama_version
from llm_recipes.gguf.bench_points import DONE, Measurement, Model, Point, Setting
from llm_recipes.gguf.bench_results import RESULTS, Result, missing_tests, read_results
from llm_recipes.gguf.bench_runs import Bench, measure
from llm_recipes.gguf.engine import devices, gpu_devices
from llm_recipes.gguf.evaluation_text import Text
from llm_recipes.gguf.file import GgufFile, gguf_digest
from llm_recipes.gguf.importance import BATCH, Engine
from llm_recipes.gguf.model import ContextSettings
from llm_recipes.gguf.quality import Evaluation, Quality, evaluate, evaluate_source
from llm_recipes.gguf.quality_table import Rate, Speed, plain
from llm_recipes.gguf.quantizing import check_space
from llm_recipes.gguf.threads import granted_cores
from llm_recipes.say import say

MEASURED = "measured"
LESS_SCRATCH = "--scratch FOLDER on a larger disk, fewer --chunks, or --no-quality"
PROMPT, NEW, REPEATS = Measurement(prompt=512), Measurement(new=128), 3


@dataclass(frozen=True)
class QualityPlan:
    """What is known of the files' quality, and what is to be measured.

    source: what they are compared with. known: by the file's path. missing: of files and source.
    """

    source: GgufFile
    known: Mapping[Path, Quality]
    missing: Sequence[GgufFile]
    key: Mapping[str, Any]
    folder: Path


def plan_quality(
    source: GgufFile, files: Sequence[GgufFile], text: Text, context: int, chunks: int, output: Path
) -> QualityPlan:
    """See which files have been measured with this text already."""
    key = {
        "source": gguf_digest(source),
        "text": text.digest,
        "context": context,
        "chunks": chunks,
    }
    folder = output / MEASURED
    known = {}
    for file in (source, *files):
        found = _read(folder, file, key)
        if found is not None:
            known[file.path] = found
    missing = [file for file in (source, *files) if file.path not in known]
    return QualityPlan(source, known, missing, key, folder)


def measure_quality(
    plan: QualityPlan, text: Text, engine: Engine, scratch: Path
) -> dict[Path, Quality]:
    """Measure what is missing; each result is kept as soon as it is there.

    Args:
        plan: Of the files.
        text: What they read.
        engine: Threads and GPU.
        scratch: Folder for the source's predictions, which are removed afterwards.

    Raises:
        LLMError: If the disk or memory is too small.
    """
    found = dict(plan.known)
    if not plan.missing:
        return found
    context, chunks = plan.key["context"], plan.key["chunks"]
    with temporary_folder(scratch) as folder:
        path = folder / "text.txt"
        path.write_text(text.content, encoding="utf-8", newline="\n")
        how = Evaluation(path, context, chunks, engine)
        sizes = {"the source's predictions": how.base_bytes(plan.source.vocabulary)}
        check_space(folder, sizes, LESS_SCRATCH)
        base = folder / "predictions"
        say(f"measuring quality: {how.tokens} tokens of {text.name}, the source first")
        found[plan.source.path] = evaluate_source(plan.source, how, base)
        _keep(plan, plan.source, found[plan.source.path])
        for file in plan.missing:
            if file.path != plan.source.path:
                found[file.path] = evaluate(file, how, base)
                _keep(plan, file, found[file.path])
    return found


def measure_speed(
    files: Sequence[GgufFile], output: Path, threads: int, gpu_layers: int, bandwidth: float | None
) -> dict[Path, Speed]:
    """Tokens a second of each file by llama-bench, which measures what is not known yet.

    A file that llama-bench can't measure gets no figures, and a line that says why.

    Args:
        files: The models.
        output: Folder of the results.
        threads: On the CPU.
        gpu_layers: On GPUs.
        bandwidth: Of the memory that holds the weights, bytes/s; None: not known.

    Raises:
        LLMError: If the folder can't be written.
    """
    bench = Bench(output, llama_version(), REPEATS, granted_cores())
    speeds: dict[Path, Speed] = {}
    for file in files:
        setting = Setting(threads=threads, gpu_layers=gpu_layers)
        point = Point(Model(file, gguf_digest(file)), setting, (PROMPT, NEW))
        results = read_results(output) if (output / RESULTS).exists() else []
        results = [result for result in results if is_of_this_machine(result)]
        tests = missing_tests(point, 1, results, (), bench.version)
        if tests:
            say(f"measuring the speed of {file.path.name}")
            measure(bench, point, tests, 1, results)
        keys = {test: point.key(test, bench.version) for test in point.tests}
        ours = {r.measurement: r for r in results if r.key == keys.get(r.measurement)}
        for result in ours.values():
            if result.status != DONE:
                say(f"{file.path.name}, {result.measurement.title}: {result.status}, {result.note}")
        speeds[file.path] = _speed(ours.get(PROMPT), ours.get(NEW), bandwidth)
    return speeds


def is_of_this_machine(result: Result) -> bool:
    """Whether a result's processor and GPUs are those of this machine.

    Of what was not measured it isn't known: that is tried again.
    """
    names = {"cpu_info": ("cpu", "accel"), "gpu_info": ("gpu", "igpu")}
    return all(
        result.build.get(name) == ", ".join(d.description for d in devices() if d.kind in kinds)
        for name, kinds in names.items()
    )


def bandwidth_of(layers: int, gpu_layers: int) -> float | None:
    """Measured bandwidth of the memory that holds the weights, bytes/s; None if it is several.

    Args:
        layers: Of the model, with the output.
        gpu_layers: On GPUs.
    """
    if gpu_layers == 0:
        use_granted_cpus()
        return measure_peak(torch.device("cpu"), torch.float32).bytes_per_s
    if gpu_layers >= layers and torch.cuda.is_available() and torch.cuda.device_count() == 1:
        return measure_peak(torch.device("cuda", 0), torch.float16).bytes_per_s
    return None


def device_of(gpu_layers: int) -> str:
    """What computes."""
    if gpu_layers:
        return ", ".join(device.description for device in gpu_devices())
    return device_name(choose_device("cpu"))


def measuring_context(context: int) -> ContextSettings:
    """The room that measuring quality takes: several pieces of a text at once."""
    return ContextSettings(tokens=context, sequences=max(1, BATCH // context))


@contextlib.contextmanager
def temporary_folder(scratch: Path) -> Iterator[Path]:
    """A folder for large files that are removed when the block ends.

    Raises:
        LLMError: If there is no such folder, or it can't be written.
    """
    try:
        folder = tempfile.mkdtemp(prefix="llm-quality-", dir=scratch)
    except OSError as error:
        raise write_fault(scratch / "llm-quality", error) from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _speed(prompt: Result | None, new: Result | None, bandwidth: float | None) -> Speed:
    rate = _rate(new)
    mbu = None
    if rate is not None and new is not None and bandwidth:
        mbu = new.read_bytes * rate.mean / bandwidth
    return Speed(_rate(prompt), rate, mbu)


def _rate(result: Result | None) -> Rate | None:
    if result is None or result.status != DONE or not result.rates:
        return None
    return Rate(statistics.mean(result.rates), statistics.pstdev(result.rates))


def _path(folder: Path, file: GgufFile) -> Path:
    return folder / f"{file.path.stem}.json"


def _read(folder: Path, file: GgufFile, key: Mapping[str, Any]) -> Quality | None:
    try:
        held = json.loads(_path(folder, file).read_bytes())
        if held["made_with"] != {**key, "model": gguf_digest(file)}:
            return None
        numbers = {k: float("nan") if v is None else v for k, v in held["quality"].items()}
        return Quality(**numbers)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _keep(plan: QualityPlan, file: GgufFile, quality: Quality) -> None:
    held = {
        "made_with": {**plan.key, "model": gguf_digest(file)},
        "quality": plain(asdict(quality)),
    }
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(plan.folder, error) from error
    write_text(_path(plan.folder, file), json.dumps(held, indent=2) + "\n")
