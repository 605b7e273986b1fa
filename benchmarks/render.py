"""Put benchmark results into the manual: render.py RESULTS_FOLDER docs/performance.md

Each `<!-- begin NAME -->` … `<!-- end NAME -->` of the page gets the table of NAME.json; a part
whose result is not there stays as it is.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def rows(header: str, lines: list[str]) -> str:
    """A Markdown table; header and lines have their columns separated by ` | `."""
    rule = "|".join("---" for _ in header.split(" | "))
    return "\n".join([f"| {header} |", f"|{rule}|", *(f"| {line} |" for line in lines)])


def launch(r: Result) -> str:
    """Start of a program."""
    return rows(f"{r['pairs']} pairs | median", [
        f"`apptainer exec IMAGE true` | {r['apptainer_exec_ms']:.0f} ms",
        f"`llm-run true` | {r['llm_run_ms']:.0f} ms",
        f"difference (goal {r['goal_ms']:.0f} ms, at most {r['limit_ms']:.0f} ms) | "
        f"{r['difference_ms']:.0f} ms"])


def modules(r: Result) -> str:
    """Load of the module."""
    return rows(f"{r['runs']} runs of {r['pairs']} pairs | empty modulefile | `module load llm` | "
                "ratio (of each run)", [
        f"{row['system']} | {row['empty_ms']:.0f} ms | {row['llm_ms']:.0f} ms | "
        f"{row['ratio']:.2f} ({', '.join(f'{ratio:.2f}' for ratio in row['ratio_of_runs'])})"
        for row in r["rows"]])


def cluster(r: Result) -> str:
    """Starts under Slurm."""
    starts = rows(
        "tasks on one node | bare program | `apptainer exec` | with `--sharens` | `llm-run` | "
        "llm-run / exec",
        [f"{row['tasks']} | {row['bare_s']:.2f} s | {row['exec_s']:.2f} s | "
         f"{row['sharens_s']:.2f} s | {row['llm_run_s']:.2f} s | {row['ratio']:.2f}"
         for row in r["tasks"]])
    jobs = r["submission"]
    submission = rows(f"{r['pairs']} submissions | median", [
        f"`sbatch` | {jobs['sbatch_ms']:.0f} ms",
        f"`llm-run --submit …` | {jobs['submit_ms']:.0f} ms",
        f"difference | {jobs['difference_ms']:.0f} ms"])
    return f"{starts}\n\n{submission}"


def images(r: Result) -> str:
    """Size and build times of the CPU image."""
    lines = [f"size of `llm-cpu` (at most {r['size_limit_gb']} GB) | "
             f"{r['size_bytes'] / 1e9:.2f} GB",
             f"size of `base` | {r['base_bytes'] / 1e6:.0f} MB",
             f"build with nothing to do (under 1 s) | {r['nothing_to_do_s']:.2f} s"]
    if "clean_build_s" in r:
        lines += [f"clean build of `base` and `llm-cpu` | {r['clean_build_s'] / 60:.1f} min",
                  f"build after a change of one Python package | {r['one_package_s'] / 60:.1f} min"]
    return rows("  | value", lines)


def demo(r: Result) -> str:
    """The story of make demo."""
    lines = [f"{name.replace('|', ' ')} | {seconds:.0f} s" for name, seconds in r["steps"].items()]
    whole = f"all (goal {r['goal_minutes']} min, at most {r['limit_minutes']} min)"
    table = rows(f"{r['cpus']} cores, the image is there | value", [
        *lines, f"{whole} | {r['first_s'] / 60:.1f} min",
        f"the same command again | {r['again_s']:.0f} s"])
    return "\n".join([table, "", "It ends in this verdict:", "",
                      *(f"- {line.strip()}" for line in r["verdict"])])


def imports(r: Result) -> str:
    """Import of torch and transformers."""
    return rows(f"{r['pairs']} pairs | median", [
        f"host environment | {r['host_s']:.2f} s", f"image | {r['image_s']:.2f} s",
        f"ratio (goal {r['goal']}, at most {r['limit']}) | {r['ratio']:.2f}"])


def squashfs(r: Result) -> str:
    """Compression settings."""
    return rows("compression, block size | size | packing | import", [
        f"{name} | {sizes(row)} | {row['import_s']:.2f} s" for name, row in r["rows"].items()])


def packing(r: Result) -> str:
    """Normalising and packing, and digests."""
    def line(what: str, key: str, digits: int, unit: str) -> str:
        theirs, ours = r[f"apptainer_{key}"], r[f"ours_{key}"]
        return (f"{what} | {theirs:.{digits}f} {unit} | {ours:.{digits}f} {unit} | "
                f"{ours / theirs:.2f}")

    packed = {f"{name}_mib": r[f"{name}_bytes"] / 2**20 for name in ("apptainer", "ours")}
    table = rows(f"{r['rounds']} rounds, {r['pairs']} pairs of starts | `apptainer build` | "
                 "normalise and pack | ratio", [
        f"from the folder to the image file | {r['apptainer_s']:.0f} s | {r['ours_s']:.0f} s | "
        f"{r['ratio']:.2f}",
        f"of that, normalising | | {r['normalise_s']:.0f} s |",
        f"of that, the list of software | | {r['software_s']:.1f} s |",
        f"size | {packed['apptainer_mib']:.0f} MiB | {packed['ours_mib']:.0f} MiB | "
        f"{packed['ours_mib'] / packed['apptainer_mib']:.2f}",
        line("start of `true`", "true_ms", 0, "ms"),
        line("import of torch and transformers", "import_s", 2, "s")])
    digests = rows("the image's digest | time", [
        f"first time ({r['bytes'] / 2**20:.0f} MiB, in the page cache) | "
        f"{r['digest_cold_s']:.2f} s",
        f"each later start of `llm-run` | {r['digest_warm_ms']:.2f} ms"])
    return f"{table}\n\n{digests}"


def sizes(row: Result) -> str:
    """Size and packing time; nothing for what is not packed."""
    return f"{row['bytes'] / 1e6:.0f} MB | {row['pack_s']:.0f} s" if row["bytes"] else " | "


def generate_against_loop(r: Result) -> str:
    """Batches against the loop."""
    goals = {10: " (at least 5)", 64: " (at least 15)"}
    parameters = f"{r['parameters'] / 1e6:.1f} M"
    return rows(
        f"CPU, Llama of {parameters} parameters, {r['dtype']}, {r['new_tokens']} new tokens "
        "| loop, tokens/s | `generate.py`, tokens/s | ratio",
        [f"{row['prompts']} prompts{goals.get(row['prompts'], '')} | "
         f"{row['loop_tokens_per_s']:.0f} | {row['batch_tokens_per_s']:.0f} | {row['ratio']:.1f}"
         for row in r["rows"]])


def qa_batching(r: Result) -> str:
    """Questions in batches and one by one."""
    shape = f"{r['questions']} questions of {r['prompt_tokens'] / r['questions']:.0f} tokens"
    return rows(
        f"CPU, {r['model']}, {shape}, {r['new_tokens']} new tokens each | batched, questions/s | "
        "one by one, questions/s | ratio | of each round",
        [f"`qa.py` | {r['batched_questions_per_s']:.1f} | {r['single_questions_per_s']:.1f} | "
         f"{r['ratio']:.1f} | {', '.join(f'{ratio:.1f}' for ratio in r['ratios'])}"])


def report_build(r: Result) -> str:
    """A report of many runs."""
    times = f"median of {r['rounds']} rounds (slowest)"
    return rows(f"{r['cpus']} CPUs | {times} | HTML | Markdown", [
        f"one run | {r['one_run_s']:.1f} s | | ",
        f"{r['runs']} runs, {r['evaluations']} of them evaluations of {r['questions']} questions | "
        f"{r['seconds']:.1f} s ({r['slowest_s']:.1f} s) | {r['html_bytes'] / 1e3:.0f} kB | "
        f"{r['md_bytes'] / 1e3:.0f} kB"])


def harness_against_lm_eval(r: Result) -> str:
    """Wall time of harness.py and of lm_eval."""
    work = f"{r['requests']} requests of {len(r['tasks'])} tasks, batches of {r['batch_size']}"
    ratios = ", ".join(f"{ratio:.3f}" for ratio in r["ratios"])
    return rows(
        f"CPU, {r['model']}, {work} | `lm_eval` | `harness.py` | ratio (at most {r['limit']}) | "
        "of each round | without reading lm_eval's own tasks",
        [f"median of {r['rounds']} | {r['lm_eval_s']:.1f} s | {r['harness_s']:.1f} s | "
         f"{r['ratio']:.3f} | {ratios} | {r['ratio_without_index']:.3f}"])


def gpu_inference(r: Result) -> str:
    """Methods by batch size on a GPU."""
    methods = ("loop", "transformers generate", "generate.py eager", "generate.py compiled")
    found = {(row["batch"], row["method"]): row for row in r["rows"]}
    lines = []
    for batch in sorted({row["batch"] for row in r["rows"]}):
        cells = [speed(found.get((batch, method))) for method in methods]
        share = found.get((batch, methods[-1]), {}).get("decode_mbu")
        cells.append("" if share is None else f"{100 * share:.0f} %")
        goal = " (goal MBU 60 %)" if batch == 1 else ""
        lines.append(" | ".join([f"batch {batch}{goal}", *cells]))
    header = (f"{r['device']}, {r['parameters'] / 1e9:.1f} B parameters, {r['dtype']}, "
              f"{r['prompt_tokens']} + {r['new_tokens']} tokens | loop, tokens/s | plain `generate`"
              " | `generate.py` | `generate.py`, compiled | MBU, compiled")
    return rows(header, lines)


def speed(row: Result | None) -> str:
    """Tokens a second; why there is none; nothing for what was not measured."""
    if row is None:
        return ""
    figure = str(row["error"]) if "error" in row else f"{row['tokens_per_s']:.0f}"
    return figure + (" (not compiled)" if row.get("compiled") is False else "")


def meta_inference(r: Result) -> str:
    """Llamas in Meta's format against transformers."""
    names = {"generate": "transformers' `generate`", "generate.py": "`generate.py`",
             "sharded.py 1": f"`sharded.py`, 1 process (goal {r['goal']}, at least {r['limit']})",
             "sharded.py 2": "`sharded.py`, 2 processes"}
    speeds = []
    for row in r["rows"]:
        for name, words in names.items():
            one = row["methods"][name]
            ratios = ", ".join(f"{ratio:.2f}" for ratio in one["ratios"])
            speeds.append(f"{row['batch']} | {words} | {one['tokens_per_s']:.1f} | "
                          f"{one['ratio']:.2f} | {ratios} | {one['load_s']:.2f} s")
    weights = f"{r['weight_bytes'] / 1e9:.2f} GB of weights in {r['dtype']}, {r['cpus']} CPUs"
    speed_table = rows("prompts at once | program | new tokens/s | against `generate` | of each "
                       "round | loading", speeds)
    memory = [f"{words.split(' (')[0]}{f', rank {rank}' if len(r['memory'][name]) > 1 else ''} | "
              f"{one['rss'] / 1e9:.2f} GB | {one['anonymous'] / 1e9:.2f} GB"
              for name, words in names.items() for rank, one in enumerate(r["memory"][name])]
    return f"{speed_table}\n\n" + rows(f"{weights} | RSS | anonymous", memory)


