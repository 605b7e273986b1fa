"""Compare GGUF models on the same text: is a quantized larger one better than a smaller one?

    llm-run python recipes/quantized/compare.py --output out/compare \\
        --models 8B-Q4_K_M.gguf --models 3B-F16.gguf --text articles.txt

The claim is that of many manuals: "quantized models outperform the smaller model". Take the larger
model at Q4_K_M and the smaller one at the type that makes its file as large (Q8_0, F16), and read
the verdict. Tokenizers may differ: what is compared is the bits that a model needs for a byte of
the text, and not perplexity, which is per token and so another thing for each tokenizer. The text
is cut into the same passages for all; the differences between models, passage by passage, give a
95 % interval (paired bootstrap). OUTPUT gets compare.json, .md, .png, run.json and all scores, so
that the same command, also with more models, measures only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import Terminated, run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.gguf.bench_points import Model
    from llm_recipes.gguf.comparison import Scored
    from llm_recipes.gguf.comparison_report import Entry
    from llm_recipes.gguf.evaluation_text import Text
    from llm_recipes.gguf.model import ContextSettings, Placement
    from llm_recipes.gguf.passages import Passage

RECIPE = "quantized/compare"


def compare(
    models: list[str],
    output: Path,
    text: str = "python",
    passages: int = 200,
    context: int = 512,
    speed: bool = True,
    gpu_layers: int | Literal["auto", "all"] = "auto",
    threads: int | Literal["auto"] = "auto",
) -> int:
    """Compare GGUF models on the same text: is a quantized larger one better than a smaller one?

    Args:
        models: GGUF files, repeat the option; the others are compared with the first.
        output: Folder for the result and what is measured.
        text: Text file in UTF-8; python: a part of Python's own documentation.
        passages: Passages of that text at most, of about 1000 bytes, evenly from all of it; 0: all.
        context: Tokens that a passage has at most, with every model.
        speed: Measure tokens a second with llama-bench.
        gpu_layers: Layers on GPUs; auto: as many as fit.
        threads: CPU threads; auto: what was granted.
    """
    settings = dict(locals())
    from llm_recipes.gguf.bench_points import read_models
    from llm_recipes.gguf.evaluation_text import read_text
    from llm_recipes.gguf.options import placement_faults
    from llm_recipes.run_folder import RunFolder

    faults = placement_faults({**settings, "shares": None, "split": "layer"})
    if passages < 0:
        faults.append(
            LLMError(f"--passages {passages} is not possible", "at least 0, which is all")
        )
    if context < 16:
        faults.append(LLMError(f"--context {context} is too small", "a passage needs 16 tokens"))
    raise_all(faults)
    found = read_models(models)
    if len(found) < 2:
        why = f"{len(models)} given, and different from each other: {len(found)}"
        fix = "--models LARGE-Q4_K_M.gguf --models SMALL-F16.gguf"
        raise LLMError("a comparison needs two models or more", why, fix)
    content = read_text(text, held_out=True)
    chosen = choose_passages(found, content, passages, context)
    with RunFolder(Path(output).expanduser().absolute()).locked() as _:
        return run(settings, found, content, chosen)


def choose_passages(models: Sequence[Model], text: Text, most: int, context: int) -> list[Passage]:
    """Passages that every model can see as a whole.

    Raises:
        LLMError: If there are not two.
    """
    import contextlib

    from llm_recipes.gguf.comparison import FEW, token_ids
    from llm_recipes.gguf.model import GgufModel
    from llm_recipes.gguf.passages import cut, fit, spread

    rooms = [min(context, model.file.context_length or context) for model in models]
    with contextlib.ExitStack() as opened:
        loaded = [
            opened.enter_context(GgufModel.load(model.file, vocabulary_only=True))
            for model in models
        ]
        tokenizers = [model.tokenizer for model in loaded]  # those that scoring uses

        def fits(content: str) -> bool:
            pairs = zip(tokenizers, rooms, strict=True)
            return all(len(token_ids(tokenizer, content)) <= room for tokenizer, room in pairs)

        found = fit(spread(cut(text.content), most), fits)
    if len(found) < 2:
        why = f"{text.name} has {len(found)} passage that can be compared"
        raise LLMError("the text is too short for a comparison", why, "a longer text")
    if len(found) < FEW:
        say(f"{len(found)} passages are few: the intervals below are rough; a longer text helps")
    return found


def run(
    settings: dict[str, Any], models: Sequence[Model], text: Text, passages: Sequence[Passage]
) -> int:
    """Score and measure what is not known yet, and show it all."""
    from llm_recipes.gguf.evaluation_text import PYTHON
    from llm_recipes.gguf.quality_run import device_of
    from llm_recipes.record import add_input, start_record, write_record

    output = Path(settings["output"]).expanduser().absolute()
    placements = [placement_of(settings, model) for model in models]
    layers = max(placement.gpu_layers for placement in placements)
    record = start_record(RECIPE, settings, device_of(layers), deterministic=layers == 0)
    record["data"] = {"path": text.name, "digest": text.digest, "rows": len(passages)}
    record["model"] = {"models": [model.described() for model in models]}
    add_input(record, "model", [shard for model in models for shard in model.file.shards])
    add_input(record, "data", None if settings["text"] == PYTHON else settings["text"])
    status = "failed"
    try:
        entries = [
            measure(settings, model, placement, passages, output)
            for model, placement in zip(models, placements, strict=True)
        ]
        record["metrics"] = show(entries, text, passages, output)
        status = "complete"
    except (KeyboardInterrupt, Terminated):
        status = "interrupted"
        say("what was measured is kept: the same command goes on")
        raise
    finally:
        try:
            names = [scores_name(model) for model in models] if status == "complete" else ()
            write_record(output / "run.json", record, status, results=names)
        except LLMError as fault:  # it must not hide what ended the run
            say(str(fault))
    return 0


def room_of(settings: dict[str, Any]) -> ContextSettings:
    """What scoring passages needs."""
    from llm_recipes.gguf.comparison import SEQUENCES
    from llm_recipes.gguf.model import ContextSettings

    return ContextSettings(settings["context"], SEQUENCES)


def placement_of(settings: dict[str, Any], model: Model) -> Placement:
    """Where a model's layers go.

    Raises:
        LLMError: If it does not fit.
    """
    from llm_recipes.gguf.placement import plan_placement

    return plan_placement(model.file, settings["gpu_layers"], "layer", (), room_of(settings))


def measure(
    settings: dict[str, Any],
    model: Model,
    placement: Placement,
    passages: Sequence[Passage],
    output: Path,
) -> Entry:
    """A model's scores and speed."""
    from llm_recipes.gguf.comparison_report import Entry
    from llm_recipes.gguf.importance import Engine
    from llm_recipes.gguf.placement import memory_need
    from llm_recipes.gguf.quality_run import bandwidth_of, measure_speed
    from llm_recipes.gguf.threads import granted_threads

    threads = settings["threads"]
    count = granted_threads().generate if threads == "auto" else threads
    engine = Engine(count, placement.gpu_layers)
    scored = scores_of(model, passages, placement, engine, output)
    speed = None
    if settings["speed"]:
        layers = placement.gpu_layers
        bandwidth = bandwidth_of(model.file.layers + 1, layers)
        found = measure_speed([model.file], output, count, layers, bandwidth)
        speed = found[model.file.path]
    return Entry(model, scored, memory_need(model.file, room_of(settings)).total, speed)


def scores_of(
    model: Model, passages: Sequence[Passage], placement: Placement, engine: Any, output: Path
) -> Scored:
    """A model's scores, which are kept."""
    from llm_recipes.gguf.comparison import (
        passages_digest,
        read_scores,
        score_model,
        write_scores,
    )

    key = {"model": model.digest, "passages": passages_digest(passages)}
    path = output / scores_name(model)
    scored = read_scores(path, key)
    if scored is None:
        scored = score_model(model.file, passages, placement, engine)
        write_scores(path, key, scored)
    return scored


def scores_name(model: Model) -> str:
    """The file of a model's scores in the output."""
    return f"scores/{model.digest[:16]}.json"


def show(
    entries: Sequence[Entry], text: Text, passages: Sequence[Passage], output: Path
) -> dict[str, Any]:
    """Print table and verdicts, write the files; returns the figures for the record."""
    from llm_recipes.gguf.comparison_report import report, table, verdicts, write_report

    found = report(entries, text, passages)
    print(table(found))
    print()
    for line in verdicts(found):
        print(line)
    written = write_report(found, output)
    say(f"written: {', '.join(str(path) for path in written)}")
    return found.as_record()


if __name__ == "__main__":
    run_recipe(compare)
