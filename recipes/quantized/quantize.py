"""Quantize a GGUF model to several types, and measure what each of them costs and gives.

    llm-run python recipes/quantized/quantize.py --model model-F16.gguf --output models/q \\
        --types Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_XS,Q2_K
    llm-run python recipes/quantized/quantize.py --model model-F16.gguf --output models/q \\
        --types Q4_K_M,IQ2_XXS --importance-text texts.txt --evaluate-text held-out.txt

Sizes are known before anything is written (--plan shows only them). OUTPUT gets a file a type,
quality.json, .csv, .md and .png, run.json, and what was measured of each file. The same command
again makes and measures only what is missing or damaged; with more types, only those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import Terminated, run_recipe
from llm_recipes.errors import LLMError
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.gguf.file import GgufFile
    from llm_recipes.gguf.quality import Quality
    from llm_recipes.gguf.quality_table import Row, Speed
    from llm_recipes.gguf.quantize_plan import Plan
    from llm_recipes.gguf.quantizing import Target

JOB_BYTES = 1.5 * 2**30  # of memory that a job of llama-quantize takes at most


def quantize(
    model: Path,
    output: Path,
    types: list[str] | None = None,
    importance_text: str | None = None,
    importance_matrix: Path | None = None,
    importance_chunks: int = 128,
    evaluate_text: str = "python",
    chunks: int = 32,
    quality: bool = True,
    speed: bool = True,
    embedding_type: str | None = None,
    output_type: str | None = None,
    pure: bool = False,
    allow_requantize: bool = False,
    gpu_layers: int | Literal["auto", "all"] = "auto",
    threads: int | Literal["auto"] = "auto",
    jobs: int = 1,
    scratch: Path | None = None,
    overwrite: bool = False,
    plan: bool = False,
) -> int:
    """Quantize a GGUF model to several types, and measure what each of them costs and gives.

    Args:
        model: GGUF file in F32, F16, BF16 or Q8_0; of several shards the first.
        output: Folder for the quantized files and what is measured.
        types: Quantization types, with commas or the option repeated; null: Q8_0, Q6_K, Q5_K_M and
            Q4_K_M.
        importance_text: Text file for an importance matrix, which types below 4 bits need or gain
            by; `python`: Python's documentation; null: no matrix.
        importance_matrix: A matrix that llama-imatrix has made (.gguf); null: none.
        importance_chunks: Pieces of that text, of 512 tokens each, at most; 0: all.
        evaluate_text: Text file to measure quality with; `python`: the part of Python's
            documentation that recipes/data/tiny.py and --importance-text python do not learn from.
        chunks: Pieces of that text, of 512 tokens each, at most; 0: all.
        quality: Measure perplexity and KL divergence against the model.
        speed: Measure tokens a second with llama-bench.
        embedding_type: Tensor type of the token embeddings, such as Q8_0; null: as the type has it.
        output_type: Tensor type of the output layer, such as Q8_0; null: as the type has it.
        pure: Give all tensors the same type, without better ones for the sensitive.
        allow_requantize: Take a model that is quantized already, and lose twice.
        gpu_layers: Layers on GPUs while measuring; auto: as many as fit.
        threads: CPU threads; auto: what was granted.
        jobs: Types at once, with the threads divided among them.
        scratch: Folder for the model's predictions while measuring, large and removed afterwards;
            null: the temporary folder (TMPDIR).
        overwrite: Replace files of other models or settings.
        plan: Show sizes, and what there is to do, and stop.
    """
    settings = dict(locals())
    from llm_recipes.gguf.quantize_plan import check_plan, make_plan
    from llm_recipes.run_folder import RunFolder

    made = make_plan(settings)
    show_plan(made)
    check_plan(made)
    if plan:
        return 0

    with RunFolder(made.output).locked():
        return run(made)


def show_plan(plan: Plan) -> None:
    """Print what will be made, how large it is, and which tensors get other types."""
    from llm_recipes.gguf.quality_table import count_text, size_text
    from llm_recipes.gguf.quantizing import fallback_lines
    from llm_recipes.text_table import aligned

    source = plan.source
    say(
        f"{source.path}: {source.architecture}, {source.file_type},"
        f" {count_text(source.parameters)} parameters, {size_text(source.bytes)}"
    )
    lines = [["type", "size", "bits a weight", "of the model", "state", ""]]
    for target in plan.targets:
        p = target.prediction
        share = f"{p.bytes / source.bytes:.0%}"
        state = plan.states[target.path]
        lines.append(
            [target.name, size_text(p.bytes), f"{p.bits_per_weight:.2f}", share, state, ""]
        )
    if plan.targets:
        say(aligned(lines))
    for line in fallback_lines(target.prediction for target in plan.targets):
        say(f"warning: {line}")
    damaged = [t.path.name for t in plan.targets if plan.states[t.path] == "damaged"]
    if damaged:
        say(f"cut off since it was made, and made again: {', '.join(damaged)}")
    texts = plan.texts
    if texts.importance and texts.evaluation and texts.importance.digest == texts.evaluation.digest:
        say("warning: the matrix is made of the text that is measured: it will look too good")
    if plan.quant.requantize:
        say(f"warning: the model is {source.file_type}: its own losses are in no figure below")


def run(plan: Plan) -> int:
    """Make what is missing, measure it, and show it all; what was reached is kept and recorded."""
    from llm_recipes.gguf.file import gguf_digest, read_gguf
    from llm_recipes.record import write_record

    record = begin_record(plan)
    record["model"] = {
        "path": str(plan.source.path),
        "architecture": plan.source.architecture,
        "parameters": plan.source.parameters,
        "dtype": plan.source.file_type,
        "digest": gguf_digest(plan.source),
    }
    text = plan.texts.evaluation
    if text is not None:
        record["data"] = {"path": text.name, "digest": text.digest, "rows": plan.texts.chunks}
    status = "failed"
    try:
        make_files(plan)
        files = [read_gguf(target.path) for target in plan.targets]
        rows = measure_files(plan, files)
        show(plan, rows)
        record["metrics"] = {"files": [target.path.name for target in plan.targets]}
        record["results"] = hashes_of(plan)
        status = "complete"
    except (KeyboardInterrupt, Terminated):
        status = "interrupted"
        say("finished files and measurements are kept: the same command goes on")
        raise
    finally:
        try:
            write_record(plan.output / "run.json", record, status)
        except LLMError as fault:  # it must not hide what ended the run
            say(str(fault))
    return 0


def begin_record(plan: Plan) -> dict[str, Any]:
    """A record of what is made of the model."""
    from llm_recipes.gguf.evaluation_text import PYTHON
    from llm_recipes.gguf.quantizing import RECIPE
    from llm_recipes.record import add_input, start_record

    # Of a matrix and of speed nobody promises that they come out the same.
    repeatable = plan.matrix is None
    record = start_record(RECIPE, plan.settings, device_of(plan), deterministic=repeatable)
    shards = list(plan.source.shards)
    add_input(record, "model", shards[0] if len(shards) == 1 else shards)
    measured = plan.settings["evaluate_text"]
    add_input(record, "data", None if measured == PYTHON else measured)
    return record


def hashes_of(plan: Plan) -> dict[str, str | None]:
    """SHA-256 of the files, as the record of each has it: they are not read again."""
    from llm_recipes.record import read_record, record_path

    records = {t.path.name: read_record(record_path(t.path)) or {} for t in plan.targets}
    return {name: record.get("output_digest") for name, record in sorted(records.items())}


def make_files(plan: Plan) -> None:
    """The importance matrix and the quantized files that are not there yet."""
    from llm_recipes.gguf.importance import copy_matrix, make_matrix
    from llm_recipes.gguf.quality_table import size_text
    from llm_recipes.gguf.quantizing import other_types, quantize_all
    from llm_recipes.progress import Progress

    if not plan.unmade:
        say("nothing to quantize: all files are there")
        return
    texts, matrix = plan.texts, plan.matrix
    if matrix is not None and texts.importance is not None:
        tokens = texts.importance_tokens
        make_matrix(matrix, plan.source, texts.importance, tokens, plan.context, plan.engine)
    elif matrix is not None:
        copy_matrix(matrix, Path(plan.settings["importance_matrix"]).expanduser())
    jobs = possible_jobs(plan)
    total = len(plan.unmade) * len(plan.source.tensors)
    with Progress("quantize", total, "tensors") as progress:

        def done(target: Target, made: GgufFile) -> None:
            for line in other_types(target, made):
                say(f"warning: {target.path.name}: {line}")
            say(f"{target.path} ({size_text(made.bytes)})")

        quantize_all(
            plan.source,
            plan.unmade,
            plan.quant,
            None if matrix is None else matrix.path,
            max(1, plan.engine.threads // jobs),
            jobs,
            lambda target: begin_record(plan),
            lambda target: progress.advance(target.name),
            done,
        )


def possible_jobs(plan: Plan) -> int:
    """As many at once as were asked for, if memory has room for them."""

    from llm_recipes.host_memory import free_host_bytes

    wanted = min(plan.settings["jobs"], len(plan.unmade))
    room = int(free_host_bytes() // JOB_BYTES)
    if room < wanted:
        say(f"memory has room for {max(1, room)} of {wanted} jobs at once")
    return max(1, min(wanted, room))


def measure_files(plan: Plan, files: Sequence[GgufFile]) -> list[Row]:
    """The table's rows, the model first."""
    from llm_recipes.gguf.quality_run import bandwidth_of, measure_quality, measure_speed
    from llm_recipes.gguf.quantize_plan import plan_of_quality

    qualities: dict[Path, Quality] = {}
    speeds: dict[Path, Speed] = {}
    if plan.texts.evaluation is not None:
        planned_quality = plan_of_quality(plan, files)
        text = plan.texts.evaluation
        qualities = measure_quality(planned_quality, text, plan.engine, plan.scratch)
    if plan.settings["speed"]:
        bandwidth = bandwidth_of(plan.source.layers + 1, plan.engine.gpu_layers)
        everything = [plan.source, *files]
        threads, layers = plan.engine.threads, plan.engine.gpu_layers
        speeds = measure_speed(everything, plan.output, threads, layers, bandwidth)
    rows = [row_of(plan, plan.source, None, qualities, speeds)]
    for target, file in zip(plan.targets, files, strict=True):
        rows.append(row_of(plan, file, target, qualities, speeds))
    return rows


