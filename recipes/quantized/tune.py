"""Find the best number of threads for a GGUF model on this machine's CPUs, and remember it.

    llm-run python recipes/quantized/tune.py --model tiny-Q4_K_M.gguf
    llm-run python recipes/quantized/tune.py --model tiny-Q4_K_M.gguf --dry-run

llama-bench measures generation and prompts apart, llama.cpp's own default among them: what is
chosen is never slower than that. Recipes with `--threads auto` then use what was found, wherever
the same was granted of the same CPUs. Run it where nothing else runs on them.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.gguf.file import GgufFile
    from llm_recipes.gguf.sweep import Found, Measure, Plan, Setting, Work
    from llm_recipes.gguf.threads import Cores
    from llm_recipes.gguf.tuning import Tuned

RECIPE = "quantized/tune"
NAMES: dict[Work, str] = {"generate": "generation", "prompt": "prompts"}


def tune(
    model: Path,
    prompt_tokens: int = 256,
    new_tokens: int = 32,
    repeats: int = 3,
    dry_run: bool = False,
    forget: bool = False,
    output: Path | None = None,
) -> None:
    """Find the best number of threads for a GGUF model on this machine's CPUs, and remember it.

    Args:
        model: GGUF file; of several shards the first.
        prompt_tokens: Tokens of a prompt to measure.
        new_tokens: Tokens to generate in a measurement.
        repeats: Rounds in which everything that came close is measured again.
        dry_run: Say what was granted, what is remembered and what would be measured; no more.
        forget: Remove what is remembered of this model here, and measure nothing.
        output: Run record to write, a JSON file; null: none.
    """
    settings = dict(locals())
    raise_all(number_faults(prompt_tokens, new_tokens, repeats))
    from llm_recipes.gguf import tuning
    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.sweep import plan_for
    from llm_recipes.gguf.threads import granted_cores, reason

    file, cores = read_gguf(model), granted_cores()
    key = tuning.key_of(file, cores)
    say(f"{key['cpu']}; {reason(cores)}")
    if forget:
        removed = tuning.forget(key)
        print(f"forgotten: {removed}" if removed else "nothing is remembered of this model here")
        return
    if dry_run:
        for work in ("generate", "prompt"):
            show_plan(NAMES[work], plan_for(cores, work))
        show_remembered(tuning.recall(key), tuning.result_path(key))
        return
    tuning.check_cache(key)
    record = None
    if output is not None:
        from llm_recipes.record import add_input, start_record

        record = start_record(RECIPE, settings, str(key["cpu"]))
        add_input(record, "model", list(file.shards) if len(file.shards) > 1 else file.path)
    found = measure(file, cores, new_tokens, prompt_tokens, repeats)
    rows = [row for work, one in found.items() for row in rows_of(work, one, cores)]
    tuned = result(found)
    print(table(found, cores))
    path = tuning.remember(key, tuned, rows)
    print(
        f"remembered: {tuned.generate} for generation, {tuned.prompt} for prompts and several "
        f"sequences at once\nin {path}"
    )
    if record is not None and output is not None:
        write(output, record, file, tuned, rows, key)


def number_faults(prompt_tokens: int, new_tokens: int, repeats: int) -> list[LLMError]:
    """What is wrong with the numbers."""
    named = {"prompt-tokens": prompt_tokens, "new-tokens": new_tokens, "repeats": repeats}
    return [
        LLMError(f"--{name} {value} is too small", "it must be at least 1")
        for name, value in named.items()
        if value < 1
    ]


def measure(
    file: GgufFile, cores: Cores, new_tokens: int, prompt_tokens: int, repeats: int
) -> dict[Work, Found]:
    """Sweep over threads for generation, then for prompts with the same NUMA strategy."""
    from llm_recipes.gguf.sweep import plan_for, sweep, together
    from llm_recipes.gguf.tuning import bench_rate

    def measuring(work: Work) -> Measure:
        def rate(setting: Setting, count: int) -> float:
            found = bench_rate(file, work, setting, count, cores)
            say(f"{NAMES[work]}: {setting}, {count} tokens: {found:.2f} tokens/s")
            return found

        return rate

    plan = plan_for(cores, "generate")
    generate = sweep(plan, measuring("generate"), new_tokens, repeats)
    plan_prompt = plan_for(cores, "prompt", generate.best.numa)
    prompt = sweep(plan_prompt, measuring("prompt"), prompt_tokens, repeats)
    generate, prompt = together(generate, prompt, plan.default)
    return {"generate": generate, "prompt": prompt}


def result(found: dict[Work, Found]) -> Tuned:
    """What to remember."""
    from llm_recipes.gguf.tuning import Tuned

    generate, prompt = found["generate"].best, found["prompt"].best
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Tuned(generate.threads, prompt.threads, generate.pinned, generate.numa, now)


def rows_of(work: Work, found: Found, cores: Cores) -> list[dict[str, Any]]:
    """What was measured of each setting, for the record."""
    from llm_recipes.gguf.sweep import against

    default = next(one for one in found.tried if is_default(one.setting, cores))
    return [
        {
            "work": work,
            "threads": one.setting.threads,
            "pinned": one.setting.pinned,
            "numa": one.setting.numa,
            "default": one is default,
            "chosen": one.setting == found.best,
            "look_tokens_per_s": round(one.look, 3),
            "tokens_per_s": [round(rate, 3) for rate in one.rates],
            "median_tokens_per_s": round(one.rate, 3),
            "against_default": round(against(one, default), 3),
        }
        for one in found.tried
    ]


def is_default(setting: Setting, cores: Cores) -> bool:
    """Whether llama.cpp's programs do just this if they are not told."""
    return setting.threads == cores.default and not setting.pinned and setting.numa == "none"


