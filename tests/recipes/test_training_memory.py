"""Predicted training memory against storages that autograd really keeps, and whole steps."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from llm_recipes import training_memory
from llm_recipes.activation_memory import layer_bytes, saved_bytes
from llm_recipes.known_shapes import known_shape
from llm_recipes.memory import ModelShape
from llm_recipes.tiny_models import ARCHITECTURES, Shape, model_config
from llm_recipes.training_memory import MemoryPrediction, TrainingSetup, nf4_bytes, predict

RANK, ROWS, LENGTH = 8, 2, 256
TOKENS = ROWS * LENGTH
TOY = Shape(hidden_size=256, intermediate_size=704, layers=6, heads=8, vocab_size=640)
LLAMA_3 = known_shape("llama-3-8b")
# Shapes whose attention keeps no scores are as varlen: without padding, SDPA gets no mask.
UNMASKED = {name: "sdpa" if name == "falcon" else "varlen" for name in ARCHITECTURES}


def toy(family: str, method: str, dtype: str, attention: str = "sdpa") -> Any:
    config = model_config(family, TOY)
    config.use_cache = False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        model = model.to(torch.float32 if dtype == "fp32" else torch.bfloat16)
        settings = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, settings)
    return model.train()


def toy_shape(family: str) -> ModelShape:
    return ModelShape.from_config(model_config(family, TOY).to_dict())


def autocast(dtype: str) -> Any:
    return contextlib.nullcontext() if dtype == "fp32" else torch.autocast("cpu", torch.bfloat16)


@pytest.fixture
def cuda_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer norms in fp32, as CUDA's autocast has them and the CPU's has not."""
    original = F.layer_norm

    def in_fp32(x: Any, shape: Any, weight: Any, bias: Any, *rest: Any, **named: Any) -> Any:
        return original(x.float(), shape, weight.float(), bias.float(), *rest, **named)

    monkeypatch.setattr(F, "layer_norm", in_fp32)


def count_saved(model: Any, dtype: str, masked: bool = False) -> int:
    """Bytes of the storages kept for the backward pass, without weights and their casts."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    skip = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {tuple(p.shape) for p in model.parameters()} | {
        tuple(p.shape)[::-1] for p in model.parameters()
    }
    kept: dict[int, torch.Tensor] = {}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in skip and tuple(tensor.shape) not in sizes:
            kept[place] = tensor
        return tensor

    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, 200:] = 0
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor)
    with hooks, autocast(dtype):
        inner.base_model(input_ids=ids, attention_mask=mask if masked else None)
    head_input = TOKENS * TOY.hidden_size * (4 if dtype == "fp32" else 2)
    return head_input + sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def setup_of(method: str, dtype: str, **more: Any) -> TrainingSetup:
    more = {"lora_rank": RANK, "device": "cpu", **more}
    return TrainingSetup(TOKENS, LENGTH, method=method, dtype=dtype, **more)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_activations(family: str, method: str, dtype: str, request: pytest.FixtureRequest) -> None:
    if dtype == "bf16":
        request.getfixturevalue("cuda_norms")
    setup = setup_of(method, dtype, attention=UNMASKED[family])
    counted = count_saved(toy(family, method, dtype), dtype)
    assert saved_bytes(toy_shape(family), setup) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["mistral", "gpt_neox", "falcon"])
def test_activations_with_a_mask(family: str, dtype: str, attention: str) -> None:
    counted = count_saved(toy(family, "full", dtype, attention), dtype, masked=True)
    setup = setup_of("full", dtype, attention=attention)
    assert saved_bytes(toy_shape(family), setup) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "falcon", "gpt_neox"])
def test_checkpointing_leaves_a_state_a_layer(family: str, method: str) -> None:
    setup = setup_of(method, "fp32", attention=UNMASKED[family], checkpointing=True)
    model = toy(family, method, "fp32")
    model.enable_input_require_grads()
    inner = model.get_base_model() if method == "lora" else model
    inner.gradient_checkpointing_enable({"use_reentrant": False})
    counted = count_saved(model, "fp32")
    shape = toy_shape(family)
    saved = saved_bytes(shape, setup) - layer_bytes(shape, setup)
    assert saved == pytest.approx(counted, rel=0.05)


def step_peak(model: Any, dtype: str) -> int:
    """Bytes at the peak of a step: what lives between steps, and the allocator's record of one."""
    from torch.profiler import ProfilerActivity, profile

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    ids = torch.randint(0, TOY.vocab_size, (ROWS, LENGTH))

    def backward() -> None:
        with autocast(dtype):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()

    backward()
    optimizer.step()
    state = [t for slot in optimizer.state.values() for t in slot.values() if torch.is_tensor(t)]
    tensors = [*model.parameters(), *(p.grad for p in trained), *state]
    optimizer.zero_grad(set_to_none=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("family", "method", "dtype"),
    [
        ("llama", "full", "fp32"),
        ("llama", "full", "bf16"),
        ("qwen2", "lora", "bf16"),
        ("gpt_neox", "full", "bf16"),
        ("falcon", "lora", "fp32"),
    ],
)
def test_a_whole_step(family: str, method: str, dtype: str, checkpointing: bool) -> None:
    model = toy(family, method, dtype)
    if checkpointing:
        model.enable_input_require_grads()
        inner = model.get_base_model() if method == "lora" else model
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    more = {"attention": UNMASKED[family], "checkpointing": checkpointing, "head": "whole"}
    predicted = predict(toy_shape(family), setup_of(method, dtype, **more))
    assert predicted.total == pytest.approx(step_peak(model, dtype), rel=0.20)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_trained_parameters_of_lora(family: str) -> None:
    model = toy(family, "lora", "fp32")
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert predict(toy_shape(family), setup_of("lora", "fp32")).trainable == real


