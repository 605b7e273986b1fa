"""Measure short fine-tunings over settings: time, throughput and memory of each, and the best.

    llm-run python recipes/finetune/sweep.py --model FOLDER --data FILE --output out/sweep \\
        --batch-size 1 --batch-size 2 --batch-size 4 --checkpointing false --checkpointing true
    llm-run --submit --array=0-5 --gpus=1 -- sh -c 'python recipes/finetune/sweep.py ... \\
        --run-index $SLURM_ARRAY_TASK_ID'
    llm-run python recipes/finetune/sweep.py --output out/sweep --collect

Every combination is a run of sft.py in a process of its own; running out of memory is a result.
OUTPUT gets sweep.json, sweep.md, throughput.png, memory.png, and runs/ with numbers and logs. Runs
that are done are not repeated: more values can be added later. --plan shows them and starts none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.files import write_fault
from llm_recipes.output_folder import check_output_folder, measuring_alone
from llm_recipes.record import read_record, write_record
from llm_recipes.say import say
from llm_recipes.stop_signals import UNFINISHED
from llm_recipes.sweep_folder import check_fixed, finished
from llm_recipes.sweep_plan import SFT, Planned, plan_runs, recipe_function
from llm_recipes.sweep_points import AXES, OWN, Point, combinations, fixed_settings
from llm_recipes.sweep_report import (
    RECIPE,
    TITLE,
    best_line,
    changes,
    gigabytes,
    ordered,
    show_table,
    start,
    write_report,
)
from llm_recipes.sweep_runs import (
    DONE,
    FAILED,
    IMPOSSIBLE,
    NO_MEMORY,
    RUNS,
    TOO_BIG,
    WARMUP_STEPS,
    Row,
    Unfinished,
    fixed_part,
    measure,
    read_rows,
    write_row,
)
from llm_recipes.text_table import aligned

FAILURE = 1  # exit status


def sweep(
    output: Path,
    model: str | None = None,
    data: str | None = None,
    batch_size: list[int] | None = None,
    method: list[Literal["lora", "qlora", "full"]] | None = None,
    lora_rank: list[int] | None = None,
    checkpointing: list[bool | Literal["auto"]] | None = None,
    dtype: list[Literal["auto", "bf16", "fp16", "fp32"]] | None = None,
    strategy: list[Literal["auto", "single", "ddp", "fsdp", "zero2", "zero3"]] | None = None,
    max_length: list[int] | None = None,
    steps: int = 8,
    options: Path | None = None,
    set: list[str] | None = None,
    processes: int = 1,
    max_runs: int = 32,
    plan: bool = False,
    run_index: int | None = None,
    collect: bool = False,
) -> int:
    """Measure short fine-tunings over settings: time, throughput and memory of each, and the best.

    Args:
        output: Folder for the table, the pictures and each run's numbers and log.
        model: Model folder, or a hub's name (OWNER/NAME).
        data: File of examples, as for sft.py.
        batch_size: Sequences at once on a process; repeat the option for each value to try.
        method: lora, qlora, full; repeat the option, as with the next ones.
        lora_rank: Width of the small matrices.
        checkpointing: Compute activations again instead of keeping them: true, false, auto.
        dtype: Computing precision.
        strategy: How several GPUs share the work.
        max_length: Tokens of an example at most.
        steps: Optimizer steps that are measured, after two that warm up.
        options: YAML file of sft.py's other options, such as a preset.
        set: One of them as key=value, before the file; repeat the option.
        processes: Of each run, on this node, one a GPU.
        max_runs: More combinations than this are refused.
        plan: Print the runs with their predicted memory, and start nothing.
        run_index: Do this run only, by its number in the plan, from 0: for job arrays.
        collect: Make table and pictures of what is there, and start nothing.
    """
    config = dict(locals())
    folder = output.expanduser().resolve()
    check_output_folder(folder, TITLE, RECIPE, "sweep")
    if collect:
        return collect_rows(folder, config)
    points = check(config, folder)
    check_fixed(folder, points[0], processes)
    chosen = points if run_index is None else [points[run_index]]
    done = finished(folder, chosen)
    ahead = [point for point in chosen if plan or point.name not in done]
    plans = make_plans(ahead, processes)
    show_plan(points, chosen, plans, done, sys.stdout if plan else sys.stderr)
    if plan:
        return 0
    begin(folder, config, points)
    if run_index is not None:
        return do_runs(folder, ahead, plans, processes)
    status = "interrupted"
    try:
        result = do_runs(folder, ahead, plans, processes)
        status = "interrupted" if result == UNFINISHED else "complete"
    finally:
        report(folder, config, [point.name for point in points], status)
    return result


def check(config: Mapping[str, Any], output: Path) -> list[Point]:
    """The runs, or everything that is wrong with the command line.

    Raises:
        LLMError, ExceptionGroup: All faults together.
    """
    faults = []
    for name in ("model", "data"):
        if not config[name]:
            fix = "only --collect does without"
            faults.append(LLMError(f"a sweep needs --{name}", "each run trains", fix))
    lists = {axis: config[axis] for axis in AXES}
    for axis, least in (("batch_size", 1), ("lora_rank", 1), ("max_length", 2)):
        bad = [str(value) for value in lists[axis] or [] if value < least]
        if bad:
            option = f"--{axis.replace('_', '-')}"
            what = f"{option} {', '.join(bad)} is not possible"
            faults.append(LLMError(what, f"it must be at least {least}"))
    for name in ("steps", "processes", "max_runs"):
        if config[name] < 1:
            what = f"--{name.replace('_', '-')} {config[name]} is not possible"
            faults.append(LLMError(what, "it must be at least 1"))
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        fix = "python recipes/finetune/sweep.py --processes N starts torchrun for each run"
        faults.append(LLMError("sweep.py is one process", "torchrun has started several", fix))
    finetune = recipe_function(SFT)
    base: dict[str, Any] = {}
    given: set[str] = set()

    def read() -> None:
        found, names = fixed_settings(finetune, config["options"], config["set"] or [])
        base.update(found)
        given.update(names)

    faults += faults_of(read)
    raise_all(faults)
    shared = {
        "model": absolute(config["model"]),
        "data": absolute(config["data"]),
        "output": str(output),
        "max_steps": config["steps"] + WARMUP_STEPS,
    }
    defaults = fixed_settings(finetune, None, [])[0]
    settings = {**base, **OWN, **shared}
    points = combinations(settings, lists, defaults, config["processes"], "global_batch" in given)
    check_number(points, config)
    return points


def absolute(name: str) -> str:
    """A path that is right in every folder; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def check_number(points: Sequence[Point], config: Mapping[str, Any]) -> None:
    """See that there is something to compare, not too much, and the run that is asked for.

    Raises:
        LLMError: If not.
    """
    if len(points) < 2:
        why = "every setting has one value, or those given make the same run"
        fix = "such as --batch-size 1 --batch-size 2 --batch-size 4"
        raise LLMError("there is nothing to sweep", why, fix)
    if len(points) > config["max_runs"]:
        counts = {AXES[axis]: len(config[axis]) for axis in AXES if config[axis]}
        why = " x ".join(f"{count} {name}" for name, count in counts.items())
        fix = f"fewer values, or --max-runs {len(points)}"
        what = f"{len(points)} runs are more than --max-runs {config['max_runs']}"
        raise LLMError(what, why, fix)
    index = config["run_index"]
    if index is not None and not 0 <= index < len(points):
        why = f"there are {len(points)}: 0 to {len(points) - 1}"
        fix = f"--array=0-{len(points) - 1}"
        raise LLMError(f"--run-index {index} names no run", why, fix)