def table(found: dict[Work, Found], cores: Cores) -> str:
    """What was measured, for people."""
    lines = []
    for work, one in found.items():
        lines.append(f"{NAMES[work]:<40}{'tokens/s':>10}{'against the default':>21}")
        for row, tried in zip(rows_of(work, one, cores), one.tried, strict=True):
            name = str(tried.setting) + (" (llama.cpp's default)" if row["default"] else "")
            note = "" if tried.rates else "   at first sight"
            mark = "*" if row["chosen"] else " "
            ratio = row["against_default"]
            lines.append(f"{mark} {name:<38}{tried.rate:>10.2f}{ratio:>21.2f}{note}")
        lines.append(f"  {one.best}: {one.why}\n")
    return "\n".join(lines)


def show_plan(name: str, plan: Plan) -> None:
    """Say what would be measured."""
    always = [f"{plan.default} (llama.cpp's default)"]
    always += [str(setting) for setting in plan.first if setting != plan.default]
    parts = {"": always}
    parts["; fewer, until it gets worse: "] = [str(setting) for setting in plan.fewer]
    parts["; more: "] = [str(setting) for setting in plan.more]
    words = "".join(f"{head}{', '.join(found)}" for head, found in parts.items() if found)
    print(f"{name}: {words}")


def show_remembered(tuned: Tuned | None, path: Path) -> None:
    """Say what an earlier run has found."""
    if tuned is None:
        print(f"nothing is remembered in {path}")
        return
    print(
        f"remembered since {tuned.measured}: {tuned.generate} for generation, "
        f"{tuned.prompt} for prompts\nin {path}"
    )


def write(
    output: Path,
    record: dict[str, Any],
    file: GgufFile,
    tuned: Tuned,
    rows: list[dict[str, Any]],
    key: dict[str, Any],
) -> None:
    """Write the run record."""
    from llm_recipes.gguf.file import gguf_digest
    from llm_recipes.record import write_record

    record["model"] = {
        "path": str(file.path),
        "architecture": file.architecture,
        "parameters": file.parameters,
        "type": file.file_type,
        "digest": gguf_digest(file),
    }
    record["metrics"] = {
        "threads": tuned.generate,
        "prompt_threads": tuned.prompt,
        "pinned": tuned.pinned,
        "numa": tuned.numa,
        "granted": key,
        "measured": rows,
    }
    write_record(output.expanduser(), record, "complete")


if __name__ == "__main__":
    run_recipe(tune)
