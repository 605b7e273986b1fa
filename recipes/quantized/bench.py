"""Measure GGUF models with llama-bench: types, threads, batches, GPU layers, hosts; compare two.

    llm-run python recipes/quantized/bench.py --models models/gguf --output out/bench
    llm-run python recipes/quantized/bench.py --models model-Q4_K_M.gguf --output out/threads \\
        --threads 1 --threads 2 --threads 4 --rounds 5
    llm-run python recipes/quantized/bench.py --compare out/before --compare out/after

Every combination is a start of llama-bench; running out of memory is a result. Rounds go through
all of them again, so that a machine that slows down slows all alike. OUTPUT gets points.jsonl (a
line for each result, as soon as it is there), run.json, table.md, table.csv and pictures. The same
command goes on where it was stopped; more values can be added later. --plan starts nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import Terminated, run_recipe
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.say import say
from llm_recipes.stop_signals import UNFINISHED, declare_unfinished, stop_requested

if TYPE_CHECKING:
    from llm_recipes.gguf.bench_points import Machine, Measurement, Model, Point
    from llm_recipes.gguf.bench_results import Result
    from llm_recipes.gguf.bench_runs import Bench

FAILURE = 1  # exit status
KvType = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


@dataclass(frozen=True)
class Job:
    """A checked command line. points: one start of llama-bench each, a round."""

    config: dict[str, Any]
    points: list[Point]
    bench: Bench
    machine: Machine
    rounds: int


def benchmark(
    models: list[str] | None = None,
    output: Path | None = None,
    threads: list[int | Literal["auto"]] | None = None,
    batch: list[int] | None = None,
    micro_batch: list[int] | None = None,
    gpu_layers: list[int | Literal["auto", "all"]] | None = None,
    split: list[Literal["layer", "row", "tensor", "none"]] | None = None,
    shares: str | None = None,
    hosts: bool = False,
    kv_type: list[KvType] | None = None,
    flash_attention: list[Literal["auto", "on", "off"]] | None = None,
    depth: list[int] | None = None,
    prompt_tokens: list[int] | None = None,
    new_tokens: list[int] | None = None,
    rounds: int = 3,
    repeats: int = 2,
    max_runs: int = 64,
    measure_peak: bool = False,
    plan: bool = False,
    compare: list[Path] | None = None,
) -> int:
    """Measure GGUF models with llama-bench: types, threads, batches, GPU layers, hosts.

    Args:
        models: GGUF file, or a folder of them; repeat the option for several.
        output: Folder for results, table and pictures; with --compare for its table, or null.
        threads: Of the CPU; repeat the option for each value to try, as with the next ones; null:
            auto, the cores that were granted.
        batch: Tokens of a call at most; null: 2048.
        micro_batch: Tokens computed at once; null: 512.
        gpu_layers: Layers on GPUs (the output is one more), all or auto; null: auto, what fits.
        split: How several GPUs share a model; null: layer.
        shares: Of each GPU, such as 3,1; null: by their free memory.
        hosts: Use the memory of all nodes of the job, by RPC; not encrypted.
        kv_type: Of keys and values in the cache; null: f16.
        flash_attention: on, off, auto; null: auto.
        depth: Tokens that are in the cache before; null: 0.
        prompt_tokens: Length of a prompt; 0 leaves prompts out; null: 512.
        new_tokens: Tokens to generate; 0 leaves it out; null: 128.
        rounds: How often to go through all combinations.
        repeats: Of each test, in a start of llama-bench.
        max_runs: More combinations than this are refused.
        measure_peak: Measure the host's memory bandwidth first, for the MBU (seconds).
        plan: Print what would be measured, and start nothing.
        compare: Two folders of this recipe (repeat the option): ratios of their points.
    """
    config = dict(locals())
    if compare is not None:
        return compare_two(config)
    if hosts:
        from llm_recipes.gguf.bench_options import option_faults
        from llm_recipes.gguf.hosts import run_on_hosts

        raise_all(option_faults(config))
        (count,) = threads or ("auto",)  # others are refused
        status = run_on_hosts(count if isinstance(count, int) else None)
        if status is not None:
            return status
    job = check(config)
    results = earlier_results(job)
    show_plan(job, results, sys.stdout if plan else sys.stderr)
    return 0 if plan else measure_all(job)


def check(config: dict[str, Any]) -> Job:
    """What to measure, or everything that is wrong with the command line.

    Raises:
        LLMError, ExceptionGroup: All faults together.
    """
    from llm_recipes.gguf.bench_options import axes_of, check_number, gpu_faults, option_faults
    from llm_recipes.gguf.bench_plan import list_gpus, llama_version, rpc_endpoints
    from llm_recipes.gguf.bench_points import Machine, combinations, read_models
    from llm_recipes.gguf.bench_runs import Bench
    from llm_recipes.gguf.remote_hosts import known_hosts
    from llm_recipes.gguf.threads import granted_cores

    faults = option_faults(config)
    models: list[Model] = []
    endpoints: list[str] = []
    faults += faults_of(lambda: models.extend(read_models(config["models"] or [])))
    faults += faults_of(lambda: endpoints.extend(rpc_endpoints()))
    raise_all(faults)
    cores, version = granted_cores(), llama_version()
    gpus = list_gpus(endpoints)
    raise_all(gpu_faults(config, len(gpus)))
    hosts = known_hosts()
    machine = Machine(gpus, config["shares"] or "", len(endpoints), hosts)
    granted = (cores.generate, cores.prompt)
    points = combinations(models, axes_of(config, granted), machine)
    check_number(points, config)
    output = config["output"].expanduser().absolute()
    bench = Bench(output, version, config["repeats"], cores, tuple(endpoints), hosts)
    return Job(config, points, bench, machine, config["rounds"])


def show_plan(job: Job, results: Sequence[Result], file: Any) -> None:
    """Print the combinations, what is known of them beforehand, and about how long they take."""
    from llm_recipes.gguf.bench_plan import duration
    from llm_recipes.gguf.bench_table import NAMES
    from llm_recipes.text_table import aligned

    to_do = {id(point) for _, point, _ in steps(job, results, set())}
    lines = [["model", "type", "GB", *NAMES.values(), "what happens"]]
    for point in job.points:
        does = f"{point.status}: {point.note}" if point.status else "measured"
        if not point.status and id(point) not in to_do:
            does = "nothing: it is there"
        size = f"{point.model.file.bytes / 1e9:.3g}"
        settings = [str(getattr(point.setting, name)) or "-" for name in NAMES]
        lines.append([point.model.title, point.model.file.file_type, size, *settings, does])
    print(aligned(lines, names=2), file=file)
    starts = sum(1 for _ in steps(job, results, set()))
    tests = ", ".join(test.title for test in job.points[0].tests)
    print(
        f"{len(job.points)} combinations, {job.rounds} round(s) of {tests}, {job.bench.repeats}"
        f" repeat(s) each; {starts} starts of llama-bench, very roughly"
        f" {duration(seconds_ahead(job, results, set()))}",
        file=file,
        flush=True,
    )


def steps(
    job: Job, results: Sequence[Result], given_up: set[str]
) -> Iterator[tuple[int, Point, list[Measurement]]]:
    """What is still to be done, in order: round, point, tests.

    Every second round goes backwards, so that a steady drift of the machine cancels out.
    """
    from llm_recipes.gguf.bench_results import missing_tests

    for number in range(1, job.rounds + 1):
        for point in job.points if number % 2 else reversed(job.points):
            tests = missing_tests(point, number, results, given_up, job.bench.version)
            if tests and not point.status:
                yield number, point, tests


def seconds_ahead(job: Job, results: Sequence[Result], given_up: set[str]) -> float:
    """How long the rest takes, by rough rates."""
    from llm_recipes.gguf.bench_plan import estimate

    repeats, gpus = job.bench.repeats, job.machine.gpus
    return sum(estimate(p, tests, repeats, gpus) for _, p, tests in steps(job, results, given_up))


def earlier_results(job: Job) -> list[Result]:
    """Results that are there already.

    Raises:
        LLMError: If they are another machine's.
    """
    from llm_recipes.cpu_topology import cpu_model
    from llm_recipes.gguf.bench_results import RESULTS, check_machine, read_results

    output = job.bench.output
    results = read_results(output) if (output / RESULTS).is_file() else []
    gpus = ", ".join(gpu.description for gpu in job.machine.gpus)
    check_machine(output, results, cpu_model(), None if job.machine.workers else gpus)
    return results


def measure_all(job: Job) -> int:
    """Measure what is missing; whatever ends it, what is there becomes a table and pictures."""
    from llm_recipes.device import choose_device, device_name
    from llm_recipes.gguf.bench_options import RECIPE, RECORD
    from llm_recipes.gguf.bench_report import peak_of, report
    from llm_recipes.output_folder import measuring_alone
    from llm_recipes.record import add_input, start_record, write_record

    bench, gpus = job.bench, job.machine.gpus
    device = ", ".join(gpu.description for gpu in gpus) or device_name(choose_device("cpu"))
    record = start_record(RECIPE, job.config, device)
    models = list({point.model.digest: point.model for point in job.points}.values())
    add_input(record, "model", [shard for m in models for shard in m.file.shards])
    record["models"] = [{"path": str(m.file.path), **m.described()} for m in models]
    with measuring_alone(bench.output / ".lock", "bench.py", f"in {bench.output}"):
        results = earlier_results(job)  # once more: others may have measured meanwhile
        write_record(bench.output / RECORD, record, "running")
        peak = peak_of(gpus, job.config["measure_peak"])
        try:
            result = measure_missing(job, results)
        except BaseException as error:
            stopped = isinstance(error, (KeyboardInterrupt, Terminated))
            if stopped:
                say("what was measured is kept: the same command goes on")
            try:
                status = "interrupted" if stopped else "failed"
                report(bench.output, bench.version, results, peak, record, status)
            except LLMError as fault:  # it must not hide what ended the run
                say(str(fault))
            raise
        status = "interrupted" if result == UNFINISHED else "complete"
        report(bench.output, bench.version, results, peak, record, status)
    return result


def measure_missing(job: Job, results: list[Result]) -> int:
    """Go through the rounds, and add what they find to the results; returns the exit status."""
    from llm_recipes.gguf.bench_plan import duration, estimate
    from llm_recipes.gguf.bench_points import DONE, FAILED
    from llm_recipes.gguf.bench_runs import measure

    note_impossible(job, results)
    given_up: set[str] = set()
    spent, expected, done = 0.0, 0.0, 0
    while ahead := list(steps(job, results, given_up)):
        number, point, tests = ahead[0]
        if stop_requested():
            declare_unfinished()
            say("the job's time is nearly over: the same command goes on")
            return UNFINISHED
        done += 1
        say(f"{done} of {done - 1 + len(ahead)}, round {number}: {describe(point)} …")
        began = time.monotonic()
        expected += estimate(point, tests, job.bench.repeats, job.machine.gpus)
        found: list[Result] = []
        try:
            measure(job.bench, point, tests, number, found)
        finally:
            results += found
        spent += time.monotonic() - began
        given_up |= {result.key for result in found if result.status != DONE}
        left = seconds_ahead(job, results, given_up) * spent / expected
        say(f"  {outcomes(found)}{f'; {duration(left)} left' if left else ''}")
    if not done:
        say("nothing to do: everything is measured")
    return FAILURE if any(r.status == FAILED and r.key in given_up for r in results) else 0


def note_impossible(job: Job, results: list[Result]) -> None:
    """Results of what is known not to run, unless they are there."""
    from llm_recipes.gguf.bench_runs import give_up

    known = {(result.key, result.status) for result in results}
    for point in job.points:
        keys = {(point.key(test, job.bench.version), point.status) for test in point.tests}
        if point.status and not keys <= known:
            results += give_up(job.bench, point, 1)


def describe(point: Point) -> str:
    """A point in a line."""
    from dataclasses import asdict

    from llm_recipes.gguf.bench_table import in_words

    return f"{point.model.title}, {in_words(asdict(point.setting))}"


def outcomes(results: Sequence[Result]) -> str:
    """Results of a start in a line; what ended alike is said once."""
    from llm_recipes.gguf.bench_points import DONE

    ends: dict[str, list[str]] = {}
    for result in results:
        end = f"{result.status}: {result.note}"
        if result.status == DONE:
            end = f"{sum(result.rates) / len(result.rates):.4g} tokens/s"
        ends.setdefault(end, []).append(result.measurement.title)
    return "; ".join(f"{', '.join(titles)} {end}" for end, titles in ends.items())


def compare_two(config: dict[str, Any]) -> int:
    """Compare two benchmarks.

    Raises:
        LLMError, ExceptionGroup: All faults together.
    """
    from llm_recipes.gguf.bench_report import report_comparison

    paths: list[Path] = config["compare"]
    faults = []
    if len(paths) != 2:
        what = f"--compare compares two benchmarks, and {len(paths)} are given"
        faults.append(LLMError(what, fix="--compare BEFORE --compare AFTER"))
    if config["models"]:
        fix = "leave --models out, or measure first and compare then"
        faults.append(LLMError("--compare measures nothing", "--models is given", fix))
    raise_all(faults)
    output = config["output"]
    report_comparison(paths, None if output is None else output.expanduser().absolute())
    return 0


if __name__ == "__main__":
    run_recipe(benchmark)
