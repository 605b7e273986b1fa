"""Records as the recipes write them, with made-up numbers: what reports are made of.

from report_records import write_all
write_all(Path("runs"))

Standard library only, and the library's own writer of evaluations: the tests of the browser run
outside of the image.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_recipes.evaluation.run import Item, Metric, Shown, Task, digest, write_tasks

ANSWER_TYPES = ("span", "multi-span", "arithmetic", "count")
FROM = ("table", "text", "table-text")
# Answers that would be more than text in a page, a table, Markdown or a terminal.
HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'><b>bold</b>",
    "</pre></dd></style></title><iframe src='https://example.org/x'></iframe>",
    "{{ 7 * 7 }} {% raw %} {#",
    "```\n# not a heading\n| a | b |\n[link](javascript:alert(1)) <https://example.org>",
    "\u202etxet desrever\u202c \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\x00\x07\x1b[31mred\x1b[0m\x7f\x9b\r\ufeff\ud800 \ufffe",
    "x" * 3000,
    "\u0301" * 50 + "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00b1",
)
BASE, LORA, FULL = "86e67c087e17fe9e", "ea63edb2547e9f5b", "061656a401b9a7db"


def record(recipe: str, hour: int, **parts: Any) -> dict[str, Any]:
    """A record with all that start_record knows, on a cluster's node with two GPUs.

    Those of data are as older versions wrote them.
    """
    newer: dict[str, Any] = {
        "cwd": "/home/me/it's work",
        "launch": {"image": "llm-cuda13", "gpu": True, "torchrun": False, "env": {}},
        "environment": {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "16"},
        "adapter": {},
        "outputs": ["output"],
        "results": {"answers.jsonl": "0a1b" * 16},
        "deterministic": False,
    }
    return {
        **({} if recipe.startswith("data/") else newer),
        "schema": 1,
        "recipe": recipe,
        "started": f"2026-03-02T{hour:02d}:00:00+00:00",
        "finished": f"2026-03-02T{hour:02d}:12:30+00:00",
        "status": "complete",
        "argv": [f"recipes/{recipe}.py", "--model", "models/it's here", "--output", "runs/x"],
        "config": {"model": "models/tiny", "seed": 0, "system": None},
        "code": {"commit": "1ef64211ef64211ef64211ef64211ef64211ef64", "dirty": hour % 2 == 1},
        "image": {"name": "llm-cuda13", "variant": "cuda13", "digest": "sha256:" + "0a1b" * 16},
        "host": {
            "site": "cluster",
            "nodes": ["gpu01"],
            "cpus": 32,
            "gpus": ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"],
            "device": "NVIDIA H100 80GB HBM3",
            "driver": "580.65.06",
        },
        "slurm": {
            "job": "4711",
            "step": "0",
            "partition": "gpu",
            "nodes": "gpu01",
            "restarts": None,
        },
        "model": {},
        "data": {},
        "metrics": {},
        **parts,
    }


def write(folder: Path, content: Mapping[str, Any], name: str = "run.json") -> Path:
    """Write a record."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_training(
    folder: Path, hour: int, steps: int, method: str = "lora", seed: int = 0
) -> None:
    """A fine-tuning with metrics.jsonl."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 1.2 + 1.9 * math.exp(-3 * step / steps) + rng.gauss(0, 0.04)
        rows.append(
            {
                "step": step,
                "loss": loss,
                "learning_rate": 2e-4 * math.cos(step / steps * math.pi / 2),
                "step_s": 0.31,
                "tokens": 8123,
                "loss_tokens": 3000,
                "tokens_per_s": 26203.2 + rng.gauss(0, 90),
                "mfu": 0.412,
                "peak_host_bytes": 4_200_000_000,
            }
        )
        if step % max(1, steps // 10) == 0:
            rows.append({"step": step, "held_out_loss": loss + 0.09})
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    held = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    metrics = {
        "steps": steps,
        "train_s": 0.31 * steps,
        "tokens": 8123 * steps,
        "first_loss": rows[0]["loss"],
        "last_loss": next(row["loss"] for row in reversed(rows) if "loss" in row),
        "held_out_loss": held[-1],
        "best_held_out_loss": min(held),
        "tokens_per_s": 26203.2,
        "mfu": 0.412,
        "peak_host_bytes": 4_200_000_000,
        "peak_gpu_bytes": 61_300_000_000,
    }
    content = record(
        "finetune/sft",
        hour,
        config={"model": "models/tiny", "method": method, "learning_rate": 2e-4, "epochs": 1.0},
        model={
            "path": "models/tiny",
            "architecture": "LlamaForCausalLM",
            "matmul_parameters": 6979584000,
            "dtype": "bf16",
            "digest": BASE * 4,
        },
        data={"path": "train.jsonl", "digest": "aa20" * 16, "rows": 13215, "held_out": 661},
        metrics=metrics,
        sharing={"strategy": "ddp", "processes": 2, "reasons": ["it fits"]},
    )
    write(folder, content)


def tatqa(share: float, seed: int, items: int = 180) -> Task:
    """Answers on tables, six questions a table, of which about `share` are right."""
    rng = random.Random(seed)
    made = []
    for n in range(items):
        group = {"answer_type": ANSWER_TYPES[n % 4], "answer_from": FROM[n // 4 % 3]}
        draw = random.Random(n).random()  # the same items are hard for all models
        right = draw < share + rng.gauss(0, 0.05)
        gold = f"{(n * 37) % 9000 / 10:,.1f} million"
        answer = gold if right else f"{(n * 41) % 9000 / 10:,.1f} thousand"
        f1 = 1.0 if right else 0.5 if n % 3 else 0.0
        shown = Shown(
            question=f"What was the total revenue in {2010 + n % 9}?",
            gold=gold,
            answer=answer,
            context=f"| | {2018 - n % 5} | 2019 |\n|---|---|---|\n| Sales | {n * 31} | {n * 37} |",
        )
        made.append(
            Item(
                id=f"q{n:03d}",
                cluster=f"table {n // 6}",
                doc=digest([n, "doc"]),
                target=digest([n, "gold"]),
                prompt=digest([n, "prompt"]),
                scores={"exact_match": float(right), "f1": f1},
                groups=group,
                shown=shown,
            )
        )
    metrics = {
        name: _metric([float(item.scores[name]) for item in made], kind)  # type: ignore[arg-type]
        for name, kind in (("exact_match", "right"), ("f1", "mean"))
    }
    conditions = {"prompt_style": "chat", "chat_template": "1c9b", "scorer": "tatqa 1"}
    return Task("tatqa_dev", "1", 0, conditions, "exact_match", metrics, tuple(made))


def perplexity(bits: float, seed: int) -> Task:
    """Held-out documents."""
    rng = random.Random(seed)
    made, nats, size = [], 0.0, 0
    for n in range(40):
        length = 900 + n
        score = length * bits * math.log(2) * (1 + rng.gauss(0, 0.03))
        nats, size = nats + score, size + length
        made.append(
            Item(f"doc {n}", digest(n), digest(n), digest(n), {"bits": (score, float(length))})
        )
    value = nats / size
    metric = Metric(value, False, "ratio", 0.01, value - 0.02, value + 0.02, 40)
    return Task("python docs", "2", 0, {"scorer": "lm-eval"}, "bits", {"bits": metric}, tuple(made))


def _metric(scores: list[float], kind: Any) -> Metric:
    mean = sum(scores) / len(scores)
    error = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores) / (len(scores) - 1))
    return Metric(mean, True, kind, error, mean - 1.96 * error, mean + 1.96 * error, len(scores))


def write_evaluation(folder: Path, hour: int, share: float, seed: int, model: str) -> None:
    """An evaluation of two tasks."""
    content = record(
        "evaluate/qa",
        hour,
        model={"path": model, "parameters": 6979584000, "dtype": "bf16", "digest": BASE * 4},
        metrics={"questions_per_s": 14.2, "tokens_per_s": 1873.1, "peak_gpu_bytes": 19_000_000_000},
    )
    write_tasks(folder, [tatqa(share, seed), perplexity(1.4 - share / 2, seed)], content)
    write(folder, content)


def write_quantize(folder: Path, hour: int) -> None:
    """What quantize.py leaves."""
    kinds = [
        ("F16", 16.0, None),
        ("Q8_0", 8.5, 0.0004),
        ("Q6_K", 6.56, 0.003),
        ("Q5_K_M", 5.69, 0.009),
        ("Q4_K_M", 4.85, 0.021),
        ("Q4_K_S", 4.58, 0.026),
        ("Q3_K_M", 3.91, 0.075),
        ("IQ2_XS", 2.31, 0.41),
    ]
    rows = []
    for name, bits, loss in kinds:
        quality = {
            "perplexity": 6.1 * math.exp(loss or 0),
            "perplexity_error": 0.04,
            "log_ratio": loss or 0.0,
            "log_ratio_error": 0.0015 + (loss or 0) / 12,
            "kl_mean": 0.8 * (loss or 0),
            "kl_mean_error": 0.001,
            "same_top": 1 - (loss or 0) / 1.5,
        }
        speed = {"prompt": {"mean": 900.0 + bits, "deviation": 3.0}, "mbu": 0.71}
        speed["new"] = {"mean": 950 / bits, "deviation": 0.4}
        rows.append(
            {
                "type": name,
                "file": f"m-{name}.gguf",
                "bytes": int(6.98e9 * bits / 8),
                "bits_per_weight": bits,
                "memory_bytes": int(6.98e9 * bits / 8 + 5e8),
                "fallbacks": 0,
                "importance": name.startswith("IQ"),
                "is_source": loss is None,
                "quality": quality,
                "speed": speed,
            }
        )
    model = {"path": "m-F16.gguf", "architecture": "llama", "parameters": 6979584000}
    write(folder, record("quantized/quantize", hour, model={**model, "digest": FULL * 4}))
    write(folder, {"schema": 1, "rows": rows}, "quality.json")
    (folder / "quality.md").write_text("| type |\n", encoding="utf-8")


def write_gguf_comparison(folder: Path, hour: int) -> None:
    """What quantized/compare.py leaves."""
    rows = []
    for n, (name, size, bits) in enumerate((("8B-Q4_K_M", 4.9e9, 0.71), ("3B-F16", 6.4e9, 0.78))):
        more = {"mean": 0.07, "low": 0.061, "high": 0.079, "passages": 200} if n else None
        rows.append(
            {
                "name": name,
                "type": name[3:],
                "file_bytes": size,
                "memory_bytes": size * 1.1,
                "bits_per_weight": 4.85 if n == 0 else 16.0,
                "bits_per_byte": bits,
                "more_than_first": more,
                "perplexity": 6.1 + n,
                "speed": {"prompt": None, "new": {"mean": 31.5, "deviation": 0.1}, "mbu": None},
            }
        )
    verdicts = ["3B-F16 is worse than 8B-Q4_K_M", "text: python, 200 passages, 190000 bytes"]
    write(folder, record("quantized/compare", hour, metrics={"rows": rows, "verdicts": verdicts}))


def write_bench(folder: Path, hour: int) -> None:
    """What bench.py leaves."""
    content = record("quantized/bench", hour, metrics={"llama_cpp": "b6910", "figures": 2})
    write(folder, content)
    setting = {"threads": 8, "batch": 2048, "micro_batch": 512, "gpu_layers": 33, "split": "layer"}
    setting |= {"shares": "", "kv_type": "f16", "flash_attention": "auto", "depth": 0, "hosts": 0}
    lines = []
    for test in ({"prompt": 512, "new": 0}, {"prompt": 0, "new": 128}):
        result = {
            "key": f"k{test['new']}",
            "round": 1,
            "status": "done",
            "model": {"title": "m-Q4_K_M", "layers": 32},
            "setting": setting,
            "test": test,
            "seconds": [0.51, 0.5, 0.52],
            "build": {"version": "b6910"},
        }
        lines.append(json.dumps(result) + "\n")
    (folder / "points.jsonl").write_text("".join(lines), encoding="utf-8")


def write_sweep(folder: Path, hour: int) -> None:
    """What sweep.py leaves."""
    content = record(
        "finetune/sweep", hour, best="batch 4", changes=["batch 2 -> 4: tokens/s +31 %"]
    )
    content["rows"] = [
        {
            "name": f"batch {size}",
            "status": "done" if size < 8 else "out of memory",
            "step_s": 0.1 * size if size < 8 else None,
            "tokens_per_s": 8000.0 + 900 * size if size < 8 else None,
            "peak_bytes": size * 9_000_000_000,
            "predicted_bytes": size * 9_300_000_000,
            "note": "",
        }
        for size in (2, 4, 8)
    ]
    write(folder, content, "sweep.json")


def write_generation(path: Path, hour: int, answers: Mapping[int, tuple[str, str]]) -> None:
    """What generate.py leaves: ANSWERS.jsonl and its record. answers: id -> prompt, completion."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": n, "sample": 0, "prompt": prompt, "completion": text}) + "\n"
        for n, (prompt, text) in answers.items()
    ]
    path.write_text("".join(lines), encoding="utf-8")
    metrics = {
        "load_s": 11.2,
        "prompt_tokens_per_s": 21873.4,
        "tokens_per_s": 1873.4,
        "decode_tokens_per_s": 1901.0,
        "decode_mbu": 0.63,
        "prompt_mfu": 0.41,
        "peak_gpu_bytes": 17_100_000_000,
        "peak_host_bytes": 2_100_000_000,
    }
    content = record("inference/generate", hour, metrics=metrics)
    content["model"] = {"path": "models/tiny", "adapter": None, "parameters": 6979584000}
    write(path.parent, content, f"{path.name.removesuffix('.jsonl')}.run.json")