def finetune_against_peers(r: Result) -> str:
    """Fine-tuning against other trainers."""
    names = {"sft": "`sft.py`", "trainer": "Trainer", "trl": "TRL", "litgpt": "LitGPT",
             "llama-recipes": "llama-recipes"}
    lines = []
    for row in r["rows"]:
        found = row["contestants"]
        rates = [f"{one['tokens_per_s']:.0f}{'' if one['same_loss'] else ' (other loss)'}"
                 if "ratio" in one else "" for one in (found.get(name, {}) for name in names)]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} ({names[row['best_peer']]})"
        lines.append(" | ".join([row["name"], *rates, ratio]))
    header = f"CPU, fp32, {r['threads']} threads, tokens/s"
    last = f"`sft.py` / best other (at least {r['limit']}, goal above {r['goal']:.0f})"
    return rows(" | ".join([header, *names.values(), last]), lines)


def finetune_memory(r: Result) -> str:
    """Predicted and measured memory, and the cost of saving."""
    tried = [row for row in r["rows"] if "ratio" in row]
    saved = [row for row in r["rows"] if "save_s" in row]
    lines = []
    for row in tried:
        predicted, measured = (row[f"{name}_bytes"] / 1e9 for name in ("predicted", "measured"))
        name = f"{row['model']}, {row['method']}{checkpointed(row)}"
        lines.append(f"{name} | {predicted:.2f} GB | {measured:.2f} GB | {row['ratio']:.2f}")
    memory = rows("random weights, fp32, CPU | predicted | measured | ratio", lines)
    lines = []
    for row in saved:
        size, rate = row["checkpoint_bytes"] / 1e9, row["save_bytes_per_s"] / 1e9
        lines.append(f"{row['model']} | {size:.2f} GB | {row['save_s']:.1f} s | {rate:.2f} | "
                     f"{row['resume_s']:.0f} s")
    header = "all weights | checkpoint | saving | GB/s | from the command to its first new step"
    saving = rows(header, lines)
    return f"{memory}\n\n{saving}"