def make_plans(points: Sequence[Point], processes: int) -> dict[str, Planned]:
    """What each run would do.

    Raises:
        LLMError: If none of them can be started.
    """
    if not points:
        return {}
    plans = plan_runs([point.settings for point in points], processes)
    faults = {plan.fault: None for plan in plans if plan.fault and not plan.too_large}
    if all(plan.fault and not plan.too_large for plan in plans):
        raise LLMError("\n".join(faults))
    return {point.name: plan for point, plan in zip(points, plans, strict=True)}


def show_plan(
    points: Sequence[Point],
    chosen: Sequence[Point],
    plans: Mapping[str, Planned],
    done: Mapping[str, Row],
    file: Any,
) -> None:
    """Print the runs, numbered, with their predicted memory."""
    lines = [["run", "number", "predicted GB", "what it would do"]]
    for number, point in enumerate(points):
        if point not in chosen:
            continue
        plan = plans.get(point.name, Planned())
        does = f"{plan.strategy}, checkpointing {'on' if plan.checkpointing else 'off'}"
        if plan.fault:
            does = plan.fault.splitlines()[0]
        elif not plan.fits:
            does += ", may not fit"
        if point.name in done:
            does = f"nothing: {done[point.name].status}"
        lines.append([point.name, str(number), gigabytes(plan.predicted_bytes), does])
    print(aligned(lines), file=file, flush=True)


