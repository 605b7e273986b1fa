"""recipes/finetune/merge.py, on adapters of tiny models."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES, Run, make_model, recipe_environment
from safetensors.torch import load_file, save_file

from llm_recipes.errors import LLMError
from llm_recipes.model_folder import folder_digest

SCRIPT = RECIPES / "finetune" / "merge.py"
Merge = Callable[..., None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with files that are no weights; its path has what paths should not have."""
    folder = make_model(tmp_path_factory.mktemp("models") / "base's; ü")
    (folder / "LICENSE").write_text("yours")
    return folder


@pytest.fixture(scope="module")
def merge() -> Merge:
    spec = importlib.util.spec_from_file_location("merge_recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.merge_adapter


def make_adapter(folder: Path, base: Path, rows: int | None = None, **settings: Any) -> Path:
    """An adapter with random weights that change what the model answers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    usual = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "up_proj"]}
    tuned = get_peft_model(model, LoraConfig(**{**usual, **settings}))
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * (0.05 if weight.dim() > 1 else 0.01))
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / 'a "lora"; ü', base)


def start(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=recipe_environment(), **options
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def wanted_weight(base: Path, adapter: Path, name: str) -> torch.Tensor:
    """Base plus scaling times B A, in double precision."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"] ** (0.5 if config["use_rslora"] else 1)
    lora = load_file(adapter / "adapter_model.safetensors")
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    a, b = (lora[f"{prefix}.lora_{x}.weight"].double() for x in "AB")
    return weights(base)[name].double() + scaling * b @ a


LAYER = "model.layers.1.mlp.up_proj.weight"