def checkpointed(row: Result) -> str:
    """Whether activations were computed again."""
    return ", checkpointing" if row["checkpointing"] == "true" else ""


def gpu_finetune(r: Result) -> str:
    """Fine-tuning on a GPU."""
    lines = []
    for row in r["rows"]:
        name = f"{row['shape']} {row['method']}, {row['row_tokens']} tokens a row"
        if "failed" in row:
            lines.append(f"{name} | {' '.join(row['failed'])} | | |")
            continue
        mfu = "" if row["mfu"] is None else f"{100 * row['mfu']:.0f} %"
        lines.append(f"{name} | {row['tokens_per_s']:.0f} | {mfu} | "
                     f"{(row['peak_gpu_bytes'] or 0) / 1e9:.1f} GB | "
                     f"{(row['predicted_bytes'] or 0) / 1e9:.1f} GB")
    header = f"{r['rows'][0].get('device', 'GPU')} | tokens/s | MFU | peak memory | predicted"
    return rows(header, lines)


def gguf_generate(r: Result) -> str:
    """GGUF models: generate.py against llama-bench, and sequences at once."""
    shape = f"{r['parameters'] / 1e9:.2f} B parameters, {r['type']}, {r['threads']} threads"
    names = {"prompt": f"prompt of {r['prompt_tokens']} tokens",
             "generate": f"{r['new_tokens']} tokens after it"}
    against = rows(
        f"{shape} | `generate.py`, tokens/s | `llama-bench`, tokens/s | ratio (at least "
        f"{r['limit']}) | of each round",
        [f"{words} | {r[name]['ours_tokens_per_s']:.1f} | "
         f"{r[name]['llama_bench_tokens_per_s']:.1f} | {r[name]['ratio']:.3f} | "
         f"{', '.join(f'{ratio:.3f}' for ratio in r[name]['ratios'])}"
         for name, words in names.items()])
    parallel = rows(
        f"{r['sequences']} prompts of {r['sequence_tokens']} tokens, as many new ones each | "
        "new tokens/s | against one by one",
        [f"{row['at_once']} at once | {row['tokens_per_s']:.1f} | {row['against_one']:.2f}"
         for row in r["parallel"]])
    return f"{against}\n\n{parallel}"


