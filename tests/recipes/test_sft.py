"""sft.py as a user runs it: results, resuming, stopping, wrong input; on a very small model."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPES, make_model, recipe_environment

from llm_recipes import stop_signals
from llm_recipes.errors import faults_of
from llm_recipes.metrics_log import read_rows

SCRIPT = RECIPES / "finetune" / "sft.py"
Tune = Callable[..., int]


def load_recipe() -> Any:
    spec = importlib.util.spec_from_file_location("sft", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions with short answers, in a file whose path has what paths should not have."""
    path = tmp_path_factory.mktemp("data") / "it's; \"sums\" ü.jsonl"
    rows = [
        {"instruction": f"What is {a} plus {b}?", "context": "", "response": str(a + b)}
        for a in range(8)
        for b in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tune(
    model_folder: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tune]:
    """finetune() in this process: `tune(output, max_steps=4)`; the defaults are small."""
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("LLM_STOP_FILE", "LLM_DEADLINE", "LLM_UNFINISHED_FILE", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stop_signals, "_found", False)
    monkeypatch.setattr(stop_signals, "_terminated", False)
    monkeypatch.setattr(stop_signals, "LOOK_SECONDS", 0.0)
    previous = signal.getsignal(signal.SIGTERM)
    recipe = load_recipe()

    def run(output: Path, **options: Any) -> int:
        small = {"max_length": 96, "global_batch": 8, "max_steps": 6, "learning_rate": 1e-2}
        chosen = {"model": str(model_folder), "data": str(sums), "device": "cpu"}
        chosen |= {**small, **options}
        status: int = recipe.finetune(output=output, **chosen)
        return status

    yield run
    signal.signal(signal.SIGTERM, previous)


def losses(output: Path) -> dict[int, float]:
    rows = read_rows(output / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def weights(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    names = ("adapter_model.safetensors", "model.safetensors")
    found: dict[str, Any] = load_file(next(output / n for n in names if (output / n).exists()))
    return found


def largest_difference(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def record(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "run.json").read_text())
    return found


def test_an_adapter_with_all_that_belongs_to_it(
    tune: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "it's; an \"out\" ü"
    assert tune(output, save_every=2, keep=2, evaluate_every=3) == 0
    names = {path.name for path in output.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert {"loss.png", "throughput.png", "memory.png", "run.json", "metrics.jsonl"} <= names
    kept = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert kept == ["checkpoint-4", "checkpoint-6"]
    rows = read_rows(output / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert {r["step"] for r in rows if "held_out_loss" in r} == {3, 6}
    for name in ("learning_rate", "grad_norm", "tokens_per_s", "loss_tokens_per_s", "seconds_left"):
        assert all(row[name] is not None for row in steps), name
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    facts = record(output)
    assert facts["status"] == "complete" and facts["metrics"]["steps"] == 6
    assert facts["metrics"]["peak_host_bytes"] > 1e8 and facts["sharing"]["strategy"] == "single"
    config = json.loads((output / "adapter_config.json").read_text())
    assert set(config["target_modules"]) >= {"q_proj", "o_proj", "down_proj"}
    assert "lm_head" not in config["target_modules"]
    capsys.readouterr()
    before = (output / "adapter_model.safetensors").stat().st_mtime_ns
    assert tune(output, save_every=2, keep=2, evaluate_every=3) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (output / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "options", [{}, {"method": "full"}, {"packing": True, "lora_dropout": 0.1}]
)
def test_the_loss_after_a_resume_is_that_of_a_run_that_went_through(
    tune: Tune, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"max_steps": 9, "global_batch": 4, **options}
    assert tune(whole, **settings) == 0
    stop = tmp_path / "stop"
    monkeypatch.setenv("LLM_STOP_FILE", str(stop))
    monkeypatch.setenv("LLM_UNFINISHED_FILE", str(tmp_path / "unfinished"))
    stop_after(monkeypatch, stop, 4)
    assert tune(cut, **settings) == 75
    assert record(cut)["status"] == "interrupted" and (tmp_path / "unfinished").exists()
    assert max(losses(cut)) == 4 and not (cut / "run.json.tmp").exists()
    stop.unlink()
    monkeypatch.setattr(stop_signals, "_found", False)
    assert tune(cut, **settings) == 0
    expected, found = losses(whole), losses(cut)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-6
    assert largest_difference(whole, cut) < 1e-6


def test_weights_with_other_names_in_files_go_on_too(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-NeoX's head is lm_head in memory and embed_out in files."""
    from transformers import AutoModelForCausalLM

    from llm_recipes.tiny_models import Shape, model_config

    pythia = make_model(tmp_path / "pythia")
    shape = Shape(32, 64, 2, 4, None, 512, 256)
    AutoModelForCausalLM.from_config(model_config("gpt_neox", shape)).save_pretrained(pythia)
    settings = {"model": str(pythia), "method": "full", "max_steps": 5}
    assert tune(tmp_path / "whole", **settings) == 0
    stop = tmp_path / "stop"
    monkeypatch.setenv("LLM_STOP_FILE", str(stop))
    stop_after(monkeypatch, stop, 2)
    assert tune(tmp_path / "cut", **settings) == 75
    stop.unlink()
    monkeypatch.setattr(stop_signals, "_found", False)
    assert tune(tmp_path / "cut", **settings) == 0
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-6
    assert largest_difference(tmp_path / "whole", tmp_path / "cut") < 1e-6
    assert "embed_out.weight" in weights(tmp_path / "cut")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    head = weights(tmp_path / "cut")["embed_out.weight"]
    assert float((again.lm_head.weight - head).abs().max()) == 0


def stop_after(monkeypatch: pytest.MonkeyPatch, stop: Path, step: int) -> None:
    """Write the stop file before the step after which a run shall leave."""
    from llm_recipes.stop_together import StopWatch

    asked = StopWatch.wishes
    calls = []

    def wishes(self: StopWatch) -> list[float]:
        calls.append(1)
        if len(calls) == step:
            stop.touch()
        return asked(self)

    monkeypatch.setattr(StopWatch, "wishes", wishes)


def test_a_checkpoint_that_was_cut_short_is_never_resumed_from(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, stop = tmp_path / "out", tmp_path / "stop"
    monkeypatch.setenv("LLM_STOP_FILE", str(stop))
    stop_after(monkeypatch, stop, 4)
    assert tune(output, save_every=2) == 75
    newest = output / "checkpoints" / "checkpoint-4"
    with open(newest / "optimizer.pt", "r+b") as file:
        file.truncate(100)
    unsealed = shutil.copytree(newest, newest.with_name("checkpoint-5"))
    (unsealed / "complete.json").unlink()
    stop.unlink()
    monkeypatch.setattr(stop_signals, "_found", False)
    capsys.readouterr()
    assert tune(output, save_every=2) == 0
    said = capsys.readouterr().err
    assert "checkpoint-4 was cut short" in said and "checkpoint-5 was cut short" in said
    assert "going on after step 2" in said
    assert sorted(losses(output)) == [1, 2, 3, 4, 5, 6]


def test_measuring_leaves_numbers_only(tune: Tune, tmp_path: Path) -> None:
    assert tune(tmp_path / "out", measure_only=True, save_every=2) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "run.json" in names and "loss.png" in names
    assert not names & {"adapter_model.safetensors", "adapter_config.json"}
    assert not list((tmp_path / "out" / "checkpoints").glob("*"))
    assert record(tmp_path / "out")["metrics"]["saves"] == 0


def test_other_batch_sizes_do_the_same_steps(tune: Tune, tmp_path: Path) -> None:
    for batch in (1, 8):
        tune(tmp_path / str(batch), batch_size=batch, max_steps=3)
    one, eight = losses(tmp_path / "1"), losses(tmp_path / "8")
    assert max(abs(one[step] - eight[step]) for step in one) < 1e-5
    # Three steps change a weight by up to 3e-2; where gradients are tiny, Adam enlarges rounding.
    assert largest_difference(tmp_path / "1", tmp_path / "8") < 1e-3


def test_checkpointing_changes_nothing(tune: Tune, tmp_path: Path) -> None:
    for flag in (True, False):
        tune(tmp_path / str(flag), checkpointing=flag, max_steps=2, method="full")
    assert largest_difference(tmp_path / "True", tmp_path / "False") < 1e-5


def test_early_stopping_takes_the_best(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_recipes.sft_trainer import FineTuner

    told = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    monkeypatch.setattr(FineTuner, "held_out_loss", lambda self: next(told))
    output = tmp_path / "out"
    assert tune(output, max_steps=12, evaluate_every=1, patience=2, keep=1, save_every=0) == 0
    assert max(losses(output)) == 4
    assert record(output)["result"]["step"] == 2
    assert record(output)["metrics"]["best_held_out_loss"] == 2.0
    assert (output / "checkpoints" / "checkpoint-2").is_dir()
    # Killed before the result was there: nothing is trained, and nothing else evaluated.
    before = read_rows(output / "metrics.jsonl")
    (output / "run.json").write_text(json.dumps({**record(output), "status": "running"}))
    (output / "adapter_model.safetensors").unlink()
    assert tune(output, max_steps=12, evaluate_every=1, patience=2, keep=1, save_every=0) == 0
    assert record(output)["result"]["step"] == 2 and (output / "adapter_model.safetensors").exists()
    assert read_rows(output / "metrics.jsonl") == before


def test_worse_evaluations_without_patience_end_nothing(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_recipes.sft_trainer import FineTuner

    told = iter([1.0, 2.0, 3.0, 4.0])
    output, stop = tmp_path / "out", tmp_path / "stop"
    options = {"max_steps": 4, "evaluate_every": 1, "save_every": 1}

    def stopping(self: Any) -> float:
        loss = next(told)
        if loss == 2.0:
            stop.touch()
        return loss

    monkeypatch.setattr(FineTuner, "held_out_loss", stopping)
    monkeypatch.setenv("LLM_STOP_FILE", str(stop))
    assert tune(output, **options) == stop_signals.UNFINISHED
    stop.unlink()
    monkeypatch.setattr(stop_signals, "_found", False)
    assert tune(output, **options) == 0
    assert list(losses(output)) == [1, 2, 3, 4] and record(output)["result"]["step"] == 4


def test_pure_bf16_is_that_for_adapters_too(tune: Tune, tmp_path: Path) -> None:
    import torch

    assert tune(tmp_path / "out", max_steps=2, dtype="bf16", pure_bf16=True) == 0
    kept = weights(tmp_path / "out" / "checkpoints" / "checkpoint-2")
    assert {weight.dtype for weight in kept.values()} == {torch.bfloat16}


def test_a_lost_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    tune: Tune, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    options = {"method": "full", "learning_rate": 1e38, "max_steps": 30, "save_every": 1}
    options |= {"warmup": 0.0, "max_grad_norm": 0.0, "schedule": "constant"}
    faults = faults_of(lambda: tune(output, **options))
    assert len(faults) == 1 and "training has failed at step" in faults[0].what
    assert record(output)["status"] == "failed"
    assert not (output / "model.safetensors").exists()
    seals = list((output / "checkpoints").glob("*/complete.json"))
    steps = [int(seal.parent.name.split("-")[1]) for seal in seals]
    assert all(step < max(losses(output)) for step in steps)


def test_another_run_in_the_folder_is_refused(tune: Tune, tmp_path: Path) -> None:
    output = tmp_path / "out"
    tune(output, max_steps=2)
    faults = faults_of(lambda: tune(output, max_steps=2, lora_rank=4))
    assert "other settings" in faults[0].what and "lora_rank was 16, now 4" in faults[0].why
    assert tune(output, max_steps=2, lora_rank=4, overwrite=True) == 0
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 4
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    faults = faults_of(lambda: tune(foreign, overwrite=True))
    assert "not the folder of a run" in faults[0].what
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_a_result_of_another_kind_replaces_the_earlier(tune: Tune, tmp_path: Path) -> None:
    """transformers would read an adapter that lies beside a model, and put it on."""
    output = tmp_path / "out"
    tune(output, max_steps=1)
    (output / ".result-killed").mkdir()
    (output / "notes.txt").write_text("mine")
    assert tune(output, max_steps=1, method="full", overwrite=True) == 0
    names = {path.name for path in output.iterdir()}
    assert {"model.safetensors", "config.json", "notes.txt", "tokenizer_config.json"} <= names
    assert not {"adapter_config.json", "adapter_model.safetensors", ".result-killed"} & names
    assert tune(output, max_steps=1, overwrite=True) == 0
    assert not (output / "model.safetensors").exists() and not (output / "config.json").exists()


def test_everything_impossible_is_named_at_once(tune: Tune, tmp_path: Path) -> None:
    faults = faults_of(
        lambda: tune(tmp_path / "out", lora_rank=0, epochs=-1.0, held_out=0.0, evaluate_every=5)
    )
    said = "\n".join(map(str, faults))
    for words in ("--lora-rank 0", "--epochs -1.0", "--evaluate-every needs --held-out"):
        assert words in said
    faults = faults_of(
        lambda: tune(tmp_path / "out", max_length=9999, target_modules=["q_prj"], batch_size=3)
    )
    said = "\n".join(map(str, faults))
    assert "--max-length 9999" in said
    faults = faults_of(lambda: tune(tmp_path / "out", target_modules=["q_prj"], batch_size=3))
    said = "\n".join(map(str, faults))
    assert "did you mean q_proj" in said and "--global-batch 8" in said
    assert not (tmp_path / "out").exists()


def test_families_that_leak_are_not_packed(tune: Tune, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from llm_recipes.tiny_models import Shape, model_config

    falcon = make_model(tmp_path / "falcon")
    (falcon / "model.safetensors").unlink()
    shape = Shape(32, 64, 2, 4, None, 512, 256)
    AutoModelForCausalLM.from_config(model_config("falcon", shape)).save_pretrained(falcon)
    faults = faults_of(lambda: tune(tmp_path / "out", model=str(falcon), packing=True))
    assert "--packing does not work with falcon" in faults[0].what
    assert tune(tmp_path / "out", model=str(falcon), max_steps=2) == 0
    assert record(tmp_path / "out")["model"]["attention"] == "sdpa"


def test_ctrl_c_saves_and_the_same_command_goes_on(
    model_folder: Path, sums: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = sft_command(model_folder, sums, output, "--max-steps=2000", "--save-every=0")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**recipe_environment(), "LLM_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    wait_for_steps(output, 3, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted by Ctrl-C: saved after step" in said and "Traceback" not in said
    done = max(losses(output))
    assert (output / "checkpoints" / f"checkpoint-{done}" / "complete.json").exists()


def wait_for_steps(output: Path, steps: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        if len(losses(output)) >= steps:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {steps} steps: {process.communicate()[0]}")


def sft_command(model: Path, data: Path, output: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, str(SCRIPT), f"--model={model}", f"--data={data}", f"--output={output}"),
        *("--max-length=96", "--global-batch=8", "--learning-rate=0.01", *options),
    ]


def run_sft(command: Sequence[str], cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**recipe_environment(), "LLM_CACHE_DIR": str(cache), **env}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def test_mistakes_on_the_command_line(model_folder: Path, sums: Path, tmp_path: Path) -> None:
    command = sft_command(model_folder, sums, tmp_path / "out", "--lora-rnk=3", "--methd", "full")
    done = run_sft(command, tmp_path / "cache")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "did you mean --lora-rank" in done.stderr and "did you mean --method" in done.stderr
    (tmp_path / "nothing.jsonl").write_text("")
    done = run_sft(
        sft_command(model_folder, tmp_path / "nothing.jsonl", tmp_path / "out"), tmp_path / "cache"
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "nothing.jsonl" in done.stderr and not (tmp_path / "out" / "run.json").exists()


def test_a_full_disk_loses_nothing(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on file sizes is the stand-in for a full disk: writing fails in the same way."""
    import resource

    output = tmp_path / "out"
    tune(output, max_steps=2, save_every=1)
    before = (output / "adapter_model.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Exception) as caught:
            tune(output, max_steps=3, save_every=1, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert faults_of(lambda: (_ for _ in ()).throw(caught.value)), repr(caught.value)
    assert (output / "adapter_model.safetensors").read_bytes() == before
    assert not list((output / "checkpoints").glob("*/complete.json"))
    assert os.environ  # the process lives

@pytest.mark.parametrize("options", [{"method": "full"}, {"dtype": "bf16"}])
def test_the_fused_head_of_gpus_does_the_same_steps(
    options: dict[str, Any], tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_recipes import sft_trainer

    tune(tmp_path / "selected", max_steps=3, **options)
    summed = sft_trainer.FineTuner._summed_loss
    calls = []

    def fused(self: Any, *given: Any) -> Any:
        if not calls:
            sft_trainer._only_log_probs(self.model)
        calls.append(1)
        self._fused = True
        return summed(self, *given)

    monkeypatch.setattr(sft_trainer.FineTuner, "_summed_loss", fused)
    tune(tmp_path / "fused", max_steps=3, **options)
    expected, found = losses(tmp_path / "selected"), losses(tmp_path / "fused")
    assert calls and found == pytest.approx(expected, rel=2e-3 if "dtype" in options else 1e-5)