def begin(output: Path, config: dict[str, Any], points: Sequence[Point]) -> None:
    """Mark the folder as a sweep's.

    Raises:
        LLMError: If it can't be written.
    """
    names = [point.name for point in points]
    earlier = read_record(output / TITLE)
    if config["run_index"] is not None and earlier and earlier.get("runs") == names:
        return  # tasks of an array: one of them is enough
    try:
        (output / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(output, error) from error
    write_record(output / TITLE, start(config, names), "running")


def do_runs(
    output: Path, points: Sequence[Point], plans: Mapping[str, Planned], processes: int
) -> int:
    """Do the runs one after the other; returns the exit status."""
    failed = False
    for number, point in enumerate(points, 1):
        plan = plans[point.name]
        say(f"{number} of {len(points)}: {point.name} …")
        try:
            with measuring_alone(output / RUNS / f".{point.name}.lock", "sweep", point.name):
                row = result_of(output, point, plan, processes)
        except Unfinished:
            say("the job's time is nearly over: the same command goes on with the other runs")
            return UNFINISHED
        failed = failed or row.status == FAILED
        say(f"  {describe_row(row)}")
    return FAILURE if failed else 0


def result_of(output: Path, point: Point, plan: Planned, processes: int) -> Row:
    """Measure a run, or say why that makes no sense."""
    status, note = "", ""
    smaller = ran_out(output, point)
    if plan.fault:
        status, note = (TOO_BIG if plan.too_large else IMPOSSIBLE), plan.fault
    elif smaller is not None:
        status, note = NO_MEMORY, f"not started: {smaller.name} ran out"
    if not status:
        return measure(point, plan, output, processes, SFT)
    predicted = plan.predicted_bytes
    fixed = fixed_part(point, processes)
    row = Row(point.name, point.axes, fixed, status, note, predicted_bytes=predicted)
    write_row(output, row)
    return row


def ran_out(output: Path, point: Point) -> Row | None:
    """A smaller batch, otherwise alike, that memory was too small for."""
    for row in read_rows(output):
        rest = {**point.axes, "batch_size": row.axes["batch_size"]}
        smaller = row.axes["batch_size"] < point.axes["batch_size"]
        if row.status == NO_MEMORY and smaller and row.axes == rest:
            return row
    return None


def describe_row(row: Row) -> str:
    """A result in a line, a failure with the end of its log."""
    if row.status != DONE:
        return f"{row.status}: {row.note}".replace("\n", "\n    ")
    memory = f"{gigabytes(row.peak_bytes)} GB {row.memory}"
    return f"{row.step_s:.3g} s a step, {row.tokens_per_s:,.0f} tokens/s, {memory}"


def collect_rows(output: Path, config: dict[str, Any]) -> int:
    """Table and pictures of what is there.

    Raises:
        LLMError: If nothing is.
    """
    record = read_record(output / TITLE) or {}
    names = [str(name) for name in record.get("runs") or []]
    rows = read_rows(output)
    if not rows:
        fix = "give its command without --collect, or with --run-index"
        raise LLMError(f"{output} holds no results of a sweep", "no run has ended", fix)
    missing = [name for name in names if name not in {row.name for row in rows}]
    if missing:
        say(f"not there yet: {', '.join(missing)}")
    known = record.get("config")
    report(
        output,
        known if isinstance(known, dict) else config,
        names,
        "interrupted" if missing else "complete",
    )
    return FAILURE if any(row.status == FAILED for row in rows) else 0


def report(output: Path, config: dict[str, Any], names: Sequence[str], status: str) -> None:
    """Print and write what is known."""
    rows = ordered(read_rows(output))
    if not rows:
        return
    show_table(rows)
    for line in changes(rows):
        print(line)
    print(best_line(rows), flush=True)
    written = write_report(output, rows, config, names, status)
    say(f"written: {', '.join(path.name for path in written)} in {output}")


if __name__ == "__main__":
    run_recipe(sweep)