def gguf_load(r: Result) -> str:
    """Loading of a GGUF model."""
    size = r["bytes"] / 1e9
    lines = [f"{row['where']} | {row['mode']} | {row['ready_s']:.2f} s | "
             f"{size / row['ready_s']:.2f} GB/s" for row in r["rows"]]
    lines.append(f"plain reading, disk, cold |  | {r['read_s']:.2f} s | "
                 f"{size / r['read_s']:.2f} GB/s")
    return rows(f"{size:.2f} GB, {r['type']}, median of {r['rounds']} | `--load-mode` | "
                "until the first token | rate", lines)


def meta_reshard(r: Result) -> str:
    """Conversions of checkpoints in Meta's format."""
    lines = []
    for row in r["rows"]:
        rates = [row[f"{name}_bytes_per_s"] / 1e9 for name in ("ours", "copy")]
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        peaks = [row[f"{name}_peak_bytes"] / 1e9 for name in ("ours", "today")]
        lines.append(f"{row['conversion']} | {rates[0]:.2f} GB/s | {rates[1]:.2f} GB/s | "
                     f"{row['ratio']:.2f} ({ratios}) | {row['today_bytes_per_s'] / 1e9:.2f} GB/s | "
                     f"{peaks[0]:.2f} GB | {peaks[1]:.2f} GB")
    size = r["rows"][0]["bytes"] / 1e9
    return rows(
        f"{size:.1f} GB in bf16, median of {r['rounds']} | `reshard.py` | plain copy | "
        f"ratio (at least {r['limit']}; of each round) | `torch.load`, `cat`, `save` | "
        "memory of `reshard.py` | memory of `torch.load` and so on", lines)