def row_of(
    plan: Plan,
    file: GgufFile,
    target: Target | None,
    qualities: Mapping[Path, Quality],
    speeds: Mapping[Path, Speed],
) -> Row:
    """A file's line of the table; no target: it is the model."""
    from llm_recipes.gguf.placement import memory_need
    from llm_recipes.gguf.quality_run import measuring_context
    from llm_recipes.gguf.quality_table import Row

    return Row(
        file.file_type if target is None else target.name,
        file.path.name,
        file.bytes,
        file.bits_per_weight,
        memory_need(file, measuring_context(plan.context)).total,
        0 if target is None else len(target.prediction.fallbacks),
        target is not None and target.made_with["importance"] is not None,
        target is None,
        qualities.get(file.path),
        speeds.get(file.path),
    )


def show(plan: Plan, rows: Sequence[Row]) -> None:
    """Print the table and write the files."""
    from llm_recipes.gguf.quality_table import columns, table, write_all

    notes = notes_of(plan)
    print(table(rows))
    for title, meaning, _ in columns(rows)[3:]:
        print(f"  {title}: {meaning}")
    for note in notes:
        print(f"  {note}")
    text = plan.texts.evaluation
    facts = {
        "model": str(plan.source.path),
        "text": None if text is None else {"name": text.name, "digest": text.digest},
        "chunks": plan.texts.chunks,
        "context": plan.context,
        "threads": plan.engine.threads,
        "gpu_layers": plan.engine.gpu_layers,
        "device": device_of(plan),
        "importance": None if plan.matrix is None else plan.matrix.path.name,
    }
    written = write_all(plan.output, rows, facts, notes)
    say(f"written: {', '.join(str(path) for path in written)}")


def notes_of(plan: Plan) -> list[str]:
    """What the figures are of, in sentences."""
    from llm_recipes.gguf.quality import predicted

    notes = []
    text = plan.texts.evaluation
    if text is not None:
        count = plan.texts.chunks * predicted(plan.context)
        notes.append(
            f"text: {text.name}, {plan.texts.chunks} pieces of {plan.context} tokens, of which the"
            f" second half is predicted: {count} tokens"
        )
    if plan.settings["speed"]:
        where = f"{plan.engine.gpu_layers} layers on GPUs" if plan.engine.gpu_layers else "no GPU"
        notes.append(
            "speed: a prompt of 512 tokens, 128 generated ones,"
            f" --threads {plan.engine.threads}, {where}, {device_of(plan)}"
        )
    if plan.matrix is not None:
        notes.append(f"importance matrix: {plan.matrix.path.name}, of {plan.matrix.text or '?'}")
    return notes


def device_of(plan: Plan) -> str:
    """What computes."""
    from llm_recipes.gguf import quality_run

    return quality_run.device_of(plan.engine.gpu_layers)


if __name__ == "__main__":
    run_recipe(quantize)
