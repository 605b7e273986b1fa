"""Evaluate a model on tasks of lm-evaluation-harness: a folder, an adapter on it, or a GGUF file.

    llm-run python recipes/evaluate/harness.py --model FOLDER --tasks arc_easy,hellaswag \\
        --output runs/base
    llm-run python recipes/evaluate/harness.py --model FOLDER --adapter out --tasks my_task.yaml \\
        --output runs/lora
    llm-run python recipes/evaluate/harness.py --model FILE.gguf --tasks mmlu --output runs/q4
    llm-run --torchrun recipes/evaluate/harness.py --model FOLDER --tasks mmlu --output runs/base

The numbers are lm-eval's own. OUTPUT gets results.json (lm-eval's), samples/ (what was asked and
answered), scores/ and run.json, which compare.py and report.py read. Answers are kept task by task:
a run that was stopped goes on with the same command.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import Terminated, run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.evaluation.harness_options import (
    data_paths,
    is_gguf,
    option_faults,
    split_names,
    whole_path,
)
from llm_recipes.ranks import (
    Ranks,
    end_ranks,
    is_first_process,
    only_the_failed_speaks,
    start_ranks,
)
from llm_recipes.say import say

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


RECIPE = "evaluate/harness"
SHIPPED = Path(__file__).parent / "tasks"
# Options of `open_lm`, which opens a GGUF file.
OPENING = (
    *("context", "max_gen_toks", "gpu_layers", "split", "shares", "kv_type"),
    *("flash_attention", "threads", "prompt_threads", "load_mode"),
)
# What no answer depends on: a folder of results is the same with others.
FREE_TO_CHANGE = frozenset(
    {"model", "adapter", "output", "overwrite", "cache", "keep_answers", "device"}
    | {"shard", "trust_remote_code", "run_unsafe_code", "gpu_layers", "split", "shares", "threads"}
    | {"prompt_threads", "load_mode", "hosts", "task_data"}
)


@dataclass(frozen=True)
class Job:
    """A checked command line. source: a ModelFolder or a GgufFile; adapter: its folder."""

    settings: dict[str, Any]
    source: Any
    adapter: Path | None
    digest: str
    adapter_digest: str | None
    ranks: Ranks


@dataclass(frozen=True)
class Opened:
    """A loaded model. lm: lm-eval's; answer: requests of a task; engine: its name and version;
    described: for the record; repeatable: the same requests get the same bytes; peaks: the most
    memory that was in use so far.
    """

    lm: Any
    answer: Callable[[str, list[Instance]], list[Any]]
    engine: str
    described: dict[str, Any]
    metrics: dict[str, Any]
    device: str
    repeatable: bool
    peaks: Callable[[], dict[str, int]]


def evaluate(
    model: str,
    tasks: list[str],
    output: Path | None = None,
    adapter: str | None = None,
    overwrite: bool = False,
    include: list[Path] | None = None,
    task_data: list[str] | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool | None = None,
    system: str | None = None,
    max_gen_toks: int = 256,
    context: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    seed: int | None = None,
    keep_answers: bool = True,
    cache: Path | None = None,
    run_unsafe_code: bool = False,
    device: str = "auto",
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    shard: bool = False,
    trust_remote_code: bool = False,
    gpu_layers: int | Literal["auto", "all"] = "auto",
    split: Literal["layer", "row", "tensor", "none"] = "layer",
    shares: str | None = None,
    kv_type: Literal["f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = "f16",
    flash_attention: Literal["auto", "on", "off"] = "auto",
    threads: int | Literal["auto"] = "auto",
    prompt_threads: int | Literal["auto"] = "auto",
    load_mode: Literal["auto", "mmap", "read", "lock", "direct"] = "auto",
    hosts: bool = False,
) -> int:
    """Evaluate a model on tasks of lm-evaluation-harness: folder, adapter on it, or GGUF file.

    Args:
        model: Model folder, a hub's name (OWNER/NAME), or a GGUF file (of several the first).
        tasks: Names of tasks or groups, with commas between them, or YAML files; repeat the option
            for several.
        output: Folder for results, samples and the record; null: only the table is printed.
        adapter: PEFT adapter (folder or hub's name) on the model, not merged; null: none.
        overwrite: Replace another evaluation that is there.
        include: Folder with YAML files of your own tasks; repeat the option for several.
        task_data: NAME=PATH: a task's own data, a file, or a folder that is a copy of its dataset's
            repository; repeat the option for several.
        limit: Examples of each task at most, for a try; null: all.
        num_fewshot: Solved examples in front of each question; null: as the task says.
        apply_chat_template: Ask in the form of the model's chat template.
        fewshot_as_multiturn: Solved examples are turns of the chat; null: with the chat template.
        system: System message in front of each question.
        max_gen_toks: Tokens of an answer at most, where the task doesn't say.
        context: Tokens that the model sees at once; auto: as many as it was trained to.
        batch_size: Requests at once; auto: as many as fit into memory.
        seed: Of all random choices, such as that of solved examples; null: lm-eval's own.
        keep_answers: Keep the answers of each task, so that a stopped run goes on.
        cache: Folder for these answers; null: evaluations in the user's cache.
        run_unsafe_code: Run tasks that execute Python code which the model writes.
        device: auto, cpu, cuda or cuda:N.
        dtype: Precision; auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on CPUs.
        shard: Spread a model that is larger than one GPU over all of them, layer by layer.
        trust_remote_code: Run Python code that the model brings along, with your rights.
        gpu_layers: GGUF: layers on GPUs; auto: as many as fit.
        split: GGUF: how several GPUs share: whole layers, or each layer's rows or tensors.
        shares: GGUF: proportion of each GPU, such as 3,1; null: by free memory.
        kv_type: GGUF: type of the cached keys and values; q8_0 halves their memory.
        flash_attention: GGUF: attention that keeps no scores; quantized caches need it.
        threads: GGUF: CPU threads for generation; auto: as tuned (tune.py), else what was granted.
        prompt_threads: GGUF: CPU threads for prompts and several sequences at once; auto: the same.
        load_mode: GGUF: how weights are read; lock keeps them from being swapped out.
        hosts: GGUF: use the memory of all nodes of the job, by RPC; not encrypted.
    """
    settings = dict(locals())
    if hosts:  # first: of all tasks only one goes on, and says what is wrong
        from llm_recipes.gguf.hosts import run_on_hosts

        status = run_on_hosts(threads if isinstance(threads, int) else None)
        if status is not None:
            return status
    faults = option_faults(settings)
    if is_gguf(model):
        from llm_recipes.gguf.options import placement_faults

        faults += placement_faults(settings)
    raise_all(faults)

    ranks = start_ranks(use_gpus=device != "cpu" and not is_gguf(model))
    try:
        with only_the_failed_speaks(ranks):
            return run(settings, ranks)
    finally:
        end_ranks()


def run(settings: dict[str, Any], ranks: Ranks) -> int:
    """Check, evaluate and write; on rank 0, with the others' help."""
    from llm_recipes.evaluation.evaluation_folder import (
        check_output_free,
        evaluated_already,
        record_unfinished,
    )

    job = ranks.together(lambda: check(settings, ranks))
    output = None if settings["output"] is None else settings["output"].expanduser().absolute()
    depends = made_with(job)
    if output is not None:
        if ranks.first_decides(lambda: evaluated_already(output, depends)):
            ranks.say(f"nothing to do: {output} has these results already")
            return 0
        ranks.first_does(lambda: check_output_free(output, RECIPE, depends, settings["overwrite"]))
    manager, loaded = ranks.together(lambda: load(job))
    from llm_recipes.record import add_input, start_record

    record = start_record(RECIPE, settings, "", ("output", "cache"))
    if output is not None:
        gguf = is_gguf(settings["model"])
        shards = list(job.source.shards) if gguf else [job.source.path]
        add_input(record, "model", shards if len(shards) > 1 else shards[0])
        add_input(record, "adapter", job.adapter)
    record["made_with"] = depends
    ending = "failed"
    try:
        measure(job, manager, loaded, record, output)
        ending = "complete"
    except (KeyboardInterrupt, Terminated):
        ending = "interrupted"
        raise
    finally:
        if ending != "complete" and output is not None and ranks.is_first:
            record_unfinished(output, record, ending)
    return 0


def check(settings: dict[str, Any], ranks: Ranks) -> Job:
    """The model, looked at before it is loaded.

    Raises:
        LLMError, ExceptionGroup: If it isn't there or whole, or one process has to do.
    """
    if is_gguf(settings["model"]):
        from llm_recipes.gguf.file import gguf_digest, read_gguf

        if ranks.count > 1:
            why = "llama.cpp shares a model out over GPUs and hosts by itself"
            fix = "leave --torchrun out; --hosts takes the memory of all nodes"
            raise LLMError("a GGUF model is evaluated by one process", why, fix)
        file = read_gguf(Path(settings["model"]).expanduser())
        return Job(settings, file, None, gguf_digest(file), None, ranks)
    if settings["shard"] and ranks.count > 1:
        why = "each process would spread its model over the same GPUs"
        raise LLMError("--shard does not go with --torchrun", why, "leave one of them out")
    from llm_recipes.model_folder import find_adapter, find_model, folder_digest

    folder = find_model(settings["model"])
    adapter = None if settings["adapter"] is None else find_adapter(settings["adapter"])
    adapter_digest = None if adapter is None else folder_digest(adapter)
    return Job(settings, folder, adapter, folder_digest(folder.path), adapter_digest, ranks)


def made_with(job: Job) -> dict[str, Any]:
    """All that results depend on, but the files of tasks and data, which are in the record.

    Which files these are depends on the tasks that the folders of --include have.
    """
    from llm_recipes.evaluation.evaluation_folder import code_digest, file_digest

    chosen = {name: value for name, value in job.settings.items() if name not in FREE_TO_CHANGE}
    data = data_paths(job.settings["task_data"] or ())
    return {
        **chosen,
        "tasks": sorted(map(whole_path, split_names(job.settings["tasks"]))),
        "include": [code_digest(path.expanduser()) for path in job.settings["include"] or ()],
        "task_data": {
            name: file_digest(path) or str(path.absolute()) for name, path in data.items()
        },
        "model": job.digest,
        "adapter": job.adapter_digest,
        "lm_eval": version("lm_eval"),
    }


def load(job: Job) -> tuple[Any, list[Any]]:
    """The tasks with their data.

    Raises:
        LLMError, ExceptionGroup: Whatever is wrong with them.
    """
    from llm_recipes.harness_tasks import leaf_tasks, load_tasks

    o = job.settings
    own = [path.expanduser().absolute() for path in o["include"] or ()]
    shipped = [SHIPPED] if SHIPPED.is_dir() else []
    # Some tasks' code makes texts of a length in tokens, as the command line of lm-eval lets it.
    metadata = {} if is_gguf(o["model"]) else {"pretrained": str(job.source.path)}
    data = data_paths(o["task_data"] or ())
    manager, loaded = load_tasks(split_names(o["tasks"]), [*shipped, *own], data, metadata)
    unsafe = [task.task_name for task in leaf_tasks(loaded) if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not o["run_unsafe_code"]:
        what = f"{', '.join(unsafe)}: Python code that the model writes would be run"
        raise LLMError(
            what, "with your rights, on this machine", "--run-unsafe-code if you want it"
        )
    return manager, loaded


def measure(
    job: Job, manager: Any, loaded: Sequence[Any], record: dict[str, Any], output: Path | None
) -> None:
    """Load the model, evaluate it, print the tables and write the results."""
    from llm_recipes.evaluation.kept_responses import KeptResponses
    from llm_recipes.evaluation.task_by_task import TaskByTask
    from llm_recipes.folders import user_cache
    from llm_recipes.harness_tasks import leaf_tasks
    from llm_recipes.prompts import check_knows_chat
    from llm_recipes.stop_signals import declare_unfinished

    o, ranks = job.settings, job.ranks
    opening = opened_gguf if is_gguf(o["model"]) else opened_transformers
    with opening(job) as opened:
        record["host"]["device"] = opened.device
        record["model"] = opened.described
        record["deterministic"] = opened.repeatable and ranks.count == 1
        folder = o["cache"].expanduser().absolute() if o["cache"] else user_cache("evaluations")
        kept = KeptResponses(folder if o["keep_answers"] else None, answers_key(job, opened))
        versions = {task.task_name: task.VERSION for task in leaf_tasks(loaded)}
        if o["apply_chat_template"]:
            ranks.together(lambda: check_knows_chat(opened.lm.tokenizer))
        lm = TaskByTask(opened.lm, opened.answer, kept, ranks, versions)
        start = time.monotonic()
        try:
            results = simple_evaluate(lm, job, manager, loaded)
        except (KeyboardInterrupt, Terminated) as ended:
            if kept.folder is not None:
                ranks.say(
                    f"the answers to {kept.tasks} of {len(versions)} tasks are kept in "
                    f"{kept.folder}: the same command goes on"
                )
                if isinstance(ended, Terminated):
                    declare_unfinished()
            raise
        record["metrics"] = {
            **opened.metrics,
            **opened.peaks(),
            "evaluate_s": round(time.monotonic() - start, 2),
            "requests": lm.requests,
            "processes": ranks.count,
        }
        if ranks.is_first and results is not None:
            conclude(job, results, loaded, lm, record, output)


def answers_key(job: Job, opened: Opened) -> dict[str, Any]:
    """All that answers depend on besides the task and the texts that are asked."""
    o = job.settings
    names = ("batch_size", "max_gen_toks", "kv_type", "flash_attention", "seed")
    return {
        "model": job.digest,
        "adapter": job.adapter_digest,
        "dtype": opened.described["dtype"],
        "window": opened.lm.max_length,
        "lm_eval": version("lm_eval"),
        "engine": opened.engine,
        **{name: o[name] for name in names},
    }


@contextmanager
def opened_gguf(job: Job) -> Iterator[Opened]:
    """A GGUF file's model."""
    import torch

    from llm_recipes.device import peak_memory_bytes
    from llm_recipes.gguf.harness_opening import open_lm
    from llm_recipes.gguf.session import describe_model, device_names, gpus_of
    from llm_recipes.gguf.tuning import llama_version

    options = {name: job.settings[name] for name in OPENING}
    with open_lm(job.source, parallel=job.settings["batch_size"], **options) as lm:
        lm.seed = job.settings["seed"] or 0
        metrics = {
            "load_s": lm.model.load_s,
            "parallel": lm.settings.sequences,
            "window_tokens": lm.max_length,
        }
        yield Opened(
            lm,
            lambda kind, asked: getattr(lm, kind)(asked),
            f"llama.cpp {llama_version()}",
            describe_model(lm.model),
            metrics,
            device_names(job.settings["gpu_layers"]),
            not gpus_of(job.settings["gpu_layers"]),
            peaks=lambda: peak_memory_bytes(torch.device("cpu")),
        )


@contextmanager
def opened_transformers(job: Job) -> Iterator[Opened]:
    """A model that transformers loads, on this process's device."""
    import torch

    from llm_recipes import device as devices
    from llm_recipes.evaluation.harness_transformers import answer_in_batches, harness_lm
    from llm_recipes.models import context_length, describe_loaded, load_model, measure_size

    o, ranks = job.settings, job.ranks
    name = f"cuda:{ranks.local}" if ranks.count > 1 and o["device"] in ("auto", "cuda") else ""
    use_gpu = bool(name) and torch.cuda.is_available()
    where = ranks.together(lambda: devices.choose_device(name if use_gpu else o["device"]))
    precision = devices.choose_dtype(o["dtype"], where)
    devices.use_granted_cpus()
    what = f"{job.source.path} ({job.source.bytes / 1e9:.3g} GB)"
    ranks.say(f"loading {what} on {'all GPUs' if o['shard'] else where}")
    trust = o["trust_remote_code"]
    fix = "--shard spreads it over several GPUs; or a smaller or quantized model"
    with devices.memory_errors("the model was loaded", fix):
        loaded = ranks.together(
            lambda: load_model(
                job.source, job.adapter, where, precision, trust, o["shard"], merge=False
            )
        )
    with devices.memory_errors("a first token was computed", fix):
        size = measure_size(loaded.model)
    trained = context_length(loaded.model)
    context = None if o["context"] == "auto" else min(o["context"], trained or o["context"])
    lm = harness_lm(loaded, context, o["max_gen_toks"], precision)
    described = describe_loaded(
        loaded, size, job.adapter, devices.dtype_name(precision), job.digest
    )
    metrics = {"load_s": round(loaded.load_s, 2), "window_tokens": lm.max_length}
    torch_seed = SEEDS[2] if o["seed"] is None else o["seed"]

    def answer(kind: str, asked: list[Instance]) -> list[Any]:
        # Sampled answers are the same, whichever tasks were answered before.
        torch.manual_seed(torch_seed)
        return answer_in_batches(lm, size, o["batch_size"], kind, asked)

    yield Opened(
        lm,
        answer,
        f"transformers {version('transformers')}",
        described,
        metrics,
        devices.device_name(where),
        devices.is_repeatable(where, precision),
        peaks=lambda: devices.peak_memory_bytes(where),
    )


# Of Python, NumPy, torch and the choice of solved examples: those of lm-eval's command line.
SEEDS = (0, 1234, 1234, 1234)


def simple_evaluate(
    lm: Any, job: Job, manager: Any, loaded: Sequence[Any]
) -> dict[str, Any] | None:
    """lm-eval's own evaluation; None on other ranks than the first of a node.

    Raises:
        LLMError: What a task's own code or data made fail.
    """
    import lm_eval

    from llm_recipes.harness_tasks import evaluation_fault

    o = job.settings
    seeds = SEEDS if o["seed"] is None else (o["seed"],) * 4
    multiturn = o["fewshot_as_multiturn"]
    chat = o["apply_chat_template"]
    # lm-eval's bootstrap starts processes, and ends them by a signal that means more to us.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        return lm_eval.simple_evaluate(
            model=lm,
            tasks=list(loaded),
            task_manager=manager,
            limit=o["limit"],
            num_fewshot=o["num_fewshot"],
            apply_chat_template=chat,
            fewshot_as_multiturn=chat if multiturn is None else multiturn,
            system_instruction=o["system"],
            log_samples=True,
            # Only the first process needs standard errors.
            **({} if job.ranks.is_first else {"bootstrap_iters": 0}),
            random_seed=seeds[0],
            numpy_random_seed=seeds[1],
            torch_random_seed=seeds[2],
            fewshot_random_seed=seeds[3],
            confirm_run_unsafe_code=o["run_unsafe_code"],
        )
    except LLMError:
        raise
    except Exception as error:  # a task's Python, templates, metrics
        raise evaluation_fault(error) from error


def conclude(
    job: Job,
    results: dict[str, Any],
    loaded: Sequence[Any],
    lm: Any,
    record: dict[str, Any],
    output: Path | None,
) -> None:
    """Print lm-eval's tables; write results, samples, scores and the record."""
    from lm_eval.utils import make_table

    from llm_recipes.evaluation.evaluation_folder import (
        check_output_free,
        evaluated_already,
        file_digests,
        new_evaluation,
    )
    from llm_recipes.evaluation.harness_files import plain, task_files, write_results
    from llm_recipes.evaluation.harness_scores import scored_tasks
    from llm_recipes.evaluation.run import write_tasks
    from llm_recipes.harness_tasks import leaf_tasks, task_names

    o = job.settings
    results["config"] |= {
        "model": o["model"],
        "model_args": None if o["adapter"] is None else {"peft": str(job.adapter)},
        "batch_size": o["batch_size"],
        "device": record["host"]["device"],
    }
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    leaves = leaf_tasks(loaded)
    scored = scored_tasks(results, leaves, lambda task: conditions(job, lm, task))
    record["metrics"]["results"] = plain(results["results"])
    files = [*task_files(leaves), *data_paths(o["task_data"] or ()).values()]
    record["data"] = {
        "tasks": task_names(loaded),
        "samples": results["n-samples"],
        "rows": sum(len(task.items) for task in scored),
        "files": file_digests(path for path in files if path.is_file()),
    }
    if output is None:
        return
    if not evaluated_already(output, record["made_with"]):  # another run may have ended meanwhile
        check_output_free(output, RECIPE, record["made_with"], o["overwrite"])
    with new_evaluation(output, record) as staging:
        write_tasks(staging, scored, record)
        write_results(staging, results)
    say(f"results in {output}")


def conditions(job: Job, lm: Any, task: Any) -> dict[str, str]:
    """All besides task and texts under which two runs are the same measurement."""
    from llm_recipes.evaluation.run import digest

    o = job.settings
    chat = o["apply_chat_template"]
    template = lm.chat_template(True) if chat else ""
    found = {
        "scorer": f"lm-eval {version('lm_eval')}",
        "prompt_style": "chat" if chat else "raw",
        "chat_template": digest(template) if template else "",
        "system": digest(o["system"]) if o["system"] else "",
    }
    if chat:
        multiturn = o["fewshot_as_multiturn"]
        found["fewshot_as_multiturn"] = str(multiturn is not False).lower()
    if task.OUTPUT_TYPE == "generate_until":
        found["max_gen_toks"] = str(o["max_gen_toks"])
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        found["window_tokens"] = str(lm.max_length)  # what comes before a token in a long text
    return found


def quiet_harness() -> None:
    """Bars of lm-eval and datasets fill a job's log line by line; nothing phones home.

    Before anything else is imported: tqdm looks at its variable only then.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not sys.stderr.isatty() or not is_first_process():
        os.environ.setdefault("TQDM_DISABLE", "1")


if __name__ == "__main__":
    quiet_harness()
    run_recipe(evaluate)
