"""Records lead back: a recipe with its record's configuration does the same run, byte for byte.

Each recipe runs as a user starts it, then once more with `--config` and nothing else. Only outputs
have other names the second time, and Python's hashes of texts are others: sets have another order.
Recipes whose runs are long are stopped where their record begins.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from conftest import RECIPES, recipe_environment
from warm_python import Runner, warm_python

from llm_recipes.cli import call_with_arguments
from llm_recipes.record import read_record

# Prints the record and goes no further.
UP_TO_THE_RECORD = """
import json, os, runpy, sys
import llm_recipes.record as records
begin = records.start_record
def stop(*arguments, **named):
    print(json.dumps(begin(*arguments, **named)), flush=True)
    os._exit(0)
records.start_record = stop
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Step:
    """A recipe's run. line: its arguments; record: where its record is, by the output's name."""

    recipe: str
    line: str
    record: str = "{output}/run.json"
    after: str = "-again"  # of the second output's name

    @property
    def name(self) -> str:
        """For the test's id: the recipe and what it is told."""
        return f"{self.recipe} {self.line.split('--output ')[1].split()[0]}"


DATA = "--data digits/digits-train.jsonl"
TEST = "--data digits/digits-test.jsonl --max-new-tokens 4"
TRAIN = "--max-length 64 --max-steps 2 --global-batch 4 --batch-size 2 --learning-rate 0.00002"
ANSWERS = "{stem}.run.json"
STEPS = (
    Step("data/digits", "--output digits --train 64 --test 8"),
    Step(
        "data/tiny",
        "--output tiny --steps 2 --vocab-size 512 --layers 1 --hidden-size 32 --heads 2"
        " --intermediate-size 64",
    ),
    Step("data/prepare", f"--output prepared --model model {DATA} --prompts held.jsonl"),
    Step("finetune/sft", f"--output lora --model model {DATA} {TRAIN}"),
    Step("finetune/sft", f"--output full --model model {DATA} {TRAIN} --method full"),
    Step("finetune/consolidate", "--output consolidated --checkpoint full"),
    Step("finetune/merge", "--output merged --adapter lora"),
    Step(
        "inference/generate",
        "--output answers.jsonl --model merged --prompts prompts.txt --max-new-tokens 6",
        ANSWERS,
        "-again.jsonl",
    ),
    Step(
        "inference/generate",
        "--output sampled.jsonl --model model --adapter lora --prompt a --prompt b --samples 2"
        " --temperature 1 --max-new-tokens 6 --stop xyz",
        ANSWERS,
        "-again.jsonl",
    ),
    Step("inference/reshard", "--output hf --model meta --to hf --context-length 128"),
    Step(
        "inference/sharded",
        "--output meta.jsonl --model meta --prompts prompts.txt --max-new-tokens 4",
        ANSWERS,
        "-again.jsonl",
    ),
    Step("evaluate/qa", f"--output base {TEST} --model model"),
    Step("evaluate/qa", f"--output tuned {TEST} --model model --adapter lora"),
    Step("evaluate/compare", "--output comparison --run base --run tuned"),
    Step("evaluate/report", "--output report --run base --run tuned --title Ümläut"),
)
IN_THE_IMAGE = (
    Step("quantized/convert", "--output f16.gguf --model rows --type f16", ANSWERS, "-a.gguf"),
    Step(
        "quantized/quantize",
        "--output quants --model f16.gguf --types Q8_0 --speed false --chunks 2",
    ),
    Step(
        "quantized/generate",
        "--output gguf.jsonl --model f16.gguf --prompts prompts.txt --max-new-tokens 4",
        ANSWERS,
        "-again.jsonl",
    ),
    Step(
        "quantized/compare",
        "--output sizes --models f16.gguf --models quants/f16-Q8_0.gguf --passages 4 --speed false",
    ),
    Step(
        "evaluate/harness",
        "--output arithmetic --model model --tasks llm_arithmetic_1dc --limit 4",
    ),
    Step(
        "evaluate/harness",
        "--output arithmetic-gguf --model f16.gguf --tasks llm_arithmetic_1dc --limit 4",
    ),
)
# What these write is in no test: measurements, and a server.
BEGUN = {
    "finetune/sweep": f"--output sweep --model model {DATA} --batch-size 1 --batch-size 2"
    " --max-length 64",
    "quantized/tune": "--model f16.gguf --output tuned.json",
    "quantized/bench": "--models f16.gguf --output bench --threads 1",
    "quantized/serve": "--model f16.gguf --record serve.json --connection connection.json",
}
PROCESSES = {"inference/sharded": ["-m", "torch.distributed.run", "--nproc-per-node=1"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A working directory with what the first recipes need."""
    from meta_checkpoints import LLAMA_2, make_checkpoint

    folder = tmp_path_factory.mktemp("it's a; plåce")
    shutil.copytree(model_folder, folder / "model")
    make_checkpoint(folder / "meta", LLAMA_2)
    (folder / "prompts.txt").write_text("Hello\nWhat is it?\n", encoding="utf-8")
    return folder


def environment(place: Path) -> dict[str, str]:
    """That of a user whose caches are in the working directory."""
    cache = {"LLM_CACHE_DIR": str(place / "cache"), "XDG_CACHE_HOME": str(place / "cache")}
    return {**recipe_environment(), **cache, "LLM_HOME": str(RECIPES.parent)}


@pytest.fixture(scope="module")
def pythons(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runner, ...]]:
    """Two that are warm: for a run, and for the same run again."""
    with contextlib.ExitStack() as stack:
        yield tuple(
            stack.enter_context(
                warm_python(
                    place,
                    {**environment(place), "PYTHONHASHSEED": seed},
                    tmp_path_factory.mktemp("messages"),
                )
            )
            for seed in ("1", "2")
        )


def start(step: Step, arguments: Sequence[str], place: Path, python: Runner) -> None:
    """Run a recipe in the working directory."""
    script = str(RECIPES / f"{step.recipe}.py")
    before = PROCESSES.get(step.recipe)
    if before:
        command = [sys.executable, *before, script, *arguments]
        done = subprocess.run(
            command,
            cwd=place,
            env=environment(place),
            capture_output=True,
            text=True,
            timeout=300,
        )
    else:
        done = python(script, arguments)
    assert done.returncode == 0, f"{step.recipe}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


def function_of(recipe: str) -> Any:
    """The function whose signature is the recipe's command line."""
    found = runpy.run_path(str(RECIPES / f"{recipe}.py"))
    source = (RECIPES / f"{recipe}.py").read_text(encoding="utf-8")
    return found[source.rsplit("run_recipe(", 1)[1].split(")")[0]]


def read_again(recipe: str, config: Mapping[str, Any], file: Path, capsys: Any) -> Any:
    """What the recipe's command line makes of a configuration."""
    import yaml

    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SystemExit):
        call_with_arguments(
            function_of(recipe), ["--config", str(file), "--print_config"], "recipe"
        )
    return yaml.safe_load(capsys.readouterr().out)


def run_twice(
    step: Step, place: Path, pythons: tuple[Runner, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records of a run and of one with its configuration and other outputs."""
    start(step, step.line.split(), place, pythons[0])

    def record_of(output: str) -> dict[str, Any]:
        stem = output.removesuffix(".jsonl")
        found = read_record(place / step.record.format(output=output, stem=stem))
        assert found is not None
        return found

    first = record_of(step.line.split("--output ")[1].split()[0])
    config = dict(first["config"])
    for name in first["outputs"]:
        if config[name] is not None:
            config[name] = f"{Path(config[name]).stem}{step.after}"
    file = place / "again.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    start(step, ["--config", str(file)], place, pythons[1])
    output = str(Path(config["output"]))
    second = record_of(output)
    assert {**second["config"], **dict.fromkeys(first["outputs"])} == {
        **first["config"],
        **dict.fromkeys(first["outputs"]),
    }
    return first, second


def check(step: Step, place: Path, pythons: tuple[Runner, ...]) -> None:
    """A run and its repetition leave the same."""
    first, second = run_twice(step, place, pythons)
    parameters = inspect.signature(function_of(step.recipe)).parameters
    assert list(first["config"]) == list(parameters)
    assert set(first["outputs"]) <= set(parameters)
    assert first["cwd"] == str(place)
    assert first["code"]["recipe"]["path"] == f"recipes/{step.recipe}.py"
    assert first["deterministic"] is True
    assert first["results"]
    assert None not in first["results"].values()
    renamed = [second["results"].values(), first["results"].values()]
    assert list(renamed[0]) == list(renamed[1]), (first["results"], second["results"])
    for part in ("model", "adapter", "data"):
        assert second[part].get("content") == first[part].get("content")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_same_run_again(step: Step, place: Path, pythons: tuple[Runner, ...]) -> None:
    check(step, place, pythons)


@pytest.mark.parametrize("step", IN_THE_IMAGE, ids=lambda step: step.name)
def test_the_same_run_again_in_the_image(
    step: Step, place: Path, tiny_hf: Path, pythons: tuple[Runner, ...]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
    if not (place / "rows").exists():
        shutil.copytree(tiny_hf, place / "rows")
    check(step, place, pythons)


@pytest.mark.parametrize("recipe", BEGUN)
def test_configurations_of_long_runs(
    recipe: str,
    place: Path,
    pythons: tuple[Runner, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if recipe.startswith("quantized"):
        pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
    stop = tmp_path / "stop.py"
    stop.write_text(UP_TO_THE_RECORD, encoding="utf-8")
    line = [str(RECIPES / f"{recipe}.py"), *BEGUN[recipe].split()]
    done = pythons[0](str(stop), line)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads(done.stdout.splitlines()[-1])
    assert list(record["config"]) == list(inspect.signature(function_of(recipe)).parameters)
    assert record["deterministic"] is False
    assert read_again(recipe, record["config"], tmp_path / "c.json", capsys) == record["config"]


def test_every_recipe_with_a_record_is_here() -> None:
    tested = {step.recipe for step in (*STEPS, *IN_THE_IMAGE)} | set(BEGUN)
    folders = ("data", "evaluate", "finetune", "inference", "quantized")
    recipes = {
        f"{folder}/{file.stem}" for folder in folders for file in (RECIPES / folder).glob("*.py")
    }
    assert tested == recipes - {"data/show"}  # which only shows
