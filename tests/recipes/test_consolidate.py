"""recipes/finetune/consolidate.py on checkpoints that the libraries themselves wrote."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES, make_model, recipe_environment
from safetensors.torch import load_file

from llm_recipes.consolidation import copy_adapter_settings
from llm_recipes.errors import LLMError

HERE = Path(__file__).parent
SCRIPT = RECIPES / "finetune" / "consolidate.py"
MODELS = ("fsdp", "fsdp-tied", "zero2", "zero2-tied", "zero3", "zero3-tied")
ADAPTERS = ("fsdp-lora", "zero2-lora", "zero3-lora")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return make_model(folder / "it's; ü"), make_model(folder / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def runs(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two steps on two processes, with every kind of sharding."""
    pytest.importorskip("deepspeed")
    output = tmp_path_factory.mktemp("runs") / "a 'run'; ü"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", str(HERE / "sharded_training.py")]
    done = subprocess.run(
        [*launch, *map(str, models), str(output)],
        capture_output=True,
        text=True,
        timeout=300,
        env=recipe_environment(),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return output


@pytest.fixture(scope="module")
def consolidate() -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("consolidate_recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.consolidate_checkpoint


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A run's folder that a test may damage."""
    return lambda name: shutil.copytree(runs / name, tmp_path / name)


def start(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=recipe_environment(), **options
    )


def gathered(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "gathered.pt", weights_only=True)


def faults(error: LLMError | ExceptionGroup[Any]) -> str:
    return "\n".join(map(str, error.exceptions if isinstance(error, ExceptionGroup) else [error]))


@pytest.mark.parametrize("name", MODELS)
def test_exactly_what_the_run_has_in_memory(
    name: str,
    runs: Path,
    models: tuple[Path, Path],
    consolidate: Callable[..., None],
    tmp_path: Path,
) -> None:
    output = tmp_path / "new" / "it's; ü"
    consolidate(runs / name, output, base=str(models["tied" in name]))
    written = load_file(output / "model.safetensors")
    wanted = gathered(runs / name)
    if "tied" in name:
        assert "lm_head.weight" not in written
        wanted.pop("lm_head.weight", None)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[key], wanted[key]) for key in wanted)
    assert (output / "tokenizer.model").is_file() and (output / "chat_template.jinja").is_file()
    assert json.loads((output / "config.json").read_text())["dtype"] == "float32"
    record = json.loads((output / "run.json").read_text())
    assert (record["recipe"], record["status"]) == ("finetune/consolidate", "complete")
    assert record["model"]["step"] == 2 and record["model"]["processes"] == 2


