"""Evaluate a GGUF model on tasks of lm-evaluation-harness, in this process by llama.cpp.

    llm-run python recipes/quantized/lm.py --model model-Q4_K_M.gguf --tasks arc_easy,hellaswag \\
        --output results.json
    llm-run python recipes/quantized/lm.py --model model-Q4_K_M.gguf --tasks my_task.yaml

A task is a name of lm-eval's (`lm-eval ls tasks`), or a YAML file. Log-likelihoods and generation
are those of lm-eval's class for transformers models, so the results of a GGUF in f16 are those of
the folder it was made of. Answers are kept with --cache: a run that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import Terminated, run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.gguf.file import GgufFile
    from llm_recipes.gguf.harness_model import GgufLM

RECIPE = "quantized/lm"
# Options that open the model; all others are lm-eval's.
OPENING = (
    *("context", "max_gen_toks", "parallel", "gpu_layers", "split", "shares", "kv_type"),
    *("flash_attention", "threads", "prompt_threads", "load_mode"),
)


def evaluate(
    model: Path,
    tasks: list[str],
    output: Path | None = None,
    overwrite: bool = False,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system: str | None = None,
    max_gen_toks: int = 256,
    cache: Path | None = None,
    seed: int = 0,
    parallel: int | Literal["auto"] = "auto",
    gpu_layers: int | Literal["auto", "all"] = "auto",
    split: Literal["layer", "row", "tensor", "none"] = "layer",
    shares: str | None = None,
    kv_type: Literal["f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = "f16",
    flash_attention: Literal["auto", "on", "off"] = "auto",
    context: int | Literal["auto"] = "auto",
    threads: int | Literal["auto"] = "auto",
    prompt_threads: int | Literal["auto"] = "auto",
    load_mode: Literal["auto", "mmap", "read", "lock", "direct"] = "auto",
    hosts: bool = False,
) -> int:
    """Evaluate a GGUF model on tasks of lm-evaluation-harness, in this process by llama.cpp.

    Args:
        model: GGUF file; of several shards the first.
        tasks: Names of tasks or groups, with commas between them, or YAML files; repeat the option
            for several.
        output: File for the results (JSON); null: only the table is printed.
        overwrite: Replace results that are there.
        include_path: Folder with YAML files of your own tasks.
        limit: Examples of each task at most, for a try; null: all.
        num_fewshot: Solved examples in front of each question; null: as the task says.
        apply_chat_template: Ask in the form of the model's chat template.
        system: System message in front of each question.
        max_gen_toks: Tokens of an answer at most, where the task doesn't say.
        cache: File for answers as they come (SQLite), so that a stopped run goes on; null: none.
        seed: Of the choice of solved examples.
        parallel: Sequences at once; auto: up to 16 on CPUs, 64 on GPUs, as memory allows.
        gpu_layers: Layers on GPUs; auto: as many as fit.
        split: How several GPUs share: whole layers, or each layer's rows or tensors.
        shares: Proportion of each GPU, such as 3,1; null: by free memory.
        kv_type: Type of the cached keys and values; q8_0 halves their memory.
        flash_attention: Attention that keeps no scores; quantized caches need it.
        context: Tokens that the model sees at once; auto: as many as it was trained to.
        threads: CPU threads for generation; auto: as tuned (tune.py), else what was granted.
        prompt_threads: CPU threads for prompts and several sequences at once; auto: the same.
        load_mode: How weights are read; lock keeps them from being swapped out.
        hosts: Use the memory of all nodes of the job, by RPC; not encrypted.
    """
    settings = dict(locals())
    if hosts:  # first: of all tasks only one goes on, and says what is wrong
        from llm_recipes.gguf.hosts import run_on_hosts

        status = run_on_hosts(threads if isinstance(threads, int) else None)
        if status is not None:
            return status
    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.options import placement_faults

    raise_all(option_faults(settings) + placement_faults(settings))
    from llm_recipes.harness_tasks import load_tasks
    from llm_recipes.record import start_record

    file = read_gguf(model)
    manager, loaded = load_tasks(split_names(tasks), include_path)
    record = start_record(RECIPE, settings, device_names())
    ending = "failed"
    try:
        results = run(file, settings, manager, loaded, record)
        print_tables(results)
        if output is not None:
            keep(output.expanduser(), results, record)
    except (KeyboardInterrupt, Terminated):
        ending = "interrupted"
        if cache is not None:
            say(f"the answers so far are kept in {cache}*: the same command goes on")
        raise
    finally:
        if output is not None and record["status"] != "complete":
            record_unfinished(output.expanduser(), record, ending)
    return 0


def option_faults(settings: dict[str, Any]) -> list[LLMError]:
    """Options whose value can't be meant, and results that would be replaced."""
    faults = []
    for name in ("limit", "max_gen_toks"):
        value = settings[name]
        if value is not None and value < 1:
            option = name.replace("_", "-")
            faults.append(LLMError(f"--{option} {value} is too small", fix="1 or more"))
    if settings["num_fewshot"] is not None and settings["num_fewshot"] < 0:
        what = f"--num-fewshot {settings['num_fewshot']} is negative"
        faults.append(LLMError(what, fix="0 or more"))
    if not split_names(settings["tasks"]):
        fix = "--tasks arc_easy,hellaswag, or a YAML file"
        faults.append(LLMError("--tasks names no task", fix=fix))
    output = settings["output"]
    if output is not None:
        output = output.expanduser()
        if output.is_dir():
            fix = f"name a file: --output {output}/results.json"
            faults.append(LLMError(f"{output} is a folder", fix=fix))
        elif output.exists() and not settings["overwrite"]:
            fix = "choose another --output, or --overwrite"
            faults.append(LLMError(f"{output} is there already", fix=fix))
        else:
            faults += folder_faults(output, "--output")
    if settings["cache"] is not None:
        faults += folder_faults(settings["cache"].expanduser(), "--cache")
    return faults