def gguf_scoring(r: Result) -> str:
    """Questions with choices scored together and one by one."""
    shape = f"{r['parameters'] / 1e9:.2f} B parameters, {r['type']}, {r['threads']} threads"
    return rows(
        f"{shape}, {r['questions']} questions | together | one by one | ratio | of each round",
        [f"{row['form']} | {row['together_s']:.1f} s | {row['one_by_one_s']:.1f} s | "
         f"{row['ratio']:.2f} | {', '.join(f'{ratio:.2f}' for ratio in row['ratios'])}"
         for row in r["forms"]])


def llama_native(r: Result) -> str:
    """The image's kernels against native ones."""
    return rows(
        f"{r['threads']} threads | image, tokens/s | native, tokens/s | ratio (at least "
        f"{r['limit']}) | of each round",
        [f"{row['type']}, {row['test']} | {row['image_tokens_per_s']:.1f} | "
         f"{row['native_tokens_per_s']:.1f} | {row['ratio']:.3f} | "
         f"{', '.join(f'{ratio:.3f}' for ratio in row['ratios'])}" for row in r["rows"]])


def llama_threads(r: Result) -> str:
    """Threads of llama.cpp: its default, what was granted, what tune.py chose."""
    works = {"generate": "generation", "prompt": "prompts"}
    lines = []
    for row in r["rows"]:
        emulated = " (emulated by affinity)" if row["emulated"] else ""
        cells = [f"{row['threads'][name]} threads: {row['tokens_per_s'][name]:.1f}"
                 for name in ("default", "granted", "tuned")]
        ratios = [f"{row['ratio'][name]:.2f}" for name in ("granted", "tuned")]
        lines.append(f"{row['scenario']}{emulated}, {works[row['work']]} | "
                     + " | ".join([*cells, *ratios]))
    return rows("tokens/s | llama.cpp's default | granted | tuned | granted / default | "
                "tuned / default", lines)


def machine(gpu: str) -> str:
    """The machine that this runs on, and the GPU of the results."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    release = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    return rows("  |  ", [
        f"CPU | {os.cpu_count()} × {model.group(1) if model else platform.processor()}",
        f"memory | {memory:.0f} GiB",
        f"kernel, distribution | {platform.release()}, {release.group(1) if release else ''}",
        f"GPU | {gpu}"])


TABLES: dict[str, Callable[[Result], str]] = {
    "launch": launch, "modules": modules, "cluster": cluster, "images": images, "imports": imports,
    "squashfs": squashfs, "packing": packing, "demo": demo,
    "generate_against_loop": generate_against_loop, "qa_batching": qa_batching,
    "harness_against_lm_eval": harness_against_lm_eval, "report_build": report_build,
    "gpu_inference": gpu_inference, "meta_inference": meta_inference,
    "finetune_against_peers": finetune_against_peers,
    "finetune_memory": finetune_memory, "gpu_finetune": gpu_finetune,
    "gguf_generate": gguf_generate, "gguf_load": gguf_load, "gguf_scoring": gguf_scoring,
    "meta_reshard": meta_reshard, "llama_native": llama_native, "llama_threads": llama_threads,
}


def replace(text: str, name: str, table: str) -> str:
    """Replace one part of the page. Raises ValueError when the page has no such part."""
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(\n<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no part '{name}'")
    return pattern.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", text)


def main() -> None:
    """Render every result that is there."""
    results, page = Path(sys.argv[1]), Path(sys.argv[2])
    on_gpu = results / "gpu_inference.json"
    gpu = json.loads(on_gpu.read_text())["device"] if on_gpu.exists() else "not run on a GPU yet"
    text = replace(page.read_text(), "machine", machine(gpu))
    for name, table in TABLES.items():
        file = results / f"{name}.json"
        if file.exists():
            text = replace(text, name, table(json.loads(file.read_text())))
            print(f"{page}: {name}")
    page.write_text(text)


if __name__ == "__main__":
    main()
