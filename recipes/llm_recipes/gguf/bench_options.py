"""Whether a benchmark's options can be meant, and the values to try that they stand for.

    from llm_recipes.gguf.bench_options import axes_of, option_faults
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_recipes.errors import LLMError, faults_of
from llm_recipes.gguf.bench_points import Axes, Point
from llm_recipes.gguf.placement import shares_of
from llm_recipes.gguf.threads import MOST_THREADS
from llm_recipes.output_folder import check_output_folder

RECIPE = "quantized/bench"
RECORD = "run.json"
# Options that are lists, the least that each value may be, and what none means.
NUMBERS = {
    "threads": (1, ("auto",)),
    "batch": (1, (2048,)),
    "micro_batch": (1, (512,)),
    "gpu_layers": (0, ("auto",)),
    "depth": (0, (0,)),
    "prompt_tokens": (0, (512,)),
    "new_tokens": (0, (128,)),
}


def option_faults(config: Mapping[str, Any]) -> list[LLMError]:
    """Options whose value cannot be meant, and missing ones."""
    faults = []
    if not config["models"]:
        fix = "--models FILE.gguf, or a folder of them"
        faults.append(LLMError("there is no model to measure", fix=fix))
    if config["output"] is None:
        faults.append(LLMError("option --output is missing", fix="--output FOLDER"))
    else:
        output = config["output"].expanduser().absolute()
        faults += faults_of(lambda: check_output_folder(output, RECORD, RECIPE, "benchmark"))
    for name, (least, _) in NUMBERS.items():
        values = [value for value in config[name] or [] if isinstance(value, int)]
        most = MOST_THREADS if name == "threads" else 2**31 - 1
        bad = [str(value) for value in values if not least <= value <= most]
        if bad:
            option = f"--{name.replace('_', '-')}"
            what = f"{option} {', '.join(bad)} is not possible"
            faults.append(LLMError(what, f"it must be from {least} to {most}"))
    if config["hosts"] and len(config["threads"] or []) > 1:
        what = "several values of --threads do not go with --hosts"
        why = "servers keep the number that they were started with"
        faults.append(LLMError(what, why, "a benchmark for each, or --threads once"))
    for name in ("rounds", "repeats", "max_runs"):
        if config[name] < 1:
            what = f"--{name.replace('_', '-')} {config[name]} is not possible"
            faults.append(LLMError(what, "it must be at least 1"))
    lengths = [config["prompt_tokens"], config["new_tokens"]]
    if all(given is not None and not any(given) for given in lengths):
        why = "both --prompt-tokens and --new-tokens are 0"
        faults.append(LLMError("there is nothing to measure", why, "leave one of them out"))
    return faults + faults_of(lambda: shares_of(config["shares"]))


def gpu_faults(config: Mapping[str, Any], gpus: int) -> list[LLMError]:
    """Options that need more GPUs than llama-bench sees."""
    faults = []
    layers = [value for value in config["gpu_layers"] or [] if value not in ("auto", 0)]
    if layers and not gpus:
        what = f"--gpu-layers {layers[0]} cannot be"
        fix = "use a node with a GPU and a cuda image, or leave it out"
        faults.append(LLMError(what, "llama-bench sees no GPU and no worker of another host", fix))
    if len(set(config["split"] or [])) > 1 and gpus < 2:
        why = f"llama-bench sees {gpus} GPU(s)"
        what = "several values of --split make no difference here"
        faults.append(LLMError(what, why, "use a node with several GPUs, or leave it out"))
    return faults


def axes_of(config: Mapping[str, Any], granted: Sequence[int]) -> Axes:
    """The values to try of each setting; granted: threads that `auto` stands for."""
    values = {name: tuple(config[name] or usual) for name, (_, usual) in NUMBERS.items()}
    threads = [granted if value == "auto" else [value] for value in values["threads"]]
    values["threads"] = tuple(dict.fromkeys(number for group in threads for number in group))
    values["prompt"], values["new"] = values.pop("prompt_tokens"), values.pop("new_tokens")
    words = {"split": ("layer",), "kv_type": ("f16",), "flash_attention": ("auto",)}
    values |= {name: tuple(config[name] or usual) for name, usual in words.items()}
    return Axes(**values)


def check_number(points: Sequence[Point], config: Mapping[str, Any]) -> None:
    """See that the combinations are not too many, and that at least one can run.

    Raises:
        LLMError: If not.
    """
    if len(points) > config["max_runs"]:
        lists = {name: value for name, value in config.items() if isinstance(value, list)}
        why = " x ".join(f"{len(value)} {name}" for name, value in lists.items())
        fix = f"fewer values, or --max-runs {len(points)}"
        what = f"{len(points)} combinations are more than --max-runs {config['max_runs']}"
        raise LLMError(what, why, fix)
    if all(point.status for point in points):
        why = "\n".join(dict.fromkeys(f"{p.model.title}: {p.note}" for p in points))
        fix = "a smaller or more quantized model, fewer --depth tokens, a smaller --kv-type"
        raise LLMError("none of this can be measured here", why, fix)
