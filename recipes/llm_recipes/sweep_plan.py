"""What sft.py would do with settings and how much memory that takes, asked in another process.

    from llm_recipes.sweep_plan import Planned, plan_runs
    plan_runs([settings], processes=1)

A process of its own, because what it holds (libraries, a context on the GPU) would be missing
to the runs. It prepares the data too, so that no run's start does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llm_recipes.errors import USER_MISTAKE, LLMError, leaves

RECIPES = Path(__file__).resolve().parents[1]
SFT = RECIPES / "finetune" / "sft.py"
TOO_LARGE = "the model does not fit"  # how strategy.py's error begins


@dataclass(frozen=True)
class Planned:
    """What a run would do. predicted_bytes: of a process at its peak; on a CPU with the program
    itself. fits: into the device, by that prediction. fault: why it can't be started, or "".
    """

    predicted_bytes: int | None = None
    fits: bool = True
    strategy: str = ""
    checkpointing: bool = False
    fault: str = ""

    @property
    def too_large(self) -> bool:
        """Whether sft.py refuses it for its size."""
        return self.fault.startswith(TOO_LARGE)


def recipe_function(script: Path = SFT) -> Callable[..., Any]:
    """sft.py's function, whose signature is its command line."""
    function: Callable[..., Any] = recipe_module(script).finetune
    return function


def recipe_module(script: Path) -> Any:
    """sft.py as a module; the recipes are no package."""
    spec = importlib.util.spec_from_file_location("sft", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # jsonargparse looks there for what the types' names mean
    spec.loader.exec_module(module)
    return module


def child_environment() -> dict[str, str]:
    """This process's environment, in which the recipes' modules are found."""
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(RECIPES), known]))}


def plan_runs(settings: Sequence[Mapping[str, Any]], processes: int) -> list[Planned]:
    """What sft.py would do with each of these settings.

    Raises:
        LLMError: If the planning process ends otherwise than it should.
    """
    question = json.dumps({"settings": settings, "processes": processes}, default=str)
    command = [sys.executable, "-m", "llm_recipes.sweep_plan"]
    done = subprocess.run(
        command, input=question.encode(), stdout=subprocess.PIPE, env=child_environment()
    )
    try:
        return [Planned(**answer) for answer in json.loads(done.stdout)]
    except (ValueError, TypeError):
        why = f"the process that plans it ended with status {done.returncode}, see above"
        fix = "sft.py --plan with the same options says more"
        raise LLMError("the sweep can't be planned", why, fix) from None


def answer(question: Mapping[str, Any]) -> list[Planned]:
    """The planning process's work."""
    sft = recipe_module(SFT)
    prepared: dict[int, Any] = {}
    plans = []
    for settings in question["settings"]:
        try:
            plans.append(plan_one(sft, settings, question["processes"], prepared))
        except* LLMError as group:
            faults = list(leaves(group))
            large = [fault for fault in faults if fault.what.startswith(TOO_LARGE)]
            plans.append(Planned(fits=False, fault="\n".join(map(str, large or faults))))
    return plans


def plan_one(sft: Any, settings: Mapping[str, Any], processes: int, prepared: Any) -> Planned:
    """One run's plan. prepared: data by length, which this fills.

    Raises:
        LLMError, ExceptionGroup: If the run can't be started.
    """
    import torch

    from llm_recipes.ranks import Ranks
    from llm_recipes.sft_model import load_tokenizer
    from llm_recipes.strategy import BATCH_SHARE

    ranks = Ranks(count=processes)
    job = sft.check(settings, ranks)
    if job.device.type == "cuda" and processes > torch.cuda.device_count():
        what = f"--processes {processes} needs as many GPUs"
        raise LLMError(what, f"{torch.cuda.device_count()} are visible", "fewer --processes")
    length = job.settings["max_length"]
    if length not in prepared:
        tokenizer = load_tokenizer(job.folder.path, job.settings["trust_remote_code"])
        prepared[length] = sft.prepare_data(job, tokenizer, Ranks())
    memory = sft.memory_bytes(job, ranks)
    choice = sft.choose_plan(job, ranks, prepared[length], memory)
    predicted = choice.prediction.total if choice.prediction else None
    fits = predicted is None or predicted <= BATCH_SHARE * memory
    if predicted is not None and job.device.type == "cpu":
        predicted += program_bytes()
    return Planned(predicted, fits, choice.strategy, choice.checkpointing)


@cache
def program_bytes() -> int:
    """Memory of a process that has loaded all that sft.py loads, and no model."""
    shown, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)  # what libraries say of a missing GPU is not about the plan
        import llm_recipes.sft_run  # noqa: F401 - for its size
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Answer the question on standard input on standard output; libraries print elsewhere."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    question = json.loads(sys.stdin.buffer.read())
    try:
        plans = answer(question)
    except KeyboardInterrupt:
        return USER_MISTAKE
    with out:
        json.dump([asdict(plan) for plan in plans], out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