def test_generates_what_base_and_adapter_do(
    base: Path, adapter: Path, generate: Run, tmp_path: Path
) -> None:
    merged = tmp_path / "merged's; ü"
    done = start("--adapter", adapter, "--output", merged)
    assert done.returncode == 0, done.stderr
    assert "100% have the same likeliest token" in done.stderr
    ask = ["--prompt", "The river", "--max-new-tokens", "24", "--ignore-eos"]
    one = generate(["--model", merged, *ask])
    other = generate(["--model", base, "--adapter", adapter, *ask])
    plain = generate(["--model", base, *ask])
    assert one.returncode == other.returncode == 0, one.stderr + other.stderr
    assert one.stdout == other.stdout != plain.stdout
    record = json.loads((merged / "run.json").read_text())
    assert (record["recipe"], record["status"]) == ("finetune/merge", "complete")
    assert record["model"]["digest"] == folder_digest(merged)
    assert record["metrics"]["difference"] < 1e-4 < record["metrics"]["adapter_effect"]
    for name in ("LICENSE", "tokenizer.model", "chat_template.jinja", "generation_config.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_rounds_once_and_keeps_the_bases_type(
    kind: str, base: Path, merge: Merge, tmp_path: Path
) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    narrow = shutil.copytree(base, tmp_path / "narrow")
    save_file({n: w.to(dtype) for n, w in weights(base).items()}, narrow / "model.safetensors")
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, "dtype": str(dtype)[6:]}))
    adapter = make_adapter(tmp_path / "adapter", narrow)
    merge(str(adapter), tmp_path / "out")
    written = weights(tmp_path / "out")
    assert {weight.dtype for weight in written.values()} == {dtype}
    wanted = wanted_weight(narrow, adapter, LAYER)
    # In fp32 the sum is exact but for a last digit, which may decide a tie of rounding.
    assert (written[LAYER] != wanted.to(dtype)).sum() <= 2
    assert torch.equal(written["lm_head.weight"], weights(narrow)["lm_head.weight"])
    merge(str(adapter), tmp_path / "wide", dtype="fp32")
    wide = weights(tmp_path / "wide")
    assert {weight.dtype for weight in wide.values()} == {torch.float32}
    torch.testing.assert_close(wide[LAYER].double(), wanted, rtol=1e-6, atol=1e-7)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "head trained as a whole": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "embeddings as a whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "more tokens": {"rows": 520, "modules_to_save": ["embed_tokens", "lm_head"]},
    "one layer": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_adapters(kind: str, base: Path, merge: Merge, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = make_adapter(tmp_path / "adapter", base, **KINDS[kind])
    merge(str(adapter), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if "rows" in KINDS[kind]:
        model.resize_token_embeddings(KINDS[kind]["rows"], mean_resizing=False)
    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, rtol=1e-3, atol=1e-3)
        with tuned.disable_adapter():
            assert not torch.allclose(tuned(ids).logits, merged(ids).logits, atol=1e-2)


def test_a_head_that_was_tied(merge: Merge, tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "adapter", tied, target_modules=["q_proj", "lm_head"])
    merge(str(adapter), tmp_path / "out")
    written, embedding = weights(tmp_path / "out"), "model.embed_tokens.weight"
    assert not torch.equal(written["lm_head.weight"], written[embedding])
    assert torch.equal(written[embedding], weights(tied)[embedding])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_the_adapters_tokenizer_goes_before(base: Path, merge: Merge, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    merge(str(adapter), tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text().startswith("{{ messages[0]")
    assert (tmp_path / "out" / "tokenizer.model").is_file()


def test_a_base_of_another_shape(adapter: Path, merge: Merge, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", intermediate_size=48, num_hidden_layers=3)
    with pytest.raises(LLMError) as error:
        merge(str(adapter), tmp_path / "out", base=str(other))
    assert str(other) in str(error.value) and str(adapter) in str(error.value)
    assert "missing: base_model.model.model.layers.2.self_attn.q_proj.lora_A" in str(error.value)
    assert "other shape: base_model.model.model.layers.0.mlp.up_proj.lora_B" in str(error.value)
    renamed = make_adapter(tmp_path / "adapter", adapter_base(adapter), target_modules=["k_proj"])
    config = renamed / "adapter_config.json"
    config.write_text(config.read_text().replace("k_proj", "query_key_value"))
    with pytest.raises(LLMError, match="is no adapter of"):
        merge(str(renamed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def adapter_base(adapter: Path) -> Path:
    config = json.loads((adapter / "adapter_config.json").read_text())
    return Path(config["base_model_name_or_path"])


def test_a_base_that_the_training_did_not_use(base: Path, merge: Merge, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    model = {"path": "/models/mine", "digest": "0123456789abcdef"}
    (adapter / "run.json").write_text(json.dumps({"model": model}))
    with pytest.raises(LLMError, match="trained on another model") as error:
        merge(str(adapter), tmp_path / "out")
    assert "/models/mine" in str(error.value) and str(base) in str(error.value)
    record = {"model": {**model, "digest": folder_digest(base)}, "config": {"method": "qlora"}}
    (adapter / "run.json").write_text(json.dumps(record))
    merge(str(adapter), tmp_path / "out")


def test_a_quantized_adapter_and_a_quantized_base(
    base: Path, merge: Merge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    (adapter / "run.json").write_text(json.dumps({"config": {"method": "qlora"}}))
    merge(str(adapter), tmp_path / "out")
    assert "in 4 bits" in capsys.readouterr().err
    quantized = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(LLMError, match="is quantized"):
        merge(str(adapter), tmp_path / "other", base=str(quantized))


def test_adapters_that_are_no_weights(base: Path, merge: Merge, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(model, settings).save_pretrained(tmp_path / "prompt")
    with pytest.raises(LLMError, match="cannot be merged") as error:
        merge(str(tmp_path / "prompt"), tmp_path / "out")
    assert "PROMPT_TUNING" in str(error.value)


def test_what_is_there_stays(
    base: Path, adapter: Path, merge: Merge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    merge(str(adapter), output)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    merge(str(adapter), output)
    assert "nothing to do" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(LLMError, match="exists"):
        merge(str(adapter), output, dtype="bf16")
    merge(str(adapter), output, dtype="bf16", overwrite=True)
    assert weights(output)[LAYER].dtype == torch.bfloat16
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    with pytest.raises(LLMError, match="exists"):
        merge(str(adapter), foreign, overwrite=True)
    with pytest.raises(LLMError, match="exists"):
        merge(str(adapter), base, overwrite=True)
    assert (foreign / "thesis.tex").read_text() == "mine"


def damaged(adapter: Path, how: str) -> None:
    file, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    if how == "truncated":
        os.truncate(file, file.stat().st_size - 100)
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "huge header":
        file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    elif how == "no weights":
        file.unlink()
    elif how == "no JSON":
        config.write_text("{'r': 4}")
    elif how == "a list":
        config.write_text("[]")
    elif how == "unknown kind":
        config.write_text(config.read_text().replace('"LORA"', '"TELEPATHY"'))
    elif how == "rank is text":
        config.write_text(config.read_text().replace('"r": 4', '"r": "four"'))
    elif how == "base gone":
        config.write_text(config.read_text().replace("base's", "gone"))
    elif how == "nan":
        tensors = load_file(file)
        next(iter(tensors.values())).fill_(float("nan"))
        save_file(tensors, file)
    elif how == "code":
        file.unlink()
        torch.save({"x": Attack(adapter / "proof")}, adapter / "adapter_model.bin")


class Attack:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.proof}'",)


DAMAGE = {
    "truncated": "cut off or damaged",
    "empty": "cut off or damaged",
    "huge header": "cut off or damaged",
    "no weights": "no PEFT adapter",
    "no JSON": "is not JSON",
    "a list": "no JSON object",
    "unknown kind": "does not understand",
    "rank is text": "is no adapter of",
    "base gone": "is not usable",
    "nan": "cannot be merged",
    "code": "wants to run code",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_adapters(how: str, adapter: Path, merge: Merge, tmp_path: Path) -> None:
    bad = shutil.copytree(adapter, tmp_path / "bad; 'ü'")
    damaged(bad, how)
    with pytest.raises(LLMError) as error:
        merge(str(bad), tmp_path / "out")
    assert DAMAGE[how] in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [bad.name]
    assert not (bad / "proof").exists()


def test_a_merge_that_went_wrong_is_not_kept(
    adapter: Path, merge: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_recipes import merging

    monkeypatch.setattr(merging, "merge_layers", lambda tuned, dtype: tuned.unload())
    with pytest.raises(LLMError, match="does not answer as base and adapter"):
        merge(str(adapter), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_full_disk(adapter: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = start("--adapter", adapter, "--output", tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert f"cannot write {tmp_path / 'out'}" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