def test_shardings_trained_alike_agree(runs: Path) -> None:
    one, two, three = (gathered(runs / name) for name in ("fsdp", "zero2", "zero3"))
    for name in two:
        # A step is 1e-2: 1e-4 of a weight are the last digits of its gradient.
        torch.testing.assert_close(two[name], three[name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_under_pefts_names(
    name: str,
    runs: Path,
    models: tuple[Path, Path],
    consolidate: Callable[..., None],
    tmp_path: Path,
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    consolidate(runs / name, tmp_path / "adapter")
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not any("default" in key or "base_layer" in key for key in written)
    wanted = gathered(runs / name)
    base = AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    loaded = dict(tuned.named_parameters())
    trained = [key for key in wanted if ".default." in key]
    assert len(trained) == len(written) == 13
    assert all(torch.equal(loaded[key], wanted[key]) for key in trained)
    assert not (tmp_path / "adapter" / "config.json").exists()


def test_types_shards_and_the_same_command_again(
    runs: Path,
    models: tuple[Path, Path],
    consolidate: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = runs / "zero3" / "checkpoints" / "checkpoint-2" / "global_step2"
    command = {"base": str(models[0]), "dtype": "bf16", "shard_size": "20KB"}
    consolidate(checkpoint, tmp_path / "out", **command)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.bfloat16
    wanted = gathered(runs / "zero3")
    assert all(torch.equal(v, wanted[n].bfloat16()) for n, v in model.state_dict().items())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    consolidate(checkpoint, tmp_path / "out", **command)
    assert "nothing to do" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    command["dtype"] = "fp16"
    with pytest.raises(LLMError, match="exists"):
        consolidate(checkpoint, tmp_path / "out", **command)
    consolidate(checkpoint, tmp_path / "out", **command, overwrite=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(LLMError, match="has not made"):
        consolidate(checkpoint, tmp_path / "out", base=str(models[0]), overwrite=True)


def test_an_ordinary_checkpoint(
    models: tuple[Path, Path], consolidate: Callable[..., None], tmp_path: Path
) -> None:
    consolidate(models[0], tmp_path / "same")
    one, other = (load_file(f / "model.safetensors") for f in (models[0], tmp_path / "same"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    weights = shutil.copytree(models[0], tmp_path / "torch") / "model.safetensors"
    torch.save(
        {f"module._orig_mod.{name}": value for name, value in load_file(weights).items()},
        weights.with_name("pytorch_model.bin"),
    )
    weights.unlink()
    consolidate(tmp_path / "torch", tmp_path / "again")
    other = load_file(tmp_path / "again" / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_the_newest_whole_checkpoint(
    copy: Callable[[str], Path],
    models: tuple[Path, Path],
    consolidate: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copy("zero2")
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "checkpoint-2", checkpoints / "checkpoint-10")
    later = shutil.copytree(checkpoints / "checkpoint-2", checkpoints / "checkpoint-11")
    (later / "complete.json").unlink()
    consolidate(run, tmp_path / "out", base=str(models[0]))
    assert "checkpoint-10" in (tmp_path / "out" / "run.json").read_text()
    consolidate(later, tmp_path / "explicit", base=str(models[0]))
    assert "no complete.json" in capsys.readouterr().err
    for folder in checkpoints.iterdir():
        (folder / "complete.json").unlink(missing_ok=True)
    with pytest.raises(LLMError, match="no whole checkpoint") as error:
        consolidate(run, tmp_path / "none")
    assert f"name it: {later}" in str(error.value)
    assert not (tmp_path / "none").exists()


def zero(run: Path) -> Path:
    return run / "checkpoints" / "checkpoint-2" / "global_step2"


def fsdp(run: Path) -> Path:
    return run / "checkpoints" / "checkpoint-2" / "pytorch_model_fsdp_0"


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


OPTIMIZER = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "shard missing": ("zero3", lambda r: (zero(r) / OPTIMIZER).unlink(), "lacks 1 of 2"),
    "shard cut": ("zero3", lambda r: cut(zero(r) / OPTIMIZER), "cut off"),
    "shard empty": ("zero2", lambda r: (zero(r) / OPTIMIZER).write_bytes(b""), "cut off"),
    "no pickle": ("zero2", lambda r: (zero(r) / OPTIMIZER).write_bytes(b"PK" * 999), "cut off"),
    "shard of a third process": (
        "zero2",
        lambda r: shutil.copy(zero(r) / OPTIMIZER, zero(r) / OPTIMIZER.replace("_1_", "_2_")),
        "mixes shards",
    ),
    "model states missing": (
        "zero3",
        lambda r: (zero(r) / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink(),
        "has 1 of 2",
    ),
    "latest names nothing": (
        "zero3",
        lambda r: (zero(r).parent / "latest").write_text("../../../etc"),
        "not there",
    ),
    "distcp missing": ("fsdp", lambda r: (fsdp(r) / "__1_0.distcp").unlink(), "missing"),
    "distcp cut": ("fsdp", lambda r: cut(fsdp(r) / "__0_0.distcp"), "cut off"),
    "distcp overwritten": (
        "fsdp",
        lambda r: (fsdp(r) / "__0_0.distcp").write_bytes(b"x" * 999_999),
        "cut off",
    ),
    "no metadata": ("fsdp", lambda r: (fsdp(r) / ".metadata").unlink(), "no whole checkpoint"),
    "metadata cut": ("fsdp", lambda r: cut(fsdp(r) / ".metadata"), "cut off"),
    "empty folder": (
        "fsdp",
        lambda r: [file.unlink() for file in fsdp(r).iterdir()],
        "no whole checkpoint",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_before_anything_is_written(
    damage: str,
    copy: Callable[[str], Path],
    models: tuple[Path, Path],
    consolidate: Callable[..., None],
    tmp_path: Path,
) -> None:
    name, do, said = DAMAGE[damage]
    run = copy(name)
    do(run)
    with pytest.raises((LLMError, ExceptionGroup)) as error:
        consolidate(run, tmp_path / "out", base=str(models[0]))
    assert said in faults(error.value)
    assert not list(tmp_path.glob("*out*"))


def test_shards_of_two_runs(
    copy: Callable[[str], Path], consolidate: Callable[..., None], tmp_path: Path
) -> None:
    run, other = copy("zero3"), copy("zero2")
    shutil.copy(zero(other) / OPTIMIZER, zero(run) / OPTIMIZER)
    with pytest.raises(LLMError, match="mixes shards"):
        consolidate(run, tmp_path / "out")


def test_another_configuration(
    copy: Callable[[str], Path], consolidate: Callable[..., None], tmp_path: Path
) -> None:
    config = copy("zero3") / "checkpoints" / "checkpoint-2" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "num_hidden_layers": 3, "intermediate_size": 48}))
    with pytest.raises(LLMError) as error:
        consolidate(tmp_path / "zero3", tmp_path / "out")
    assert "missing: model.layers.2.self_attn.q_proj.weight" in str(error.value)
    assert "model.layers.0.mlp.up_proj.weight is [64, 32], not [48, 32]" in str(error.value)
    config.write_text("{")
    with pytest.raises(LLMError, match="is not JSON"):
        consolidate(tmp_path / "zero3", tmp_path / "out")
    config.unlink()
    with pytest.raises(LLMError, match=r"no config\.json") as error:
        consolidate(tmp_path / "zero3", tmp_path / "out")
    assert "--base" in str(error.value)


def test_adapter_of_another_base(
    copy: Callable[[str], Path], consolidate: Callable[..., None], tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", hidden_size=64)
    with pytest.raises(LLMError, match="other shape") as error:
        consolidate(copy("fsdp-lora"), tmp_path / "out", base=str(other))
    assert str(other) in str(error.value)
    (tmp_path / "fsdp-lora" / "checkpoints" / "checkpoint-2" / "adapter_config.json").unlink()
    with pytest.raises(LLMError, match=r"no adapter_config\.json"):
        consolidate(tmp_path / "fsdp-lora", tmp_path / "out")


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.proof}'",)


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp", "torch"])
def test_code_in_a_pickle_is_refused(
    name: str, copy: Callable[[str], Path], models: tuple[Path, Path], tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    attack = Attack(proof)
    if name == "torch":
        run = shutil.copytree(models[0], tmp_path / name)
        (run / "model.safetensors").unlink()
        torch.save({"lm_head.weight": attack}, run / "pytorch_model.bin")
    elif name == "fsdp":
        run = copy(name)
        (fsdp(run) / ".metadata").write_bytes(pickle.dumps(attack))
    else:
        run = copy(name)
        torch.save({"optimizer_state_dict": attack}, zero(run) / OPTIMIZER)
    done = start("--checkpoint", run, "--output", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "wants to run code" in done.stderr and "system" in done.stderr
    assert "Traceback" not in done.stderr
    assert not proof.exists()


def test_full_disk(runs: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    output = tmp_path / "out"
    arguments = ("--checkpoint", runs / "fsdp", "--output", output, "--base", models[0])
    done = start(*arguments, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert f"cannot write {output}" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_space(
    runs: Path,
    models: tuple[Path, Path],
    consolidate: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(LLMError, match="no space left") as error:
        consolidate(runs / "fsdp", tmp_path / "out", base=str(models[0]))
    assert "are needed" in str(error.value) and not list(tmp_path.iterdir())


MEASURE = """
import sys
from pathlib import Path
from llm_recipes.architecture import expected_model
from llm_recipes.consolidation import consolidate

def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

model, checkpoint, output = map(Path, sys.argv[1:])
expected_model(model)  # what importing takes is not the question
Path("/proc/self/clear_refs").write_text("5")  # peak RSS starts anew
before = kib("VmRSS")
consolidate(checkpoint, output, "bf16", 10**8, model, lambda text: None)
print(kib("VmHWM") - before)
"""


@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_memory_is_bounded_whatever_the_model(
    kind: str, large: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """200 MB of weights; resident memory counts all, as files are read and never mapped."""
    model, weights = large
    large_checkpoint(kind, weights, tmp_path / "big")
    (tmp_path / "out").mkdir()
    arguments = [str(model), str(tmp_path / "big"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        capture_output=True,
        text=True,
        env=recipe_environment(),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert size > 90e6 and len(list((tmp_path / "out").glob("*.safetensors"))) == 1
    assert int(done.stdout) * 1024 < 60e6  # blocks of 8 MB in two types, and the table of files


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Configuration and weights of a model of 48 million parameters, 2.6 million the largest."""
    folder = tmp_path_factory.mktemp("large") / "model"
    shape = {"hidden_size": 1024, "intermediate_size": 2560, "num_hidden_layers": 4}
    model = make_model(folder, num_key_value_heads=4, **shape)
    return model, load_file(model / "model.safetensors")


def large_checkpoint(kind: str, weights: dict[str, torch.Tensor], folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    if kind == "fsdp":
        dcp.save({"model": weights}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
        return
    (folder / "global_step1").mkdir(parents=True)
    for rank in range(2):
        parts = [value.flatten().chunk(2)[rank] for value in weights.values()]
        optimizer = {
            "zero_stage": 3,
            "partition_count": 2,
            "fp32_flat_groups": [torch.cat(parts)],
            "optimizer_state_dict": {},
        }
        states = {
            "module": {},
            "buffer_names": [],
            "param_shapes": [{name: value.shape for name, value in weights.items()}],
            "shared_params": {},
        }
        prefix = folder / "global_step1" / f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": optimizer}, f"{prefix}_optim_states.pt")
        torch.save(states, f"{prefix}_model_states.pt")


def test_an_adapters_modules_are_written_in_order(tmp_path: Path) -> None:
    given = {"r": 4, "target_modules": ["v_proj", "down_proj", "q_proj"], "peft_type": "LORA"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/adapter_config.json").write_text(json.dumps(given))
    copy_adapter_settings(tmp_path / "in", tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written == {**given, "target_modules": ["down_proj", "q_proj", "v_proj"]}