def write_hostile(folder: Path) -> None:
    """Texts of HOSTILE wherever a record has texts, in two evaluations, a training and answers."""
    for run in range(2):
        items = [
            Item(
                id=text[:200] or "-",
                doc=digest(n),
                target=digest(n),
                prompt=digest(n),
                scores={"exact_match": float(run and n % 2), "f1": 0.5},
                cluster=text[:50],
                groups={text[:60]: text[:80]},
                shown=Shown(text, text[::-1], text * (1 + run), text),
            )
            for n, text in enumerate(HOSTILE)
        ]
        metric = Metric(run / 2, True, "right", 0.1, 0.0, 0.6, len(items))
        name = HOSTILE[0]
        task = Task(name, HOSTILE[1], 0, {HOSTILE[3]: HOSTILE[4]}, "exact_match",
                    {"exact_match": metric, HOSTILE[2]: metric}, tuple(items))  # fmt: skip
        content = record(HOSTILE[1], 20 + run, argv=list(HOSTILE), status=HOSTILE[5])
        content |= {"model": {"path": HOSTILE[4], "digest": HOSTILE[0]}, HOSTILE[0]: HOSTILE[0]}
        content["host"] = {"nodes": list(HOSTILE), "device": HOSTILE[0], "gpus": list(HOSTILE)}
        content["metrics"] = {HOSTILE[n]: HOSTILE[-n] for n in range(1, 8)} | {"mfu": 0.5}
        target = folder / f"{'<i>&;'}{run} ü\u05d0"
        write_tasks(target, [task], content)
        write_record(target / "run.json", content)
    answers = {n: (text, text[::-1]) for n, text in enumerate(HOSTILE) if n != 5}
    write_generation(folder / "c'd.jsonl", 22, answers)


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """A record with texts that are no Unicode: as JSON's own escapes."""
    path.write_text(json.dumps(content), encoding="ascii")