def test_named_targets_train_less() -> None:
    setup = setup_of("lora", "bf16", lora_targets=["q_proj", "self_attn.v_proj"])
    predicted = predict(LLAMA_3, setup)
    assert predicted.trainable == 32 * RANK * (4096 + 4096 + 4096 + 1024)
    everywhere = predict(LLAMA_3, setup_of("lora", "bf16"))
    assert predicted.activations < everywhere.activations


def state(**more: Any) -> MemoryPrediction:
    return predict(LLAMA_3, TrainingSetup(1024, 1024, **more))


def test_full_fine_tuning_has_16_bytes_a_parameter() -> None:
    count = LLAMA_3.parameters
    alone = state(method="full")
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * count, 4 * count, 8 * count)
    pure = state(method="full", pure_16bit=True)
    assert pure.weights + pure.gradients + pure.optimizer == 8 * count
    assert pure.buffers == 0
    ddp = state(method="full", strategy="ddp", processes=4)
    assert ddp.buffers - alone.buffers == 4 * count


@pytest.mark.parametrize(
    ("strategy", "bytes_each"),
    [("fsdp", 16 / 4), ("zero2", 2 + 2 / 4 + 16 / 4), ("zero3", 2 / 4 + 2 / 4 + 16 / 4)],
)
def test_sharded_states(strategy: str, bytes_each: float) -> None:
    shared = state(method="full", strategy=strategy, processes=4)
    kept = shared.weights + shared.gradients + shared.optimizer
    assert kept == pytest.approx(bytes_each * LLAMA_3.parameters)
    assert shared.buffers > 0


def test_adapters_on_a_16_bit_base() -> None:
    lora = state()
    assert lora.weights == 2 * LLAMA_3.parameters + 4 * lora.trainable
    assert lora.gradients + lora.optimizer == 12 * lora.trainable
    shared = state(strategy="fsdp", processes=8)
    assert shared.weights == pytest.approx(lora.weights / 8)


def test_four_bits_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(1024, 768)
    quantized, scales = functional.quantize_4bit(
        weight, quant_type="nf4", compress_statistics=True, blocksize=64
    )
    stored = quantized.nbytes + scales.absmax.nbytes + scales.state2.absmax.nbytes
    assert nf4_bytes(weight.numel()) == stored
    assert nf4_bytes(1 << 20) / (1 << 20) == pytest.approx(0.516, abs=0.001)


def test_four_bit_weights_of_a_published_model() -> None:
    four = state(method="qlora")
    spared = 2 * 128256 * 4096 * 2
    assert four.weights == pytest.approx(spared + 0.516 * LLAMA_3.layer_matrices * 32, rel=0.03)
    assert four.buffers == 2 * 4096 * 14336


def test_logits() -> None:
    whole = state(head="whole", loss_tokens=100)
    assert whole.logits == 1024 * 128256 * (2 + 4 + 4 + 4)
    assert state(head="selected", loss_tokens=100).logits * 1024 == whole.logits * 100
    assert state(loss_tokens=100).logits < state().logits < whole.logits


def test_describes_itself() -> None:
    text = state().describe()
    assert text.startswith("predicted memory a process: ")
    assert "activations" in text
    assert "41.94 million trained parameters" in text


def test_faults() -> None:
    with pytest.raises(ValueError, match=r"strategy 'auto' is none of single, ddp"):
        state(strategy="auto")


def test_needs_nothing_but_the_standard_library() -> None:
    recipes = Path(training_memory.__file__).parents[1]
    program = f"import sys; sys.path.insert(0, {str(recipes)!r}); "
    program += "import llm_recipes.training_memory, llm_recipes.known_shapes"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