def folder_faults(path: Path, option: str) -> list[LLMError]:
    """Whether a file can be made where an option wants it."""
    if not path.parent.is_dir():
        fix = f"mkdir -p {path.parent}"
        return [LLMError(f"cannot write {path}", "its folder does not exist", fix)]
    if not os.access(path.parent, os.W_OK):
        fix = f"choose another place with {option}"
        return [LLMError(f"cannot write {path}", "its folder is closed to you", fix)]
    return []


def split_names(tasks: Sequence[str]) -> list[str]:
    """Names with commas between them, and files, whose paths may have commas."""
    names: list[str] = []
    for text in tasks:
        names += [text] if os.path.isfile(os.path.expanduser(text)) else text.split(",")
    return [name.strip() for name in names if name.strip()]


def quiet_harness() -> None:
    """Bars of lm-eval and datasets fill a job's log line by line; nothing phones home.

    Before anything else is imported: tqdm looks at its variable only then.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def device_names() -> str:
    """What computes: the GPUs, else the CPU."""
    from llm_recipes.gguf.engine import devices, gpu_devices
    from llm_recipes.gguf.hosts import connected_hosts

    connected_hosts()
    return ", ".join(device.description for device in gpu_devices() or devices())


def run(
    file: GgufFile,
    settings: dict[str, Any],
    manager: Any,
    loaded: Sequence[Any],
    record: dict[str, Any],
) -> dict[str, Any]:
    """Load the model and evaluate it; the record learns what was measured."""
    from llm_recipes.gguf.file import gguf_digest
    from llm_recipes.gguf.harness_opening import open_lm
    from llm_recipes.harness_tasks import task_names

    chosen = {name: settings[name] for name in OPENING}
    with open_lm(file, **chosen) as lm:
        start = time.monotonic()
        results = simple_evaluate(lm, settings, manager, loaded)
        record["metrics"] = {
            "load_s": lm.model.load_s,
            "evaluate_s": round(time.monotonic() - start, 2),
            "results": results["results"],
            "parallel": lm.settings.sequences,
            "window_tokens": lm.max_length,
        }
        record["model"] = {
            "path": str(file.path),
            "architecture": file.architecture,
            "parameters": lm.model.parameters,
            "dtype": file.file_type,
            "digest": gguf_digest(file),
        }
        record["data"] = {"tasks": task_names(loaded), "samples": results["n-samples"]}
    return results


def simple_evaluate(
    lm: GgufLM, settings: dict[str, Any], manager: Any, loaded: Sequence[Any]
) -> dict[str, Any]:
    """lm-eval's own evaluation.

    Raises:
        LLMError: What a task's own code or data made fail.
    """
    import lm_eval

    from llm_recipes.harness_tasks import evaluation_fault

    o = settings
    cache: Path | None = o["cache"]
    if cache is not None:
        cache = cache.expanduser().absolute()
        cache = cache.with_name(f"{cache.name}-{answers_key(lm)}")
    try:
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=lm,
            tasks=list(loaded),
            task_manager=manager,
            limit=o["limit"],
            num_fewshot=o["num_fewshot"],
            apply_chat_template=o["apply_chat_template"],
            system_instruction=o["system"],
            use_cache=None if cache is None else str(cache),
            log_samples=False,
            random_seed=o["seed"],
            numpy_random_seed=o["seed"],
            torch_random_seed=o["seed"],
            fewshot_random_seed=o["seed"],
        )
    except LLMError:
        raise
    except Exception as error:  # a task's Python, templates, metrics
        raise evaluation_fault(error) from error
    return results


def answers_key(lm: GgufLM) -> str:
    """All that answers depend on besides the texts, which are the keys in lm-eval's cache."""
    from llm_recipes.gguf.file import gguf_digest

    room = lm.settings
    parts = [gguf_digest(lm.model.file), lm.max_length, lm.max_gen_toks]
    parts += [room.key_type, room.value_type]
    return sha256(json.dumps(parts).encode()).hexdigest()[:12]


def print_tables(results: dict[str, Any]) -> None:
    """lm-eval's tables."""
    from lm_eval.utils import make_table

    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))


def keep(output: Path, results: dict[str, Any], record: dict[str, Any]) -> None:
    """Write the results and the run's record beside them."""
    from lm_eval.utils import handle_non_serializable

    from llm_recipes.files import staged_text
    from llm_recipes.record import record_path, write_record

    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    with staged_text(output, text + "\n"):
        write_record(record_path(output), record, "complete")
    say(f"results in {output}")


def record_unfinished(output: Path, record: dict[str, Any], status: str) -> None:
    """Write the record of a run that did not get to its end, unless older results have theirs."""
    from llm_recipes.record import record_path, write_record

    if output.exists():
        return
    try:
        write_record(record_path(output), record, status)
    except LLMError as fault:  # it must not hide what ended the run
        say(str(fault))


if __name__ == "__main__":
    quiet_harness()
    run_recipe(evaluate)