def write_all(folder: Path) -> Path:
    """Records of every recipe, two of them of runs that did not end well."""
    write(folder / "tiny", record("data/tiny", 1, metrics={"untrained_perplexity": 1713.4,
        "held_out_perplexity": 279.1, "tokens_per_s": 8055.7, "train_s": 12.7}))  # fmt: skip
    rows = [{"step": n, "loss": 7.4 - n / 20, "learning_rate": 1e-3} for n in range(1, 100)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "tiny" / "metrics.jsonl").write_text(lines, encoding="utf-8")
    write_evaluation(folder / "base", 2, 0.38, 1, "models/tiny")
    write_training(folder / "lora", 3, 600, seed=1)
    write_training(folder / "full", 4, 600, "full", seed=2)
    write(folder / "merged", record("finetune/merge", 5, metrics={"merge_s": 31.0, "same_top": 1.0,
        "files": ["config.json"]}, model={"path": "merged", "base": "models/tiny"}))  # fmt: skip
    (folder / "merged" / "metrics.jsonl").write_text(lines, encoding="utf-8")
    write_evaluation(folder / "base+lora", 6, 0.57, 2, "merged")
    write_evaluation(folder / "base+full", 7, 0.59, 3, "full")
    write_quantize(folder / "quantized", 8)
    write(folder / "gguf", record("quantized/convert", 8), "merged-f16.run.json")
    write_gguf_comparison(folder / "sizes", 9)
    write_bench(folder / "bench", 10)
    write_sweep(folder / "sweep", 11)
    for n, words in enumerate(("three", "the number 3")):
        answers = {1: ("What is 1 plus 2?", f"It is {words}."), 2: ("Who?", "Nobody knows.")}
        write_generation(folder / "answers" / f"{'ab'[n]}.jsonl", 12 + n, answers)
    write(folder / "stopped", record("finetune/sft", 14, status="interrupted", metrics={}))
    failed = record("evaluate/harness", 15, status="failed", finished=None)
    write(folder / "failed", {**failed, "log": "job 4711.log"})
    (folder / "failed" / "job 4711.log").write_text("out of memory\n", encoding="utf-8")
    write(folder / "digits", record("data/digits", 16, metrics={"examples": 800}))
    unknown = record("future/thing", 17, metrics={"energy_kwh": 1.25, "nested": {"a_s": 3.5}})
    write(folder / "unknown", {**unknown, "novel": [1, 2, {"x": None}]})
    return folder
